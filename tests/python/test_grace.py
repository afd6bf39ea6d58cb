"""Memory of exposures that were given up: alive for the grace, or until it is sure that nobody is at work on it."""

from __future__ import annotations

import weakref

import pytest
from dynamo_nixl import Connector, Descriptor, RdmaMetadata

from support import endings, flight, roles
from support.endings import CANCELLED_BY_PEER, DONE, KINDS, QUARANTINED, STOPPED
from support.flight import TCP
from support.here import eventually, stats
from support.memory import blank, pattern

pytestmark = pytest.mark.nixl

SIZE = 70_000
FOR_EVER = {"DYNAMO_NIXL_GRACE": "none"}


def in_grace(connector):
    counters = stats(connector)
    return counters["exposures_in_grace"], counters["bytes_in_grace"]


async def exposed(connector, size=SIZE, *, is_told=True):
    """An exposure, and what says whether its memory is alive. Nobody but the exposure holds it."""
    array = pattern(size)
    operation = await connector.create_readable(Descriptor(array))
    if is_told:
        operation.metadata()
    return operation, weakref.ref(array)


def living(connector, memories):
    """Which are alive. References that were given up natively are dropped once the module is entered."""
    stats(connector)
    return [memory() is not None for memory in memories]


@pytest.mark.parametrize("how", ["cancel", "exit", "drop", "lease"])
def test_memory_stays_alive_for_the_grace(pair, how):
    assert pair.owner.call(in_and_after_grace, how) == [(1, SIZE, True), (0, 0, False)]


async def in_and_after_grace(here, how):
    seen = []
    for grace in (600, 0.05):
        async with Connector(grace=grace) as connector:
            operation, memory = await exposed(connector)
            if how == "lease":
                operation.renew(0)
                with pytest.raises(RuntimeError):
                    await operation.wait_for_completion()
            elif how != "drop":
                (operation.cancel if how == "cancel" else operation.__exit__)()
            if grace == 600:
                await endings.still(here, 0.1)
                if how != "drop":
                    assert not operation.is_quiesced
                del operation
                await endings.still(here, 0.1)
            else:
                if how != "drop":
                    await operation.wait_quiesced()
                    assert operation.is_quiesced
                del operation
                await eventually(lambda connector=connector, memory=memory: not any(living(connector, [memory])))
            seen.append((*in_grace(connector), *living(connector, [memory])))
    return seen


def test_memory_that_nobody_was_told_of_is_free_at_once(pair):
    assert pair.owner.call(without_metadata) == (0, 0)


async def without_metadata(here):
    async with Connector(grace=None) as connector:
        operation, memory = await exposed(connector, is_told=False)
        assert not operation.is_quiesced
        operation.cancel()
        await operation.wait_quiesced()
        found = in_grace(connector)
        del operation
        await eventually(lambda: not any(living(connector, [memory])))
    return found


def test_complete_memory_is_free_at_once(spawn, transport):
    owner, reader = spawn(transport | FOR_EVER), spawn(transport)
    number, metadata = owner.call(endings.expose, "read", SIZE, seed=1)
    assert not owner.call(endings.is_quiesced, number)
    assert reader.call(endings.attempt, metadata) == DONE
    assert owner.call(endings.ended, number) == DONE
    assert owner.call(endings.wait_quiesced, number)
    owner.call(roles.settled)


@pytest.mark.parametrize("kind", KINDS)
def test_the_only_peer_confirms_that_it_is_done(spawn, transport, kind):
    owner, active = spawn(transport | FOR_EVER), spawn(transport)
    number, begun = endings.catch(owner, active, kind)
    assert owner.call(endings.cancel, number) == "STOP"
    assert owner.call(endings.counts, "exposures_in_grace", 1) == 1
    assert owner.call(endings.counts, "bytes_in_grace", endings.HUGE) == endings.HUGE
    assert not owner.call(endings.is_quiesced, number)
    waiting = owner.start(endings.wait_quiesced, number)
    active.resume()
    assert active.call(endings.ended, begun) == CANCELLED_BY_PEER
    assert waiting.result()
    assert owner.call(endings.ended, number) == STOPPED
    owner.call(endings.drop, number)
    owner.call(roles.settled)


