"""Bytes that are on their way when an operation ends: none lands in memory that is said to be quiesced.

Over TCP, where NIXL goes on with what it was given whatever becomes of the request.
"""

from __future__ import annotations

import asyncio
import random
import time
import weakref

import numpy as np
import pytest

from support import endings, roles
from support.endings import CANCELLED_BY_PEER, DONE, FAILED, KINDS, STOPPED, TIMED_OUT
from support.flight import BIG, TCP
from support.here import eventually, stats

pytestmark = pytest.mark.nixl

PATIENT = TCP | {"DYNAMO_NIXL_GRACE": "none"}
"""An owner that takes its memory for quiesced when its peer says so, and not after a while."""
CANARY = 0x5A
CANCELLABLE = BIG - (24 << 20)
"""When so many bytes have moved, the last ones are still to be asked for, also by a machine with other things to do."""
OBSERVED = 1.0
"""Seconds in which the canary must stay, while both sides go on."""
FROZEN = 3_700_000
"""Bytes of a read of which UCX over TCP holds a good part in its buffers when its owner is stopped."""
DEADLINE = 0.5
POINTS = [pytest.param(seed, id=f"point-{seed}") for seed in range(2)]
POINTS += [pytest.param(seed, id=f"point-{seed}", marks=pytest.mark.long) for seed in range(2, 22)]


@pytest.mark.parametrize("seed", POINTS)
@pytest.mark.parametrize("kind", KINDS)
def test_cancelled_at_a_random_point(spawn, kind, seed):
    owner, active = spawn(PATIENT), spawn(TCP)
    endings.serve(owner, active)
    number, begun = cancel_at(owner, active, kind, int(random.Random(seed).random() * CANCELLABLE))
    # Whose memory the bytes went into: the reader's, or that of the owner, which has to hear of it first.
    watcher, watched, other = (active, begun, owner) if kind == "read" else (owner, number, active)
    watcher.call(put_canary_when_quiesced, watched)
    go_on(watcher, other, watched)
    assert owner.call(endings.wait_quiesced, number)
    assert active.call(endings.wait_quiesced, begun)


def cancel_at(owner, active, kind, point):
    for _ in range(20):
        number, metadata = owner.call(endings.expose, kind, BIG)
        begun = active.call(begin_and_cancel_at, metadata, point)
        ends = active.call(endings.ended, begun), owner.call(endings.ended, number)
        if ends == (STOPPED, CANCELLED_BY_PEER):
            return number, begun
        # The point is close to the end, and it was too fast for us, if only so that its key was on the way.
        assert ends in ((DONE, DONE), (STOPPED, DONE))
        owner.call(endings.drop, number)
        active.call(endings.drop, begun)
    raise AssertionError("no transfer could be cancelled in time")


@pytest.mark.parametrize("kind", KINDS)
def test_an_owner_that_cancels_in_the_middle(spawn, kind):
    """Here the owner may say that its memory is quiesced as soon as it hears that its peer is done, and no sooner."""
    owner, active = spawn(PATIENT), spawn(TCP)
    number, begun = endings.catch(owner, active, kind, size=BIG)
    assert owner.call(endings.cancel, number) == "STOP"
    watcher, watched, other = (active, begun, owner) if kind == "read" else (owner, number, active)
    waiting = watcher.start(put_canary_when_quiesced, watched)
    active.resume()
    waiting.result()
    go_on(watcher, other, watched)
    assert active.call(endings.ended, begun) == CANCELLED_BY_PEER


@pytest.mark.parametrize("how", ["kept", "dropped"])
def test_a_read_whose_owner_is_stopped_beyond_its_deadline(spawn, how):
    """Its memory is not free when it has ended, but when the owner is back and what was asked of it has come."""
    owner, reader = spawn(TCP), spawn(TCP)
    number, begun = time_out(owner, reader)
    counters = reader.call(roles.counters)
    assert (counters["transfers"], counters["regions"]) == (1, 1)
    address, memory = reader.call(watch_memory, begun)
    waiting = reader.start(put_canary_when_quiesced, begun) if how == "kept" else None
    if how == "dropped":
        reader.call(endings.drop, begun)
    users = reader.call(allocate_canaries, address)
    assert reader.call(is_alive, memory)
    if waiting:
        assert not reader.call(endings.is_quiesced, begun)
    owner.resume()
    if waiting:
        waiting.result()
        assert reader.call(endings.is_quiesced, begun)
    assert owner.call(endings.ended, number) == FAILED
    go_on(reader, owner, begun if waiting else users)
    assert reader.call(stays, users, 0)
    if waiting:
        reader.call(endings.drop, begun)
    reader.call(is_gone, memory)
    reader.call(roles.settled)


def time_out(owner, reader):
    """Have a read that has ended by its deadline, with something on its way and its owner stopped."""
    for turn in range(20):
        endings.serve(owner, reader)
        number, metadata = owner.call(endings.expose, "read", FROZEN)
        beginning = reader.start(endings.begin, metadata, timeout=DEADLINE)
        # Sooner or later in its course.
        time.sleep(turn % 5 * 0.001)
        owner.pause()
        begun = beginning.result()
        if reader.call(endings.ended, begun) == TIMED_OUT and not reader.call(endings.is_quiesced, begun):
            return number, begun
        # It was too fast for us.
        owner.resume()
        reader.call(endings.drop, begun)
        owner.call(endings.drop, number)
    raise AssertionError("no read was under way when its owner was stopped")


async def watch_memory(here, number):
    _, (array,) = here.kept[number]
    return array.ctypes.data, here.keep(weakref.ref(array))


async def is_alive(here, memory):
    # What was given up natively is dropped once the module is entered.
    stats(here.connector)
    return here.kept[memory]() is not None


async def is_gone(here, memory):
    await eventually(lambda: (stats(here.connector), here.kept[memory]())[1] is None)


async def allocate_canaries(here, address):
    """What a new user gets from the heap: never what is still pinned."""
    arrays = [np.full(FROZEN, CANARY, dtype=np.uint8) for _ in range(20)]
    for array in arrays:
        assert abs(array.ctypes.data - address) >= FROZEN
    return here.keep((None, arrays))


def go_on(watcher, other, number):
    """Have both sides work, in both directions and beside other memory, while the canary is watched."""
    watching = watcher.start(stays, number)
    watcher.call(endings.is_well)
    for turn in range(3):
        for owner, active in ((watcher, other), (other, watcher)):
            for kind in KINDS:
                exposed, metadata = owner.call(endings.expose, kind, 8 << 20, seed=turn)
                assert active.call(endings.attempt, metadata, seed=turn) == DONE
                assert owner.call(endings.ended, exposed) == DONE
                owner.call(endings.drop, exposed)
    watching.result()


async def begin_and_cancel_at(here, metadata, point):
    """Cancel once so many bytes have moved. Returns the number of what is kept."""
    number = await endings.begin(here, metadata)
    operation, _ = here.kept[number]
    await eventually(lambda: operation._native.bytes_done >= point or operation._native.has_finished)
    operation.cancel()
    return number


async def put_canary_when_quiesced(here, number):
    operation, (array,) = here.kept[number]
    await operation.wait_quiesced()
    assert operation.is_quiesced
    array[:] = CANARY


async def stays(here, number, seconds=OBSERVED):
    """Look again and again at the whole of it, with time for the loop in between."""
    _, arrays = here.kept[number]
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds
    while True:
        assert await asyncio.to_thread(lambda: all(bool((array == CANARY).all()) for array in arrays))
        if loop.time() >= end:
            return True
        await asyncio.sleep(0.1)
