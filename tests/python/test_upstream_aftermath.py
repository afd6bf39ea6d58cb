"""What is left of operations with upstream: notifications, and readers that come late."""

from __future__ import annotations

import time

import pytest

from support import roles, upstream

pytestmark = [pytest.mark.nixl, pytest.mark.interop, pytest.mark.timeout(280)]

KIB, MIB = 1 << 10, 1 << 20
SIZES = [[1], [64 * MIB], [1, 4 * KIB, MIB + 3], [4 * KIB] * 100]
LATE = 3.0
"""Seconds after which a second reader comes: our threads rest as deeply as they ever do by then."""


def test_one_notification_each_and_nothing_more(spawn_upstream, spawn, transport):
    """Upstream keeps whatever it does not know for ever, and searches it for every operation it has."""
    theirs, ours = spawn_upstream(transport), spawn(transport)
    keys = []
    for turn, sizes in enumerate(SIZES):
        # Both at once, and then one that we own: as passive side we have nothing to tell.
        reading, to_read = theirs.call(upstream.expose_readable, sizes, seed=turn)
        writing, to_write = theirs.call(upstream.expose_writable, sizes)
        calls = [ours.start(roles.read, to_read, seed=turn), ours.start(roles.write, to_write, seed=turn)]
        assert [call.result() for call in calls] == [("DONE", True), "DONE"]
        assert theirs.call(upstream.wait, reading) == theirs.call(upstream.wait, writing) == "DONE"
        number, metadata = ours.call(roles.expose_readable, sizes, seed=turn)
        assert theirs.call(upstream.read, metadata, seed=turn) == ("DONE", True)
        assert ours.call(roles.wait, number) == "DONE"
        keys += [to_read["notification_key"].encode(), to_write["notification_key"].encode()]
    ours.call(roles.settled)
    ours.finish()
    theirs.call(upstream.notifications, least=len(keys))
    # Nothing announces that nothing more is on its way; that the sender has ended is as good as it gets.
    time.sleep(0.2)
    assert sorted(theirs.call(upstream.notifications)) == sorted(keys)


def test_a_late_reader_of_ours(spawn, spawn_upstream, transport):
    """It connects when our operation has long ended, though its memory is still there."""
    ours, theirs, late = spawn(transport), spawn_upstream(transport), spawn_upstream(transport)
    number, metadata = ours.call(roles.expose_readable, [64 * MIB], seed=4)
    assert theirs.call(upstream.read, metadata, seed=4) == ("DONE", True)
    assert ours.call(roles.wait, number) == "DONE"
    theirs.finish()
    time.sleep(LATE)
    assert late.call(upstream.read, metadata, seed=4) == ("DONE", True)
    assert ours.call(roles.status, number) == "DONE"
    assert ours.call(roles.dispose, number, seed=4)
    ours.call(roles.settled)


def test_a_late_reader_of_upstream(spawn, spawn_upstream, transport):
    theirs, ours, late = spawn_upstream(transport), spawn(transport), spawn(transport)
    number, metadata = theirs.call(upstream.expose_readable, [64 * MIB], seed=4)
    assert ours.call(roles.read, metadata, seed=4) == ("DONE", True)
    assert theirs.call(upstream.wait, number) == "DONE"
    ours.finish()
    time.sleep(LATE)
    assert late.call(roles.read, metadata, seed=4) == ("DONE", True)
    assert theirs.call(upstream.status, number) == "DONE"
    key = metadata["notification_key"].encode()
    assert theirs.call(upstream.notifications, least=2) == [key, key]
    assert theirs.call(upstream.dispose, number, seed=4)