def test_the_oldest_in_grace_gives_way(pair):
    assert pair.owner.call(exceed_the_limit) == [
        # Each one that is given up, and which of them are alive then.
        (1, [True]),
        (2, [True, True]),
        (2, [False, True, True]),
        (2, [False, False, True, True]),
    ]


async def exceed_the_limit(here):
    seen, memories = [], []
    async with Connector(grace=None, quarantine_limit=2 * SIZE) as connector:
        for _ in range(4):
            operation, memory = await exposed(connector)
            memories.append(memory)
            operation.cancel()
            del operation
            # What is let go is only a moment later.
            await eventually(lambda: sum(living(connector, memories)) <= 2)
            count, held = in_grace(connector)
            assert held == count * SIZE
            seen.append((count, living(connector, memories)))
    return seen


def test_with_a_limit_of_nothing_nothing_is_held(pair):
    assert pair.owner.call(hold_nothing) == (0, 0)


async def hold_nothing(here):
    async with Connector(grace=None, quarantine_limit=0) as connector:
        operation, memory = await exposed(connector)
        operation.cancel()
        await operation.wait_quiesced()
        del operation
        await eventually(lambda: not any(living(connector, [memory])))
        return in_grace(connector)


def test_one_that_is_larger_than_the_limit_is_held_alone(pair):
    """Until the next one needs its room."""
    assert pair.owner.call(exceed_the_limit_alone) == [(1, SIZE), (1, SIZE)]


async def exceed_the_limit_alone(here):
    async with Connector(grace=None, quarantine_limit=SIZE - 1) as connector:
        first, _ = await exposed(connector)
        first.cancel()
        seen = [in_grace(connector)]
        assert not first.is_quiesced
        second, _ = await exposed(connector)
        second.cancel()
        await first.wait_quiesced()
        assert not second.is_quiesced
        return [*seen, in_grace(connector)]


def test_transfers_with_a_peer_that_pins_too_much(spawn):
    """It is stopped; others go on, and so does it when it is back."""
    owner, other = spawn(TCP), spawn(TCP)
    reader = spawn(TCP | {"DYNAMO_NIXL_QUARANTINE_LIMIT": str(1 << 20)})
    waiting, metadata = owner.call(endings.expose, "read", SIZE, seed=2)
    open_still, small = owner.call(endings.expose, "write", 8)
    number, begun = flight.catch_read(owner, reader)
    # What is under way counts for nothing.
    more = reader.call(endings.begin, metadata)
    assert reader.call(endings.cancel, more) == "STOP"
    assert reader.call(endings.cancel, begun) == "STOP"
    assert reader.call(endings.attempt, small, seed=1) == QUARANTINED
    assert not reader.call(endings.is_quiesced, begun)
    endings.serve(other, reader)
    owner.resume()
    assert reader.call(endings.wait_quiesced, begun)
    assert owner.call(endings.ended, number) == CANCELLED_BY_PEER
    assert owner.call(endings.ended, waiting) == CANCELLED_BY_PEER
    assert owner.call(endings.status, open_still) == "INIT"
    assert reader.call(endings.attempt, small, seed=1) == DONE
    endings.serve(owner, reader)


def test_a_limit_of_none(spawn):
    owner, reader = spawn(TCP), spawn(TCP | {"DYNAMO_NIXL_QUARANTINE_LIMIT": "none"})
    _, metadata = owner.call(endings.expose, "read", SIZE, seed=2)
    _, begun = flight.catch_read(owner, reader)
    assert reader.call(endings.cancel, begun) == "STOP"
    # It waits for the owner, as any other.
    reading = reader.start(read, metadata)
    assert reader.call(endings.is_well)
    owner.resume()
    assert reading.result() == "DONE"


async def read(here, metadata):
    operation = await here.connector.begin_read(RdmaMetadata.model_validate(metadata), Descriptor(blank(SIZE)))
    await operation.wait_for_completion()
    return str(operation.status)
