"""Metadata of exposures that have ended: it reads nothing that is another one's, and writes nowhere."""

from __future__ import annotations

import pytest
from dynamo_nixl import Connector, Descriptor, LeaseExpiredError, NixlConnectError, RdmaMetadata

from support import endings
from support.endings import CANCELLED_BY_PEER, DONE, STALE
from support.here import stats
from support.memory import blank, is_pattern, pattern

pytestmark = pytest.mark.nixl

SIZES = [1, 4096, 5 << 20]
BLOCK = 64 << 10
BLOCKS = 16


async def attempt_and_look(here, metadata):
    """Read, and return the end and whether any byte has come."""
    remote = RdmaMetadata.model_validate(metadata)
    array = blank(remote.descriptors[0].size)
    end = "none", "DONE"
    try:
        operation = await here.connector.begin_read(remote, Descriptor(array))
        await operation.wait_for_completion()
    except NixlConnectError as error:
        end = type(error).__name__, "ERR"
    return end, bool((array != 0xEE).any())


@pytest.mark.parametrize("size", SIZES)
def test_what_has_been_read(pair, size):
    number, metadata = pair.owner.call(endings.expose, "read", size, seed=1)
    assert pair.reader.call(endings.attempt, metadata) == DONE
    assert pair.owner.call(endings.ended, number) == DONE
    for _ in range(2):
        assert pair.reader.call(attempt_and_look, metadata) == (STALE, False)
    assert pair.owner.call(endings.ended, number) == DONE


@pytest.mark.parametrize("size", SIZES)
def test_what_has_been_written(pair, size):
    number, metadata = pair.owner.call(endings.expose, "write", size)
    assert pair.reader.call(endings.attempt, metadata, seed=1) == DONE
    assert pair.owner.call(endings.ended, number) == DONE
    assert pair.reader.call(endings.attempt, metadata, seed=2) == STALE
    assert pair.owner.call(holds, number, 1)


async def holds(here, number, seed):
    return is_pattern(here.kept[number][1][0], seed)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("end", ["complete", "cancelled"])
def test_memory_that_is_exposed_again_with_other_contents(pair, end, size):
    """Old metadata has the same address and, mostly, the same key."""
    number, old = pair.owner.call(endings.expose, "read", size, seed=1)
    if end == "complete":
        assert pair.reader.call(endings.attempt, old) == DONE
        assert pair.owner.call(endings.ended, number) == DONE
    again, new = pair.owner.call(expose_again, number, 2)
    # What its word says, or that it serves another one by now.
    told = (STALE,) if end == "complete" else (STALE, ("CancelledByPeerError", "ERR"))
    for _ in range(3):
        found, has_changed = pair.reader.call(attempt_and_look, old)
        assert found in told
        assert not has_changed
    assert pair.owner.call(endings.status, again) == "INIT"
    assert pair.reader.call(read, new, 2)
    assert pair.owner.call(endings.ended, again) == DONE
    found, has_changed = pair.reader.call(attempt_and_look, old)
    assert found in told
    assert not has_changed


@pytest.mark.parametrize("size", SIZES)
def test_memory_that_is_exposed_for_writing_again(pair, size):
    number, old = pair.owner.call(endings.expose, "write", size)
    pair.owner.call(endings.cancel, number)
    again, new = pair.owner.call(expose_again, number, 3, kind="write")
    assert pair.reader.call(endings.attempt, old, seed=2) in (STALE, CANCELLED_BY_PEER)
    assert pair.owner.call(holds, again, 3)
    assert pair.reader.call(endings.attempt, new, seed=4) == DONE
    assert pair.owner.call(endings.ended, again) == DONE
    assert pair.reader.call(endings.attempt, old, seed=2) in (STALE, CANCELLED_BY_PEER)
    assert pair.owner.call(holds, again, 4)


