"""How operations end otherwise than well, as docs/protocol.md has it: what each side is told, and what is left."""

from __future__ import annotations

import pytest
from dynamo_nixl import Descriptor, RdmaMetadata, TransferError

from support import endings, middle, roles
from support.endings import CANCELLED_BY_PEER, DONE, FAILED, KINDS, LEASE_EXPIRED, STALE
from support.memory import pattern

pytestmark = pytest.mark.nixl

LARGE = 64 << 20
"""Bytes that the heap gets from the system, and gives back to it: they are not mapped any more when they are freed."""


TOLD = {"complete": STALE, "cancelled": CANCELLED_BY_PEER, "expired": LEASE_EXPIRED}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("end", TOLD)
def test_late_peers_of_memory_that_was_freed(spawn, transport, kind, end):
    """They are refused, and its owner lives on: over TCP an access to what is not mapped ends the owner's process."""
    owner, active = spawn(transport), spawn(transport, loses_peers=True)
    endings.serve(owner, active)
    number, metadata = owner.call(endings.expose, kind, LARGE, lease=0.2 if end == "expired" else None)
    if end == "complete":
        assert active.call(endings.attempt, metadata) == DONE
        assert owner.call(endings.ended, number) == DONE
    elif end == "cancelled":
        owner.call(endings.cancel, number)
    else:
        assert owner.call(endings.ended, number) == LEASE_EXPIRED
    owner.call(endings.wait_quiesced, number)
    owner.call(endings.drop, number)
    owner.call(roles.settled)
    assert active.call(endings.attempt, metadata) == TOLD[end]
    assert owner.call(endings.is_well)
    endings.serve(owner, active)


def test_a_second_writer_under_way_when_the_first_has_completed(spawn, transport):
    """Its bytes do not land in memory that is said to be quiesced."""
    owner = spawn(transport | {"DYNAMO_NIXL_GRACE": "30"})
    slow, quick = spawn(transport), spawn(transport)
    endings.serve(owner, quick)
    number, begun = endings.catch(owner, slow, "write")
    metadata = owner.call(metadata_of, number)
    assert quick.call(endings.attempt, metadata) == DONE
    assert owner.call(endings.ended, number) == DONE
    waiting = owner.start(put_canary_when_quiesced, number)
    slow.resume()
    waiting.result()
    # Whether it hears of the end or finds out for itself.
    assert slow.call(endings.ended, begun) in (STALE, FAILED)
    slow.call(endings.wait_quiesced, begun)
    assert owner.call(has_canary, number)


def test_memory_that_is_never_known_to_be_quiet(spawn):
    """Of a request of several ranges that fails NIXL says that it has, and nothing of what becomes of the others."""
    owner, active = spawn(loses_peers=True), spawn(loses_peers=True)
    endings.serve(owner, active)
    number, metadata = owner.call(roles.expose_writable, [LISTED, LISTED])
    assert active.call(fail_to_write_a_list, metadata) == ("TransferError", "ERR")
    assert owner.call(endings.ended, number) == FAILED
    assert active.call(roles.counters)["unquiet_regions"] == 2
    # Others do not mind.
    endings.serve(owner, active)
    assert active.call(roles.counters)["unquiet_regions"] == 2


LISTED = 1 << 20


async def fail_to_write_a_list(here, metadata):
    """Write what cannot be read. Returns what the wait for quiet raises, and the status."""
    # The last, see `test_siblings.test_a_list_with_a_hole_is_not_complete`.
    local = [Descriptor(each) for each in (pattern(LISTED), middle.unreadable(LISTED))]
    operation = await here.connector.begin_write(local, RdmaMetadata.model_validate(metadata))
    with pytest.raises(TransferError):
        await operation.wait_for_completion()
    with pytest.raises(TransferError, match="wait for quiet") as caught:
        await operation.wait_quiesced()
    assert not operation.is_quiesced
    return type(caught.value).__name__, str(operation.status)


async def metadata_of(here, number):
    return here.kept[number][0].metadata().model_dump()


async def put_canary_when_quiesced(here, number):
    operation, (array,) = here.kept[number]
    await operation.wait_quiesced()
    array[:] = 0x5A


async def has_canary(here, number):
    _, (array,) = here.kept[number]
    return bool((array == 0x5A).all())
