"""Transfers that share a connection with one that breaks it."""

from __future__ import annotations

import ctypes
import mmap

import numpy as np
import pytest
from dynamo_nixl import Descriptor, TransferError

from support import endings, middle, roles
from support.here import eventually
from support.memory import is_pattern, pattern

pytestmark = pytest.mark.nixl

MIB = 1 << 20
PROT_NONE = 0


@pytest.mark.parametrize("size", [256 * MIB, 700 * MIB])
def test_a_bad_address_fails_alone(spawn, size):
    """Over shared memory it disconnects a living peer. What else is under way waits for a new one and goes on."""
    owner, reader = spawn(), spawn(loses_peers=True)
    big, metadata = owner.call(expose_zeros, size)
    bad, unmapped = owner.call(expose_a_hole)
    begun = reader.call(begin_and_break, metadata, unmapped)
    assert owner.call(roles.fail_to_wait, bad) == ("TransferError", "ERR")
    assert reader.call(roles.wait, begun) == "DONE"
    assert owner.call(roles.wait, big) == "DONE"
    assert reader.call(is_zeros, begun)
    number, metadata = owner.call(roles.expose_readable, [100_000], seed=2)
    assert reader.call(roles.read, metadata, seed=2) == ("DONE", True)
    assert owner.call(roles.wait, number) == "DONE"


def test_a_bad_source_fails_alone(spawn):
    """A fault of our own, beside a write."""
    owner, active = spawn(loses_peers=True), spawn(loses_peers=True)
    for _ in range(10):
        big, writable = owner.call(endings.expose, "write", 128 * MIB, seed=3)
        bad, other = owner.call(endings.expose, "write", MIB)
        begun, was_under_way = active.call(middle.break_by_a_write, writable, other, seed=3)
        assert owner.call(roles.fail_to_wait, bad) == ("TransferError", "ERR")
        assert active.call(endings.ended, begun) == owner.call(endings.ended, big) == endings.DONE
        assert owner.call(roles.dispose, big, seed=3)
        if was_under_way:
            break
        # It was too fast for us.
    else:
        raise AssertionError("no transfer could be caught in the middle")
    endings.serve(owner, active)


def test_a_list_with_a_hole_is_not_complete(spawn):
    """Where the kernel copies, NIXL says of a request of several ranges what has become of the last of them only.

    That the connection is broken is found by the next request, which may be that of another transfer.
    """
    owner, reader = spawn(loses_peers=True), spawn(loses_peers=True)
    for _ in range(10):
        _, big = owner.call(endings.expose, "read", 256 * MIB)
        _, metadata = owner.call(expose_with_a_hole)
        assert reader.call(read_beside, big, metadata) == ("TransferError", "ERR")


async def expose_with_a_hole(here):
    """Twenty ranges, of which nobody can read the second."""
    arrays = [pattern(MIB, index) if index != 1 else middle.unreadable(MIB) for index in range(20)]
    operation = await here.connector.create_readable([Descriptor(each) for each in arrays])
    return here.keep((operation, arrays)), operation.metadata().model_dump()


async def read_beside(here, big, metadata):
    """Read while another read is under way, and return how that ends."""
    await middle.begin_in_the_middle(here, big)
    number = await roles.begin_read(here, metadata)
    operation, arrays = here.kept[number]
    try:
        await operation.wait_for_completion()
    except TransferError as error:
        return type(error).__name__, str(operation.status)
    return str(operation.status), [index for index, array in enumerate(arrays) if not is_pattern(array, index)]


async def expose_zeros(here, size):
    array = np.zeros(size, dtype=np.uint8)
    operation = await here.connector.create_readable(Descriptor(array))
    return here.keep((operation, [array])), operation.metadata().model_dump()


async def expose_a_hole(here):
    """Expose pages that nobody can read any more, which is a fault of the owner's."""
    pages = mmap.mmap(-1, MIB)
    operation = await here.connector.create_readable(Descriptor(memoryview(pages)))
    address = operation.metadata().descriptors[0].ptr
    assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(address), ctypes.c_size_t(MIB), PROT_NONE) == 0
    return here.keep((operation, [pages])), operation.metadata().model_dump()


async def begin_and_break(here, metadata, unmapped):
    begun = await roles.begin_read(here, metadata)
    operation, _ = here.kept[begun]
    await eventually(lambda: operation.bytes_done > 0)
    broken = await roles.begin_read(here, unmapped)
    assert await roles.fail_to_wait(here, broken) == ("TransferError", "ERR")
    return begun


async def is_zeros(here, number):
    _, (array,) = here.kept[number]
    return not array.any()
