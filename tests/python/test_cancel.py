"""Cancelling: at once for whoever waits, and never unsafe for the memory."""

from __future__ import annotations

import pytest
from dynamo_nixl import Descriptor

from support import flight, roles
from support.flight import TCP
from support.here import settle
from support.memory import pattern

pytestmark = pytest.mark.nixl

CANCELLED = ("CancelledByPeerError", "STOP")


def test_a_passive_operation_before_anybody_comes(pair):
    number, _ = pair.owner.call(roles.expose_readable, [4096])
    waiting = pair.owner.start(roles.wait, number)
    pair.owner.call(roles.nothing)
    assert pair.owner.call(cancel, number) == "STOP"
    assert waiting.result() == "STOP"
    assert pair.owner.call(cancel, number) == "STOP"


@pytest.mark.parametrize("how", ["cancel", "exit"])
def test_a_read_in_flight(spawn, how):
    owner, reader = spawn(TCP), spawn(TCP)
    number, begun = flight.catch_read(owner, reader)
    waiting = reader.start(roles.wait, begun)
    reader.call(roles.nothing)
    # The owner stands still: whatever is answered now waits for nothing on the wire.
    assert reader.call(end, begun, how) == "STOP"
    assert waiting.result() == "STOP"
    assert reader.call(roles.wait, begun) == "STOP"
    assert reader.call(has_no_results, begun)
    # What is on its way cannot be called back: the memory stays registered and counted.
    counters = reader.call(roles.counters)
    assert (counters["transfers"], counters["regions"]) == (1, 1)
    owner.resume()
    # It lands, no further piece is posted, and then nothing changes any more.
    assert reader.call(stays_as_it_is_when_quiet, begun)
    assert owner.call(roles.fail_to_wait, number) == CANCELLED
    still_works(owner, reader)


def test_a_waiter_keeps_an_operation_that_is_dropped(spawn):
    owner, reader = spawn(TCP), spawn(TCP)
    number, begun = flight.catch_read(owner, reader)
    waiting = reader.start(roles.wait, begun)
    reader.call(roles.nothing)
    assert reader.call(drop, begun) == "PROC"
    owner.resume()
    assert waiting.result() == "DONE"
    assert owner.call(roles.wait, number) == "DONE"


def test_a_write_in_flight(spawn):
    owner, writer = spawn(TCP), spawn(TCP)
    number, begun = flight.catch_write(owner, writer)
    assert writer.call(end, begun, "cancel") == "STOP"
    assert writer.call(roles.wait, begun) == "STOP"
    assert writer.call(roles.counters)["transfers"] == 1
    owner.resume()
    writer.call(roles.settled)
    # Not all of it has come, and the owner was told.
    assert owner.call(roles.fail_to_wait, number) == CANCELLED
    assert not owner.call(roles.dispose, number)
    still_works(owner, writer)


def test_one_of_several_in_flight(spawn):
    owner, reader = spawn(TCP), spawn(TCP)
    exposed, begun = flight.catch_read(owner, reader, seed=1)
    owner.resume()
    more = [owner.call(roles.expose_readable, [64 << 20], seed=seed) for seed in (2, 3)]
    owner.pause()
    others = [reader.call(roles.begin_read, metadata) for _, metadata in more]
    assert reader.call(end, others[0], "cancel") == "STOP"
    owner.resume()
    for number, mine, seed in ((exposed, begun, 1), (more[1][0], others[1], 3)):
        assert reader.call(roles.wait, mine) == "DONE"
        assert reader.call(roles.dispose, mine, seed=seed)
        assert owner.call(roles.wait, number) == "DONE"
    assert owner.call(roles.fail_to_wait, more[0][0]) == CANCELLED
    reader.call(roles.settled)


def still_works(owner, reader):
    number, metadata = owner.call(roles.expose_readable, [5 << 20], seed=4)
    assert reader.call(roles.read, metadata, seed=4) == ("DONE", True)
    assert owner.call(roles.wait, number) == "DONE"


async def cancel(here, number):
    operation, _ = here.kept[number]
    operation.cancel()
    return str(operation.status)


async def end(here, number, how):
    operation, _ = here.kept[number]
    for _ in range(2):
        if how == "cancel":
            operation.cancel()
        else:
            operation.__exit__(None, None, None)
    return str(operation.status)


async def drop(here, number):
    operation, _ = here.kept.pop(number)
    return str(operation.status)


async def has_no_results(here, number):
    operation, _ = here.kept[number]
    with pytest.raises(RuntimeError):
        operation.results()
    return True


async def stays_as_it_is_when_quiet(here, number):
    operation, (array,) = here.kept[number]
    await settle(here.connector)
    assert operation._native.bytes_done < array.nbytes
    array[:] = 0x5A
    # Time for something to land, in which other operations move through the same connector.
    for _ in range(20):
        await here.connector.create_readable(Descriptor(pattern(1000)))
    return bool((array == 0x5A).all())
