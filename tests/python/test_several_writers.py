"""Several transfers into one exposure: its memory is quiesced with the last of them, not when the first says so."""

from __future__ import annotations

import asyncio
import time

import numpy as np
import pytest
from dynamo_nixl import Connector
from dynamo_nixl import testing as nixl_faults

from support import endings
from support.endings import CANCELLED_BY_PEER, DONE, STALE

pytestmark = pytest.mark.nixl

MIB = 1 << 20
SIZE = 64 * MIB
"""Many pieces, of which some are held up."""
HELD_UP = 2
MOST_CANCELLED = 400
CANARY = 0x5A
HESITATION = 0.3
"""Seconds in which an owner would have taken its memory for quiesced, had it meant to."""
PATIENT = {"DYNAMO_NIXL_GRACE": "none"}
"""An owner that goes by what its peers say, and not by the clock."""


@pytest.mark.parametrize("names", ["one connector", "two connectors"])
@pytest.mark.parametrize("how", ["complete", "cancel"])
def test_one_of_two_has_ended(spawn, transport, names, how):
    """Whether the two belong to one connector or to two processes."""
    owner, first = spawn(transport | PATIENT), spawn(transport)
    second = first if names == "one connector" else spawn(transport)
    for writer in {first, second}:
        writer.call(use_faults)
        endings.serve(owner, writer)
    number, metadata = owner.call(endings.expose, "write", SIZE)

    late = second.call(begin_and_hold_up, metadata)
    if how == "complete":
        early = first.call(endings.begin, metadata)
        assert first.call(endings.ended, early) == owner.call(endings.ended, number) == DONE
    else:
        early = first.call(begin_and_hold_up, metadata)
        assert first.call(endings.cancel, early) == "STOP"
        # The other one is known to be at work, and may complete the exposure yet.
        owner.call(endings.still, HESITATION)
        assert owner.call(endings.status, number) == "INIT"

    owner.call(endings.still, HESITATION)
    assert not owner.call(endings.is_quiesced, number)
    watching = owner.start(put_canary_when_quiesced, number)
    second.call(let_go)
    assert second.call(endings.ended, late) == (STALE if how == "complete" else DONE)
    # What the one that gave up had begun is on its way until it is let go of as well.
    first.call(let_go)
    assert first.call(endings.wait_quiesced, early)
    watching.result()
    assert owner.call(endings.ended, number) == DONE
    owner.call(endings.still, HESITATION)
    assert owner.call(has_canary, number)


@pytest.mark.parametrize("order", ["before", "after"])
def test_the_owner_is_stopped_while_one_gives_up_and_another_begins(spawn, transport, order):
    """What the two tell it comes in one heap, when it goes on."""
    owner, first, second = spawn(transport | PATIENT), spawn(transport), spawn(transport)
    for writer in (first, second):
        writer.call(use_faults)
        endings.serve(owner, writer)
    number, metadata = owner.call(endings.expose, "write", SIZE)
    early = first.call(begin_and_hold_up, metadata)
    late = None
    if order == "before":
        heard = owner.call(endings.messages)
        late = second.call(begin_and_hold_up, metadata)
        owner.call(endings.hears, heard)
    owner.pause()
    assert first.call(endings.cancel, early) == "STOP"
    first.call(let_go)
    attempting = second.start(endings.attempt, metadata) if late is None else None
    time.sleep(HESITATION)
    owner.resume()
    if late is not None:
        owner.call(endings.still, HESITATION)
        assert owner.call(endings.status, number) == "INIT"
        assert not owner.call(endings.is_quiesced, number)
        second.call(let_go)
    watching = owner.start(put_canary_when_quiesced, number)
    if late is not None:
        assert second.call(endings.ended, late) == owner.call(endings.ended, number) == DONE
    else:
        # Which of the two the owner hears first is open.
        assert attempting.result() in (DONE, CANCELLED_BY_PEER)
        assert owner.call(endings.ended, number) in (DONE, CANCELLED_BY_PEER)
    watching.result()
    owner.call(endings.still, HESITATION)
    assert owner.call(has_canary, number)


async def use_faults(here):
    faults = nixl_faults.Faults(seed=1)
    here.connector = faults.attach(Connector())
    here.kept["faults"] = faults


async def begin_and_hold_up(here, metadata):
    """Begin a write of which some pieces do not move until `let_go`."""
    stall = here.kept["faults"].stall(count=HELD_UP)
    number = await endings.begin(here, metadata)
    await stall.struck(HELD_UP)
    return number


async def let_go(here):
    here.kept["faults"].release()
    here.kept["faults"].clear()


async def put_canary_when_quiesced(here, number):
    operation, (array,) = here.kept[number]
    await operation.wait_quiesced()
    array[:] = CANARY


async def has_canary(here, number):
    _, (array,) = here.kept[number]
    return bool(np.all(array == CANARY))


@pytest.mark.parametrize("how", ["complete", "cancel"])
@pytest.mark.parametrize("turn", [0, *(pytest.param(turn, marks=pytest.mark.long) for turn in range(1, 6))])
def test_the_owner_is_stopped_and_can_be_told_nothing_more(spawn, how, turn):
    """What waits for it in shared memory fills up, so that a hello stays behind with its sender.

    The word of a stopped owner can be read all the same, and says that the exposure is open. That is worth something
    only where the hello has left.
    """
    owner, first, second, talker = spawn(PATIENT), spawn(), spawn(), spawn()
    for writer in (first, second):
        writer.call(use_faults)
    for writer in (first, second, talker):
        endings.serve(owner, writer)
    number, metadata = owner.call(endings.expose, "write", SIZE)
    _, others = owner.call(endings.expose, "write", MIB)
    early = first.call(begin_and_hold_up, metadata)
    owner.pause()
    if how == "cancel":
        assert first.call(endings.cancel, early) == "STOP"
    first.call(let_go)
    first.call(endings.still, HESITATION)
    talker.call(begin_and_cancel_until_nothing_leaves, others)
    late = second.call(begin_held_up, metadata)
    owner.resume()
    watching = owner.start(put_canary_when_quiesced, number)
    owner.call(endings.still, HESITATION)
    second.call(let_go)
    second.call(endings.ended, late)
    watching.result()
    owner.call(endings.still, HESITATION)
    assert owner.call(has_canary, number)
    # Whose conversation is still under way does not hold them up.
    for worker in (first, second, talker):
        worker.call(endings.close, 1.0)


async def begin_and_cancel_until_nothing_leaves(here, metadata):
    """Each has three messages for the owner: that it begins, that it ends, and that it is quiet."""
    for _ in range(MOST_CANCELLED):
        number = await endings.begin(here, metadata)
        operation, _ = here.kept.pop(number)
        operation.cancel()
        try:
            async with asyncio.timeout(1):
                await operation.wait_quiesced()
        except TimeoutError:
            return
    raise AssertionError("the owner's memory for messages has no end")


async def begin_held_up(here, metadata):
    """Begin a write of which no piece ends until `let_go`."""
    here.kept["faults"].stall(count=None)
    number = await endings.begin(here, metadata)
    await asyncio.sleep(HESITATION)
    return number
