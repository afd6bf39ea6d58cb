"""Ends that a foreign peer, here a raw NIXL agent, has a part in: it is told nothing, so memory has to wait for it."""

from __future__ import annotations

import contextlib

import pytest
from dynamo_nixl import Connector, Descriptor, NixlConnectError, RdmaMetadata

from support import endings, foreign, roles
from support.endings import KINDS, LEASE_EXPIRED
from support.memory import blank

pytestmark = [pytest.mark.nixl, pytest.mark.interop]

SIZE = (5 << 20) + 3
LARGE = 128 << 20
LONG_GRACE = {"DYNAMO_NIXL_GRACE": "60"}


@pytest.fixture
def alien(spawn, transport):
    """A worker with a raw agent: default configuration, progress thread on."""
    worker = spawn(transport | foreign.ENVIRONMENT, loses_peers=True)
    worker.call(foreign.start)
    return worker


@pytest.fixture
def ours(spawn, transport):
    return spawn(transport | LONG_GRACE, loses_peers=True)


@pytest.mark.parametrize("end", ["lease", "drop"])
@pytest.mark.parametrize("kind", KINDS)
def test_one_that_comes_late_within_the_grace(alien, ours, kind, end):
    """The memory is still alive, registered, and used by nobody else."""
    number, metadata = ours.call(endings.expose, kind, SIZE, seed=3, lease=0.05 if end == "lease" else 60.0)
    if end == "lease":
        assert ours.call(endings.ended, number) == LEASE_EXPIRED
    else:
        ours.call(endings.drop, number)
    assert ours.call(endings.counts, "exposures_in_grace", 1)
    assert ours.call(endings.counts, "bytes_in_grace", SIZE)
    heard = ours.call(roles.counters)["notifications_matched"]
    if kind == "read":
        assert alien.call(foreign.read, metadata, seed=3) == ("DONE", True)
    else:
        assert alien.call(foreign.write, metadata, seed=3) == "DONE"
    # Its key comes too late to count.
    ours.call(hears_unknown, 1)
    assert ours.call(roles.counters)["notifications_matched"] == heard
    assert ours.call(endings.counts, "exposures_in_grace", 1)
    if end == "lease":
        assert ours.call(endings.status, number) == "ERR"
        assert not ours.call(endings.is_quiesced, number)
    ours.call(endings.close)
    ours.finish()
    assert alien.call(foreign.receive_nothing_more) == []


async def hears_unknown(here, count):
    await endings.eventually(lambda: endings.stats(here.connector)["notifications_unknown"] >= count)


def test_an_owner_that_is_left_is_told_nothing(alien, spawn, transport):
    """Cancelled, late, closed or failed: the key is for what is complete, and there is nothing else to say."""
    ours = spawn(transport)
    exposed = [alien.call(foreign.expose_readable, SIZE, seed=seed) for seed in range(4)]
    writable = alien.call(foreign.expose_writable, 4096)
    big = alien.call(foreign.expose_readable, LARGE)
    assert ours.call(roles.read, exposed[0]) == ("DONE", True)
    ours.call(give_all_up, exposed[1:], writable, big)
    assert ours.call(roles.read, exposed[3], seed=3) == ("DONE", True)
    ours.finish()
    keys = [each["notification_key"].encode() for each in (exposed[0], exposed[3])]
    assert alien.call(foreign.receive, 2) + alien.call(foreign.receive_nothing_more) == keys


async def give_all_up(here, exposed, writable, big):
    connector = here.connector
    read, huge = RdmaMetadata.model_validate(exposed[0]), RdmaMetadata.model_validate(big)
    target = Descriptor(blank(LARGE))
    for timeout in (None, 0.0, 0.001):
        operation = await connector.begin_read(huge, target, timeout=timeout)
        if timeout is None:
            operation.cancel()
        with contextlib.suppress(NixlConnectError):
            await operation.wait_for_completion()
        assert str(operation.status) == ("STOP" if timeout is None else "ERR")
        await operation.wait_quiesced()
    # Of another size, of another kind, unverifiable: nothing that it could be told of.
    for attempt in (
        connector.begin_read(read, Descriptor(blank(1))),
        connector.begin_read(RdmaMetadata.model_validate(writable), Descriptor(blank(4096))),
        connector.begin_read(read, Descriptor(blank(SIZE)), verify=True),
    ):
        with pytest.raises((ValueError, RuntimeError)):
            await attempt
    async with Connector() as other:
        operation = await other.begin_read(huge, target)
    assert str(operation.status) == "ERR"


@pytest.mark.parametrize("kind", KINDS)
def test_one_that_moves_bytes_when_the_lease_ends(spawn, transport, kind):
    """It is not known to be at work. What it does ends well within the grace."""
    alien, ours = spawn(transport | foreign.ENVIRONMENT), spawn(transport | LONG_GRACE)
    alien.call(foreign.start)
    number, metadata = ours.call(endings.expose, kind, LARGE, seed=3, lease=None)
    moving = alien.start(foreign.read if kind == "read" else foreign.write, metadata, seed=3)
    ours.call(endings.still, 0.02)
    ours.call(endings.renew, number, 0)
    end = ours.call(endings.ended, number)
    assert moving.result() == (("DONE", True) if kind == "read" else "DONE")
    assert end == LEASE_EXPIRED
    assert alien.call(foreign.receive_nothing_more) == []
    ours.call(endings.drop, number)
    ours.call(endings.close)
