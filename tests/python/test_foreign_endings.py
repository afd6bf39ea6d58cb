"""Ends that a foreign peer, here a raw NIXL agent, has a part in: it is told nothing, so memory has to wait for it."""

from __future__ import annotations

import contextlib
import itertools

import pytest
from dynamo_nixl import Connector, Descriptor, NixlConnectError, RdmaMetadata

from support import endings, foreign, middle, roles
from support.endings import DONE, FAILED, HUGE, KINDS, LEASE_EXPIRED, QUARANTINED, TIMED_OUT
from support.fixtures import TRANSPORTS
from support.flight import TCP
from support.memory import blank

pytestmark = [pytest.mark.nixl, pytest.mark.interop]

SIZE = (5 << 20) + 3
LARGE = 128 << 20
LONG_GRACE = {"DYNAMO_NIXL_GRACE": "60"}
SHORT_STALL = {"DYNAMO_NIXL_STALL_TIMEOUT": "1.5"}
LEASE = 1.0


@pytest.fixture
def spawn_alien(spawn, transport):
    """Starts a worker with a raw agent: default configuration, progress thread on."""

    def start():
        worker = spawn(transport | foreign.ENVIRONMENT, loses_peers=True)
        worker.call(foreign.start)
        return worker

    return start


@pytest.fixture
def alien(spawn_alien):
    return spawn_alien()


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


# Peers that go. Nobody sees the process of one that is not ours, or hears from it.


def serve_us(alien, ours):
    """Have one transfer in each direction, of which the foreign one is the owner."""
    assert ours.call(roles.read, alien.call(foreign.expose_readable, SIZE, seed=7), seed=7) == ("DONE", True)
    assert ours.call(roles.write, alien.call(foreign.expose_writable, SIZE), seed=8) == "DONE"
    assert alien.call(foreign.holds_pattern, seed=8)


def serve(ours, alien):
    """Have one of which we are the owner."""
    number, metadata = ours.call(roles.expose_readable, [SIZE], seed=7)
    assert alien.call(foreign.read, metadata, seed=7) == ("DONE", True)
    assert ours.call(roles.wait, number) == "DONE"
    assert ours.call(roles.dispose, number, seed=7)


@pytest.mark.parametrize("event", ["kill", "stop"])
@pytest.mark.parametrize("kind", KINDS)
def test_an_owner_that_goes_in_the_middle(spawn, spawn_alien, transport, kind, event):
    """What is under way ends by the transport's error or the limit, its memory is free, and others are served."""
    ours = spawn(transport | SHORT_STALL, loses_peers=True)
    for _ in range(5):
        alien = spawn_alien()
        serve_us(alien, ours)
        begun = ours.call(middle.begin_in_the_middle, alien.call(foreign.expose_zeros, kind, HUGE))
        if event == "kill":
            alien.kill()
        else:
            alien.pause()
        end = ours.call(endings.ended, begun)
        # Where the kernel copies, a stopped process can be read and written; otherwise it was too fast for us.
        if end != DONE or (event == "stop" and not transport):
            break
        alien.resume()
    if event == "kill":
        assert end in (FAILED, TIMED_OUT)
    else:
        assert end == TIMED_OUT or (end == DONE and not transport)
        # Also with the same peer, once it goes on.
        alien.resume()
    assert ours.call(endings.wait_quiesced, begun)
    serve_us(alien if event == "stop" else spawn_alien(), ours)
    ours.call(roles.settled)


GOINGS = [
    # UCX now and then aborts an owner whose reader dies while replies to it are queued, see `test_peers`.
    pytest.param(*each, marks=pytest.mark.long if each == ("read", "kill", "tcp") else ())
    for each in itertools.product(KINDS, ("kill", "stop"), TRANSPORTS)
]


@pytest.mark.parametrize(("kind", "event", "transport"), GOINGS, indirect=["transport"])
def test_one_that_goes_while_it_is_at_work_on_what_we_expose(alien, ours, spawn_alien, kind, event):
    """The lease ends it, and the memory is its own for the grace, in which one that was stopped may go on."""
    serve(ours, alien)
    for _ in range(5):
        number, metadata = ours.call(endings.expose, kind, 2 * LARGE, lease=LEASE)
        alien.call(foreign.begin_in_parts, kind, metadata)
        if event == "kill":
            alien.kill()
        else:
            alien.pause()
        end = ours.call(endings.ended, number)
        if end != DONE:
            break
        # It was too fast for us.
        if event == "kill":
            alien = spawn_alien()
        else:
            alien.resume()
            assert set(alien.call(foreign.end_of_parts)) == {"DONE"}
    assert end == LEASE_EXPIRED
    assert not ours.call(endings.is_quiesced, number)
    other = spawn_alien()
    serve(ours, other)
    other.finish()
    if event == "stop":
        alien.resume()
        assert set(alien.call(foreign.end_of_parts)) == {"DONE"}
        # Its key comes too late to count.
        ours.call(hears_unknown, 1)
        assert ours.call(endings.ended, number) == LEASE_EXPIRED
        serve(ours, alien)
    ours.call(endings.close)


def test_one_that_pins_too_much(spawn):
    """As `test_grace.test_transfers_with_a_peer_that_pins_too_much`."""
    alien, ours = spawn(TCP | foreign.ENVIRONMENT), spawn(TCP | {"DYNAMO_NIXL_QUARANTINE_LIMIT": str(1 << 20)})
    alien.call(foreign.start)
    serve_us(alien, ours)
    small, big = alien.call(foreign.expose_readable, SIZE, seed=3), alien.call(foreign.expose_zeros, "read", HUGE)
    begun = ours.call(middle.begin_in_the_middle, big)
    alien.pause()
    assert ours.call(endings.cancel, begun) == "STOP"
    assert ours.call(endings.attempt, small, seed=3) == QUARANTINED
    alien.resume()
    assert ours.call(endings.wait_quiesced, begun)
    assert ours.call(endings.attempt, small, seed=3) == DONE
    ours.call(roles.settled)


def test_a_transfer_that_breaks_the_connection_fails_alone(spawn):
    """What else is under way with that peer goes on over another one."""
    alien, ours = spawn(foreign.ENVIRONMENT, loses_peers=True), spawn(loses_peers=True)
    alien.call(foreign.start)
    other = alien.call(foreign.expose_writable, SIZE)
    for seed in range(10):
        writable = alien.call(foreign.expose_writable, LARGE)
        begun, was_under_way = ours.call(middle.break_by_a_write, writable, other, seed=seed)
        assert ours.call(endings.ended, begun) == DONE
        assert alien.call(foreign.receive, 1) == [writable["notification_key"].encode()]
        assert alien.call(foreign.holds_pattern, seed=seed)
        if was_under_way:
            break
        # It was too fast for us.
    else:
        raise AssertionError("no transfer could be caught in the middle")
    serve_us(alien, ours)
    ours.call(roles.settled)
