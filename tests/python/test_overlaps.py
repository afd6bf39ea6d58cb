"""Ranges that overlap: a whole buffer and parts of it, at the same time or one after the other.

NIXL looks only at the neighbours when it searches a registration, so that it misses one behind an overlapping other.
"""

from __future__ import annotations

import pytest
from dynamo_nixl import Descriptor, RdmaMetadata

from support import roles
from support.memory import blank, is_pattern, pattern

pytestmark = pytest.mark.nixl

SIZE = 16 << 20
PART = slice(1 << 20, 2 << 20)


@pytest.mark.parametrize("order", [["part", "whole"], ["whole", "part"], ["part", "whole", "part"]])
@pytest.mark.parametrize("at_once", [True, False], ids=["at_once", "one_by_one"])
def test_an_owner_exposes_a_part_and_the_whole(pair, order, at_once):
    pair.owner.call(make_buffer)
    exposed = []
    for which in order:
        number, metadata = pair.owner.call(expose, which)
        exposed.append((number, metadata, which))
        if not at_once:
            assert pair.reader.call(read_and_compare, metadata, which)
            pair.owner.call(roles.dispose, number)
    if at_once:
        for number, metadata, which in exposed:
            assert pair.reader.call(read_and_compare, metadata, which)
            assert pair.owner.call(roles.wait, number) == "DONE"


@pytest.mark.parametrize("whole_first", [True, False])
def test_a_reader_has_a_part_of_its_destination_exposed(pair, whole_first):
    number, metadata = pair.owner.call(roles.expose_readable, [SIZE])
    assert pair.reader.call(read_beside_an_exposure, metadata, whole_first) == ("DONE", True)
    assert pair.owner.call(roles.wait, number) == "DONE"


def test_a_list_with_overlapping_ranges(pair):
    pair.owner.call(make_buffer)
    number, metadata = pair.owner.call(expose_both)
    assert pair.reader.call(read_both, metadata)
    assert pair.owner.call(roles.wait, number) == "DONE"


def test_memory_that_is_freed_and_used_again(pair):
    """Allocations of many sizes at whatever addresses the allocator reuses."""
    sizes = [(1 << 20) * (1 + (7 * turn) % 11) + 4096 * turn for turn in range(40)]
    for turn, size in enumerate(sizes):
        number, metadata = pair.owner.call(roles.expose_readable, [size], seed=turn)
        assert pair.reader.call(roles.read, metadata, seed=turn) == ("DONE", True)
        assert pair.owner.call(roles.wait, number) == "DONE"
        pair.owner.call(roles.dispose, number)


async def make_buffer(here):
    here.buffer = pattern(SIZE)


def describe(buffer, which):
    part = buffer[PART] if which == "part" else buffer
    return Descriptor((part.ctypes.data, part.nbytes, "cpu", part))


async def expose(here, which):
    operation = await here.connector.create_readable(describe(here.buffer, which))
    return here.keep((operation, [])), operation.metadata().model_dump()


async def read_and_compare(here, metadata, which):
    remote = RdmaMetadata.model_validate(metadata)
    array = blank(remote.descriptors[0].size)
    with await here.connector.begin_read(remote, Descriptor(array)) as operation:
        await operation.wait_for_completion()
    expected = pattern(SIZE)
    return bool((array == (expected[PART] if which == "part" else expected)).all())


async def expose_both(here):
    operation = await here.connector.create_readable([describe(here.buffer, which) for which in ("part", "whole")])
    return here.keep((operation, [])), operation.metadata().model_dump()


async def read_both(here, metadata):
    part, whole = blank(PART.stop - PART.start), blank(SIZE)
    remote = RdmaMetadata.model_validate(metadata)
    with await here.connector.begin_read(remote, [Descriptor(part), Descriptor(whole)]) as operation:
        await operation.wait_for_completion()
    return is_pattern(whole) and bool((part == whole[PART]).all())


async def read_beside_an_exposure(here, metadata, whole_first):
    array = blank(SIZE)
    if whole_first:
        operation = await here.connector.begin_read(RdmaMetadata.model_validate(metadata), Descriptor(array))
        exposed = await here.connector.create_readable(describe(array, "part"))
    else:
        exposed = await here.connector.create_readable(describe(array, "part"))
        operation = await here.connector.begin_read(RdmaMetadata.model_validate(metadata), Descriptor(array))
    with operation, exposed:
        await operation.wait_for_completion()
        return str(operation.status), is_pattern(array)
