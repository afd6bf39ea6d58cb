"""Transfers that share a connection with one that breaks it."""

from __future__ import annotations

import ctypes
import mmap

import numpy as np
import pytest
from dynamo_nixl import Descriptor

from support import roles
from support.here import eventually

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
