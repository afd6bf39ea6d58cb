"""The four operations, bit for bit, between two processes."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest
from dynamo_nixl import Descriptor, RdmaMetadata

from support import roles
from support.memory import is_pattern, pattern

pytestmark = pytest.mark.nixl

KIB, MIB = 1 << 10, 1 << 20
SIZES = [1, 4 * KIB, 64 * KIB + 3, MIB, 16 * MIB + 1, 256 * MIB]
LISTS = [[5, 4 * KIB, 64 * KIB + 3], [MIB + 1] * 9, [0, 7, 0], [1] * 1500]


@pytest.mark.parametrize("sizes", [[size] for size in SIZES] + LISTS, ids=lambda sizes: f"{len(sizes)}x{max(sizes)}")
def test_read(pair, sizes):
    number, metadata = pair.owner.call(roles.expose_readable, sizes, seed=3)
    assert metadata["operation_kind"] == 1
    assert pair.reader.call(roles.read, metadata, seed=3) == ("DONE", True)
    assert pair.owner.call(roles.wait, number) == "DONE"
    assert pair.owner.call(roles.dispose, number, seed=3)


@pytest.mark.parametrize("sizes", [[size] for size in SIZES] + LISTS, ids=lambda sizes: f"{len(sizes)}x{max(sizes)}")
def test_write(pair, sizes):
    number, metadata = pair.owner.call(roles.expose_writable, sizes)
    assert metadata["operation_kind"] == 2
    assert pair.reader.call(roles.write, metadata, seed=5) == "DONE"
    assert pair.owner.call(roles.wait, number) == "DONE"
    assert pair.owner.call(roles.dispose, number, seed=5)


def test_no_bytes_still_complete_both_sides(pair):
    number, metadata = pair.owner.call(expose_nothing)
    assert pair.reader.call(roles.read, metadata) == ("DONE", True)
    assert pair.owner.call(roles.wait, number) == "DONE"
    assert pair.owner.call(roles.dispose, number)


@pytest.mark.parametrize("kind", ["bytes", "bytearray", "memoryview", "array", "address"])
def test_sources(pair, kind):
    number, metadata = pair.owner.call(expose_source, kind)
    assert pair.reader.call(roles.read, metadata, seed=7) == ("DONE", True)
    assert pair.owner.call(roles.wait, number) == "DONE"
    assert pair.owner.call(roles.dispose, number, seed=7)


@pytest.mark.parametrize("kind", ["bytearray", "memoryview", "array", "address"])
def test_destinations(pair, kind):
    number, metadata = pair.owner.call(roles.expose_readable, [5000], seed=7)
    assert pair.reader.call(read_into, metadata, kind)
    assert pair.owner.call(roles.wait, number) == "DONE"
    assert pair.owner.call(roles.dispose, number, seed=7)


def test_a_part_of_a_buffer(pair):
    """Addresses inside of an exposed array: neighbours stay as they are."""
    number, metadata = pair.owner.call(expose_slices)
    assert pair.reader.call(roles.write, metadata, seed=1) == "DONE"
    assert pair.owner.call(roles.wait, number) == "DONE"
    assert pair.owner.call(check_slices, number)


def test_results_and_representation(pair):
    number, metadata = pair.owner.call(roles.expose_readable, [64, 65])
    assert pair.reader.call(check_results, metadata)
    assert pair.owner.call(roles.wait, number) == "DONE"
    assert pair.owner.call(roles.dispose, number)


def test_both_sides_in_turn(pair):
    """A worker is owner and reader at the same time, of the same peer."""
    for first, second in [(pair.owner, pair.reader), (pair.reader, pair.owner)] * 2:
        number, metadata = first.call(roles.expose_readable, [70_000])
        assert second.call(roles.read, metadata) == ("DONE", True)
        assert first.call(roles.wait, number) == "DONE"
        assert first.call(roles.dispose, number)


def test_the_wait_of_old(pair):
    """What upstream's subclasses call, with what its polling takes."""
    number, metadata = pair.owner.call(roles.expose_readable, [5000], seed=7)
    assert pair.reader.call(read_and_wait_as_of_old, metadata)
    assert pair.owner.call(wait_as_of_old, number) == "DONE"


async def wait_as_of_old(here, number):
    operation, _ = here.kept[number]
    await operation._wait_for_completion_(min_poll_ms=1, max_poll_ms=2, backoff_factor=3.0)
    return str(operation.status)


async def read_and_wait_as_of_old(here, metadata):
    target = bytearray(5000)
    operation = await here.connector.begin_read(RdmaMetadata.model_validate(metadata), Descriptor(target))
    await operation._wait_for_completion_(5, 100, 1.5)
    return is_pattern(target, 7)


async def expose_nothing(here):
    array = np.zeros(1, dtype=np.uint8)
    operation = await here.connector.create_readable(Descriptor((array.ctypes.data, 0, "cpu", array)))
    return here.keep((operation, [])), operation.metadata().model_dump()


async def expose_source(here, kind):
    data = pattern(5000, 7)
    source = {
        "bytes": data.tobytes,
        "bytearray": lambda: bytearray(data),
        "memoryview": lambda: memoryview(data),
        "array": lambda: (data, "cpu"),
        "address": lambda: (data.ctypes.data, data.nbytes),
    }[kind]()
    operation = await here.connector.create_readable(Descriptor(source))
    return here.keep((operation, [data])), operation.metadata().model_dump()


async def read_into(here, metadata, kind):
    if kind == "bytearray":
        memory = bytearray(5000)
        descriptor = Descriptor(memory)
    elif kind == "memoryview":
        memory = bytearray(5000)
        descriptor = Descriptor(memoryview(memory))
    elif kind == "array":
        memory = np.zeros((50, 100), dtype=np.uint8)
        descriptor = Descriptor((memory, "cpu"))
    else:
        memory = ctypes.create_string_buffer(5000)
        descriptor = Descriptor((ctypes.addressof(memory), 5000, "cpu", memory))
    with await here.connector.begin_read(RdmaMetadata.model_validate(metadata), descriptor) as operation:
        await operation.wait_for_completion()
    return is_pattern(memory, 7)


async def expose_slices(here):
    array = np.zeros(300, dtype=np.uint8)
    parts = [Descriptor((array.ctypes.data + start, 50, "cpu", array)) for start in (50, 200)]
    operation = await here.connector.create_writable(parts)
    return here.keep((operation, array)), operation.metadata().model_dump()


async def check_slices(here, number):
    operation, array = here.kept.pop(number)
    with operation:
        written = is_pattern(array[50:100], 1) and is_pattern(array[200:250], 2)
        return written and not (array[:50].any() or array[100:200].any() or array[250:].any())


async def check_results(here, metadata):
    remote = RdmaMetadata.model_validate(metadata)
    locals_ = [Descriptor(bytearray(64)), Descriptor(bytearray(65))]
    operation = await here.connector.begin_read(remote, locals_)
    await operation.wait_for_completion()
    assert repr(operation).startswith("ReadOperation(operation_kind=READ, local_descriptors=[Descriptor(ptr=0x")
    assert f"notification_key='{remote.notification_key}'" in repr(operation)
    assert repr(operation).endswith("status='DONE')")
    results = operation.results()
    operation.__exit__(None, None, None)
    operation.__exit__(None, None, None)
    return [id(result) for result in results] == [id(each) for each in locals_] and operation.results() == results
