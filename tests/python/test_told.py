"""What one side is told when the other ends an operation before it is complete, before it begins and in the middle."""

from __future__ import annotations

import time

import pytest
from dynamo_nixl import Descriptor

from support import endings, middle
from support.aborts import again_where_ucx_aborts
from support.endings import CANCELLED_BY_PEER, CLOSED, FAILED, KINDS, PEER_LOST, STOPPED, TIMED_OUT
from support.memory import pattern
from support.middle import HOWS

pytestmark = pytest.mark.nixl

TIMEOUT = 0.5


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_owner_gives_up_before_anybody_comes(pair, kind, how):
    number, metadata = pair.owner.call(endings.expose, kind, 70_000, seed=1)
    assert pair.owner.call(middle.give_up, number, how) == "STOP"
    assert pair.reader.call(endings.attempt, metadata, seed=1) == CANCELLED_BY_PEER
    if how != "drop":
        assert pair.owner.call(endings.ended, number) == STOPPED


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_owner_gives_up_in_the_middle(pair, kind, how):
    number, begun = endings.catch(pair.owner, pair.reader, kind)
    assert pair.owner.call(middle.give_up, number, how) == "STOP"
    pair.reader.resume()
    assert pair.reader.call(endings.ended, begun) == CANCELLED_BY_PEER
    assert pair.reader.call(endings.wait_quiesced, begun)
    if how != "drop":
        assert pair.owner.call(endings.ended, number) == STOPPED
        assert pair.owner.call(endings.wait_quiesced, number)
    endings.serve(pair.owner, pair.reader)


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_active_side_gives_up_in_the_middle(pair, kind, how):
    number, begun, status = middle.interrupt(pair.owner, pair.reader, kind, middle.give_up, how)
    assert status == "STOP"
    assert pair.owner.call(endings.ended, number) == CANCELLED_BY_PEER
    assert "cancelled" in pair.owner.call(endings.error_text, number)
    assert pair.owner.call(endings.wait_quiesced, number)
    if how != "drop":
        assert pair.reader.call(endings.ended, begun) == STOPPED
        assert pair.reader.call(endings.wait_quiesced, begun)
    endings.serve(pair.owner, pair.reader)


@pytest.mark.parametrize("kind", KINDS)
def test_a_timeout_of_the_active_side(pair, kind):
    number, begun = endings.catch(pair.owner, pair.reader, kind, timeout=TIMEOUT)
    time.sleep(TIMEOUT)
    pair.reader.resume()
    assert pair.reader.call(endings.ended, begun) == TIMED_OUT
    assert pair.owner.call(endings.ended, number) == FAILED
    assert "in time" in pair.owner.call(endings.error_text, number)
    assert pair.reader.call(endings.wait_quiesced, begun)
    assert pair.owner.call(endings.wait_quiesced, number)
    endings.serve(pair.owner, pair.reader)


@pytest.mark.parametrize("kind", KINDS)
def test_the_owner_closes_in_the_middle(pair, kind):
    number, begun = endings.catch(pair.owner, pair.reader, kind)
    closing = pair.owner.start(middle.close_now, number)
    assert pair.owner.call(endings.ended, number) == CLOSED
    pair.reader.resume()
    assert closing.result() == "ERR"
    assert pair.reader.call(endings.ended, begun) == FAILED
    assert pair.reader.call(endings.wait_quiesced, begun)
    endings.serve(pair.owner, pair.reader)


@pytest.mark.parametrize("kind", KINDS)
def test_the_active_side_closes_in_the_middle(pair, kind):
    number, begun, status = middle.interrupt(pair.owner, pair.reader, kind, middle.close_now)
    assert status == "ERR"
    assert pair.reader.call(endings.ended, begun) == CLOSED
    assert pair.owner.call(endings.ended, number) == FAILED
    assert "closed" in pair.owner.call(endings.error_text, number)
    assert pair.owner.call(endings.wait_quiesced, number)
    endings.serve(pair.owner, pair.reader)


@pytest.mark.parametrize("kind", KINDS)
def test_the_owner_is_killed_in_the_middle(spawn, transport, kind):
    owner, active = spawn(transport), spawn(transport, loses_peers=True)
    _, begun = endings.catch(owner, active, kind)
    owner.kill()
    active.resume()
    assert active.call(endings.ended, begun) == PEER_LOST
    assert active.call(endings.ended, begun) == PEER_LOST
    assert active.call(endings.wait_quiesced, begun)
    endings.serve(spawn(transport), active)


@pytest.mark.parametrize("kind", KINDS)
@again_where_ucx_aborts
def test_the_active_side_is_killed_in_the_middle(spawn, transport, kind):
    owner, active = spawn(transport, loses_peers=True), spawn(transport)
    number, _ = endings.catch(owner, active, kind)
    waiting = owner.start(endings.ended, number)
    active.kill()
    assert waiting.result() == PEER_LOST
    assert owner.call(endings.ended, number) == PEER_LOST
    assert owner.call(endings.wait_quiesced, number)
    endings.serve(owner, spawn(transport))


@pytest.mark.parametrize("kind", KINDS)
def test_async_with_waits_for_the_memory_of_an_active_operation(pair, kind):
    number, _, ended = middle.interrupt(pair.owner, pair.reader, kind, leave_block)
    assert ended == ("STOP", True)
    assert pair.owner.call(endings.ended, number) == CANCELLED_BY_PEER


@pytest.mark.parametrize("kind", KINDS)
def test_async_with_waits_for_the_memory_of_an_exposure(pair, kind):
    number, metadata = pair.owner.call(endings.expose, kind, 70_000)
    assert pair.owner.call(leave_block, number) == ("STOP", True)
    assert pair.reader.call(endings.attempt, metadata) == CANCELLED_BY_PEER


async def leave_block(here, number):
    entered, _ = here.kept[number]
    async with entered as operation:
        assert operation is entered
    return str(operation.status), operation.is_quiesced


def test_async_with_and_what_is_complete_or_was_never_told_of(pair):
    number, metadata = pair.owner.call(endings.expose, "read", 70_000, seed=1)
    assert pair.reader.call(read_in_a_block, metadata) == ("DONE", True)
    assert pair.owner.call(endings.ended, number) == endings.DONE
    assert pair.owner.call(leave_block, number) == ("DONE", True)
    assert pair.owner.call(raise_in_a_block) == (False, "STOP", True)


async def read_in_a_block(here, metadata):
    from dynamo_nixl import RdmaMetadata

    target = Descriptor(bytearray(70_000))
    async with await here.connector.begin_read(RdmaMetadata.model_validate(metadata), target) as operation:
        await operation.wait_for_completion()
    return str(operation.status), operation.is_quiesced


async def raise_in_a_block(here):
    """Nobody was given its metadata, so that there is nothing to wait for."""
    entered = await here.connector.create_readable(Descriptor(pattern(100)))
    before = entered.is_quiesced

    async def fail():
        async with entered:
            raise KeyError("of the block")

    with pytest.raises(KeyError, match="of the block"):
        await fail()
    return before, str(entered.status), entered.is_quiesced
