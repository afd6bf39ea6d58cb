"""Peers that come and go: leave in order, come back under their name, or are killed."""

from __future__ import annotations

import pytest

from support import endings, flight, roles
from support.aborts import again_where_ucx_aborts
from support.endings import PEER_LOST
from support.flight import TCP

pytestmark = pytest.mark.nixl


def serve_once(owner, reader, size=100_000):
    number, metadata = owner.call(roles.expose_readable, [size], seed=2)
    assert reader.call(roles.read, metadata, seed=2) == ("DONE", True)
    assert owner.call(roles.wait, number) == "DONE"
    assert owner.call(roles.dispose, number, seed=2)


def test_owners_with_other_names(spawn, transport):
    reader = spawn(transport)
    for _ in range(3):
        owner = spawn(transport)
        serve_once(owner, reader)
        owner.finish()
    reader.call(roles.settled)


def test_an_owner_that_was_started_again_under_its_name(spawn, transport):
    reader = spawn(transport)
    for _ in range(3):
        owner = spawn(transport)
        owner.call(roles.use_connector, "the-worker")
        serve_once(owner, reader)
        serve_once(owner, reader, 5 << 20)
        owner.finish()
    assert reader.call(peers) == ["the-worker-1"]


def test_a_new_owner_takes_over_a_name_in_use(spawn):
    """The old one is alive and its transfer under way when the reader hears of the new one."""
    reader, old, new = spawn(TCP), spawn(TCP), spawn(TCP)
    for owner in (old, new):
        owner.call(roles.use_connector, "the-worker")
    old_number, begun = flight.catch_read(old, reader, seed=1)
    number, metadata = new.call(roles.expose_readable, [100_000], seed=2)
    reading = reader.start(roles.read, metadata, seed=2)
    assert reader.call(roles.status, begun) == "PROC"
    old.resume()
    assert reading.result() == ("DONE", True)
    assert new.call(roles.wait, number) == "DONE"
    assert reader.call(roles.wait, begun) == "DONE"
    assert reader.call(roles.dispose, begun, seed=1)
    assert old.call(roles.wait, old_number) == "DONE"


def test_an_owner_lets_its_connector_go_and_makes_another(spawn, transport):
    reader, owner = spawn(transport), spawn(transport)
    for _ in range(3):
        serve_once(owner, reader)
        owner.call(roles.forget_connector)


def test_a_reader_lets_its_connector_go_and_makes_another(spawn, transport):
    reader, owner = spawn(transport), spawn(transport)
    for _ in range(3):
        serve_once(owner, reader)
        reader.call(roles.forget_connector)


def test_an_owner_killed_during_a_read(spawn):
    reader, owner = spawn(TCP, loses_peers=True), spawn(TCP)
    _, begun = flight.catch_read(owner, reader)
    waiting = reader.start(roles.fail_to_wait, begun)
    owner.kill()
    assert waiting.result() == ("PeerLostError", "ERR")
    # Later waits tell the same.
    assert reader.call(roles.fail_to_wait, begun) == ("PeerLostError", "ERR")
    reader.call(roles.settled)
    serve_once(spawn(TCP), reader)


def test_an_owner_killed_before_the_read(spawn, transport):
    reader, owner = spawn(transport, loses_peers=True), spawn(transport)
    serve_once(owner, reader)
    _, metadata = owner.call(roles.expose_readable, [70_000])
    owner.kill()
    assert reader.call(roles.fail_to_read, metadata) == "PeerLostError"
    serve_once(spawn(transport), reader)


def test_an_owner_killed_before_the_reader_knows_it(spawn, transport):
    reader, owner = spawn(transport, loses_peers=True), spawn(transport)
    owner.call(roles.use_connector, "the-worker")
    _, metadata = owner.call(roles.expose_readable, [70_000])
    owner.kill()
    assert reader.call(roles.fail_to_read, metadata) == "PeerLostError"
    again = spawn(transport)
    again.call(roles.use_connector, "the-worker")
    serve_once(again, reader)


@pytest.mark.parametrize("notices", [True, False])
def test_a_killed_owner_comes_back_under_its_name(spawn, transport, notices):
    """Whether or not the reader has tried to reach it meanwhile."""
    reader, owner = spawn(transport, loses_peers=True), spawn(transport)
    owner.call(roles.use_connector, "the-worker")
    serve_once(owner, reader)
    _, metadata = owner.call(roles.expose_readable, [70_000])
    owner.kill()
    if notices:
        assert reader.call(roles.fail_to_read, metadata) == "PeerLostError"
    again = spawn(transport)
    again.call(roles.use_connector, "the-worker")
    serve_once(again, reader)


@pytest.mark.long
@again_where_ucx_aborts
def test_a_reader_killed_during_its_read_leaves_the_owner_working(spawn):
    owner, doomed = spawn(TCP, loses_peers=True), spawn(TCP)
    number, _ = flight.catch_read(owner, doomed)
    doomed.kill()
    owner.resume()
    serve_once(owner, spawn(TCP))
    assert owner.call(endings.ended, number) == PEER_LOST
    owner.call(roles.dispose, number)
    owner.call(roles.settled)


def test_a_reader_of_many_owners_holds_on_to_none(spawn):
    """Threads do not grow with the number of peers, and files stop growing."""
    reader = spawn(TCP)
    seen = []
    for _ in range(30):
        owner = spawn(TCP)
        serve_once(owner, reader)
        owner.finish()
        seen.append((reader.threads, reader.open_files))
    reader.call(roles.settled)
    threads, files = zip(*seen, strict=True)
    assert max(threads) == threads[0], seen
    assert max(files[10:]) <= max(files[:10]), seen


async def peers(here):
    return here.connector._shared_connection._native.peers()