async def expose_again(here, number, seed, kind="read"):
    """End a kept operation, and expose its memory again with other contents."""
    operation, (array,) = here.kept.pop(number)
    operation.cancel()
    del operation
    array[:] = pattern(array.size, seed)
    create = here.connector.create_readable if kind == "read" else here.connector.create_writable
    operation = await create(Descriptor(array))
    return here.keep((operation, [array])), operation.metadata().model_dump()


async def read(here, metadata, seed):
    remote = RdmaMetadata.model_validate(metadata)
    array = blank(remote.descriptors[0].size)
    operation = await here.connector.begin_read(remote, Descriptor(array))
    await operation.wait_for_completion()
    return is_pattern(array, seed)


@pytest.mark.parametrize("is_registered", [False, True], ids=["each-anew", "pool"])
def test_blocks_of_a_pool(pair, is_registered):
    """They are exposed over and over, and somebody comes with the metadata of each turn again."""
    pool = pair.owner.call(make_pool, is_registered=is_registered)
    old = []
    for turn in range(4):
        exposed = pair.owner.call(expose_blocks, pool, turn)
        ends = pair.reader.call(read_all, exposed, turn)
        assert ends == ["DONE"] * BLOCKS
        old += exposed
        current = pair.owner.call(expose_blocks, pool, 100 + turn)
        # Neither does it touch those that are open by now.
        assert set(pair.reader.call(read_all, old, None)) == {"StaleMetadataError"}
        assert pair.reader.call(read_all, current, 100 + turn) == ["DONE"] * BLOCKS
        old += current
    pair.owner.call(close_pool, pool)


async def make_pool(here, *, is_registered):
    connector = Connector()
    memory = blank(BLOCKS * BLOCK)
    whole = Descriptor(memory)
    if is_registered:
        await connector.warmup()
        whole.register_with_connector(connector._shared_connection)
    return here.keep((connector, memory, whole, []))


async def expose_blocks(here, pool, turn):
    """Forget what was exposed before, all of which is complete, and expose every block with new contents."""
    connector, memory, _, operations = here.kept[pool]
    for operation in operations:
        await operation.wait_for_completion()
    operations.clear()
    exposed = []
    for block in range(BLOCKS):
        part = memory[block * BLOCK : (block + 1) * BLOCK]
        part[:] = pattern(BLOCK, turn * BLOCKS + block)
        operations.append(await connector.create_readable(Descriptor(part)))
        exposed.append(operations[-1].metadata().model_dump())
    return exposed


async def read_all(here, exposed, turn):
    """Read one after the other. Returns what each has ended with; nothing wrong may ever count as read."""
    ends = []
    for block, metadata in enumerate(exposed):
        array = blank(BLOCK)
        try:
            operation = await here.connector.begin_read(RdmaMetadata.model_validate(metadata), Descriptor(array))
            await operation.wait_for_completion()
        except NixlConnectError as error:
            ends.append(type(error).__name__)
            assert not (array != 0xEE).any()
        else:
            ends.append(str(operation.status))
            assert turn is not None
            assert is_pattern(array, turn * BLOCKS + block)
    return ends


async def close_pool(here, pool):
    connector, _, _, operations = here.kept.pop(pool)
    operations.clear()
    await connector.aclose()
    assert not stats(connector).get("transfers")


@pytest.mark.parametrize("how", ["cancelled", "expired"])
def test_metadata_that_was_not_asked_for_in_time(pair, how):
    """There is none: nobody could do anything with it."""
    assert pair.owner.call(ask_too_late, how) == ("NixlConnectError" if how == "cancelled" else "LeaseExpiredError")


async def ask_too_late(here, how):
    operation = await here.connector.create_readable(Descriptor(blank(1000)), lease=0 if how == "expired" else 60)
    if how == "cancelled":
        operation.cancel()
    else:
        with pytest.raises(LeaseExpiredError):
            await operation.wait_for_completion()
    with pytest.raises(NixlConnectError) as refused:
        operation.metadata()
    return type(refused.value).__name__
