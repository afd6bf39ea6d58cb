"""Several transfers into one exposure: its memory is quiesced with the last of them, not when the first says so."""

from __future__ import annotations

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
    late = second.call(begin_and_hold_up, metadata) if order == "before" else None
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
    # Without the first one's word, the second finds an open exposure; with it, none.
    end = second.call(endings.ended, late) if late is not None else attempting.result()
    assert end in ([DONE] if order == "before" else [DONE, CANCELLED_BY_PEER])
    watching.result()
    assert owner.call(endings.ended, number) == end
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
