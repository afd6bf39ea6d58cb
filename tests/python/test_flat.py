"""A long life costs nothing that grows: operations that succeed, and others that are refused, on default transports."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from dynamo_nixl import Descriptor, MetadataError, RdmaMetadata

from support import roles
from support.held import grown, held_now, settled_and_held
from support.memory import blank, is_pattern, pattern

if TYPE_CHECKING:
    from support.held import Held

pytestmark = pytest.mark.nixl

BATCH = 200
WARM = 2_000
"""So many operations until pools, caches and the allocator have what they will ever need."""
REFUSALS = 8_000
GROWTH = 2 << 20
"""Bytes that a process may grow by after the warm-up: what the allocator takes for itself. It is 260 for each of ten
thousand operations, of which the metadata alone, if it were kept, is more; and as much for ten times as many."""


def check_flat(before: list[tuple[Held, int]], after: list[tuple[Held, int]]) -> None:
    for (held_before, resident_before), (held_after, resident_after) in zip(before, after, strict=True):
        assert not grown(held_before, held_after)
        assert held_after[2:] == held_before[2:]
        assert resident_after - resident_before < GROWTH


@pytest.fixture
def workers(spawn):
    """An owner and a reader."""
    made = [spawn(), spawn()]
    for worker in made:
        worker.call(wait_in_vain)
    return made


@pytest.mark.parametrize(
    "total",
    [
        pytest.param(10_000, marks=pytest.mark.timeout(280)),
        pytest.param(100_000, marks=[pytest.mark.long, pytest.mark.timeout(1700)]),
    ],
)
def test_many_operations(workers, total):
    """Files, threads and registrations are the same after them."""
    owner, reader = workers
    move(owner, reader, WARM)
    before = [settled_and_held(worker) for worker in workers]
    move(owner, reader, total - WARM)
    after = held_now(before, workers)
    check_flat(before, after)
    counters = owner.call(roles.counters)
    assert (counters["notifications_matched"], counters["notifications_unknown"]) == (total, 0)


@pytest.mark.timeout(280)
def test_thousands_of_refusals(workers):
    owner, reader = workers
    _, metadata = owner.call(roles.expose_readable, [4096], seed=1)
    fail(reader, metadata, REFUSALS // 5)
    move(owner, reader, BATCH)
    # From here on its owner exposes nothing under it any more, which the reader need not know.
    before = [settled_and_held(worker) for worker in workers]
    fail(reader, metadata, REFUSALS)
    move(owner, reader, BATCH)
    check_flat(before, held_now(before, workers))
    number, metadata = owner.call(roles.expose_readable, [4096], seed=1)
    assert reader.call(roles.read, metadata, seed=1) == ("DONE", True)
    assert owner.call(roles.wait, number) == "DONE"


def test_memory_that_the_heap_gives_out_again(spawn, transport):
    """Buffers of all sizes come and go at the same addresses, so what is exposed now overlaps what was exposed before.

    Loading a peer anew for that would leak some 50 KiB in UCX each time, or two open files over TCP.
    """
    owner, reader = spawn(transport), spawn(transport)
    for worker in (owner, reader):
        worker.call(wait_in_vain)
    before = None
    for number in range(3_000):
        exposed, metadata = owner.call(roles.expose_readable, [1 + number * 7919 % 9000, 64, 1 + number * 31 % 5000])
        assert reader.call(roles.read, metadata) == ("DONE", True)
        assert owner.call(roles.wait, exposed) == "DONE"
        assert owner.call(roles.dispose, exposed)
        if number == 1_000:
            before = [settled_and_held(worker) for worker in (owner, reader)]
    after = held_now(before, (owner, reader))
    assert before is not None
    check_flat(before, after)


def move(owner, reader, count):
    for batch in range(count // BATCH):
        exposed = owner.call(expose_batch, batch)
        assert reader.call(move_batch, exposed, batch) == BATCH
        assert owner.call(end_batch, batch) == BATCH


def fail(reader, metadata, count):
    for _ in range(count // BATCH):
        assert reader.call(fail_batch, metadata) == BATCH


def sizes(number):
    """One buffer or several, none of them big, in no order."""
    first = 1 + (number * 7919) % 9000
    return [first] if number % 4 < 2 else [first, 64, 1 + first // 2]


async def wait_in_vain(here):
    # A loop gets its eventfd when it first has to wait, which an owner whose peer is quick may not for a long time.
    operation = await here.connector.create_readable(Descriptor(blank(1)))
    with operation, pytest.raises(TimeoutError):
        await operation.wait_for_completion(timeout=0.01)


async def expose_batch(here, batch):
    """Readables at even positions, writables at odd ones, in buffers that are used again by each batch."""
    if not hasattr(here, "buffers"):
        here.buffers = [[blank(size) for size in sizes(number)] for number in range(BATCH)]
    here.exposed = []
    for number, arrays in enumerate(here.buffers):
        for index, array in enumerate(arrays):
            array[:] = pattern(array.size, batch + index) if number % 2 == 0 else blank(array.size)
        create = here.connector.create_readable if number % 2 == 0 else here.connector.create_writable
        here.exposed.append((await create(roles.descriptors(arrays)), arrays))
    return [operation.metadata().model_dump() for operation, _ in here.exposed]


async def move_batch(here, exposed, seed):
    """Carry out all of them, ten at a time. Returns how many were right."""
    right = 0
    for start in range(0, BATCH, 10):
        numbers = range(start, start + 10)
        right += sum(await asyncio.gather(*(move_one(here, number, exposed[number], seed) for number in numbers)))
    return right


async def move_one(here, number, metadata, seed):
    if number % 2 == 0:
        return await roles.read(here, metadata, seed=seed) == ("DONE", True)
    return await roles.write(here, metadata, seed=seed) == "DONE"


async def end_batch(here, seed):
    exposed, here.exposed = here.exposed, []
    right = 0
    for operation, arrays in exposed:
        with operation:
            await operation.wait_for_completion()
        # Both what was sent and what was written to.
        right += all(is_pattern(array, seed + index) for index, array in enumerate(arrays))
    return right


async def fail_batch(here, metadata):
    """Begin to read from what is refused, in all ways. Returns how often it was."""
    remote = RdmaMetadata.model_validate(metadata)
    (descriptor,) = remote.descriptors
    spoiled = [
        remote.model_copy(update={"nixl_metadata": "no encoding"}),
        remote.model_copy(update={"nixl_metadata": "b64:" + "A" * 400}),
        remote.model_copy(update={"nixl_metadata": remote.nixl_metadata[:-40]}),
        # Well formed, but it opens another range than the one that is asked for.
        remote.model_copy(update={"descriptors": [descriptor.model_copy(update={"ptr": descriptor.ptr + (1 << 30)})]}),
    ]
    refused = 0
    for number in range(BATCH):
        try:
            await here.connector.begin_read(spoiled[number % len(spoiled)], Descriptor(blank(4096)))
        except MetadataError:
            refused += 1
    return refused
