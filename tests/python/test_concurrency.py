"""Many operations at the same time, in both directions."""

from __future__ import annotations

import asyncio
import os

import pytest
from dynamo_nixl import Descriptor, RdmaMetadata

from support import roles
from support.memory import blank, is_pattern, pattern

pytestmark = pytest.mark.nixl

COUNT = 1000


def sizes():
    """Mostly small, some beyond what moves in one piece, in no order."""
    return [(10 << 20) + index if index % 250 == 17 else 1 + (index * 7919) % 20_000 for index in range(COUNT)]


def test_a_thousand_operations_at_once(pair):
    matched = pair.owner.call(roles.counters).get("notifications_matched", 0)
    exposed = pair.owner.call(expose_alternately)
    waiting = pair.owner.start(wait_for_all)
    assert pair.reader.call(move_all, exposed) == {"DONE"}
    assert waiting.result() == {"DONE"}
    assert pair.owner.call(check_all_written)
    counters = pair.owner.call(roles.counters)
    assert counters["notifications_matched"] - matched == COUNT
    assert counters["notifications_unknown"] == 0
    # The fixture checks that registrations, transfers and exposures go back to zero.


def test_a_thousand_first_operations_open_one_connector(spawn):
    """However many ask for the agent at once, few threads make it."""
    peak = spawn().call(expose_all_at_once)
    assert peak < 20


async def expose_all_at_once(here):
    threads = []

    async def watch():
        while True:
            threads.append(len(os.listdir("/proc/self/task")))
            await asyncio.sleep(0)

    watching = asyncio.create_task(watch())
    buffers = [bytearray(64) for _ in range(COUNT)]
    operations = await asyncio.gather(*(here.connector.create_readable(Descriptor(each)) for each in buffers))
    watching.cancel()
    for operation in operations:
        operation.__exit__()
    return max(threads)


def test_both_sides_at_once(pair):
    """Each worker is owner and reader of the other, at the same time."""
    mine, theirs = pair.owner.call(expose_alternately), pair.reader.call(expose_alternately)
    calls = [
        pair.owner.start(wait_for_all),
        pair.reader.start(wait_for_all),
        pair.owner.start(move_all, theirs),
        pair.reader.start(move_all, mine),
    ]
    for call in calls:
        assert call.result() == {"DONE"}
    assert pair.owner.call(check_all_written)
    assert pair.reader.call(check_all_written)


async def expose_alternately(here):
    """Readables at even positions, writables at odd ones."""
    here.exposed = []
    for index, size in enumerate(sizes()):
        if index % 2 == 0:
            array = pattern(size, index)
            operation = await here.connector.create_readable(Descriptor(array))
        else:
            array = blank(size)
            operation = await here.connector.create_writable(Descriptor(array))
        here.exposed.append((operation, array))
    return [operation.metadata().model_dump() for operation, _ in here.exposed]


async def wait_for_all(here):
    await asyncio.gather(*(operation.wait_for_completion() for operation, _ in here.exposed))
    return {str(operation.status) for operation, _ in here.exposed}


async def check_all_written(here):
    exposed, here.exposed = here.exposed, []
    return all(is_pattern(array, index) for index, (_, array) in enumerate(exposed))


async def move_all(here, exposed):
    """All of them at once; returns the set of their statuses, where all that was read is right."""

    async def move(index, metadata):
        remote = RdmaMetadata.model_validate(metadata)
        size = remote.descriptors[0].size
        if index % 2 == 0:
            array = blank(size)
            operation = await here.connector.begin_read(remote, Descriptor(array))
        else:
            array = pattern(size, index)
            operation = await here.connector.begin_write(Descriptor(array), remote)
        await operation.wait_for_completion()
        assert is_pattern(array, index)
        return str(operation.status)

    return set(await asyncio.gather(*(move(index, metadata) for index, metadata in enumerate(exposed))))
