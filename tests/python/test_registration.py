"""Memory that is registered once, by its owner, for many operations."""

from __future__ import annotations

import numpy as np
import pytest
from dynamo_nixl import Connector, Descriptor, RdmaMetadata

from support import foreign, roles
from support.here import settle, stats
from support.memory import blank, is_pattern, pattern

pytestmark = pytest.mark.nixl


def test_life_of_a_registration(pair):
    pair.owner.call(register_and_deregister)


def test_operations_leave_it_alone(pair):
    for _ in range(3):
        number, metadata = pair.owner.call(roles.expose_readable, [5000], seed=1)
        assert pair.reader.call(read_into_a_pool, metadata, seed=1) == (True, 1)
        assert pair.owner.call(roles.wait, number) == "DONE"


@pytest.mark.interop
def test_the_beginning_of_a_pooled_buffer_is_exposed_under_one_key(pair):
    """Peers see one region with one key, whatever part of it is exposed: what is loaded there stays loaded."""
    pair.owner.call(make_pool, 1 << 20)
    keys = set()
    for size in (100, 5000, 1 << 20):
        number, metadata = pair.owner.call(expose_pooled, size)
        assert metadata["descriptors"][0]["size"] == size
        keys.add(foreign.decode(metadata["nixl_metadata"]))
        assert pair.reader.call(roles.read, metadata) == ("DONE", True)
        assert pair.owner.call(roles.wait, number) == "DONE"
    assert len(keys) == 1
    assert pair.owner.call(registrations) == 1
    pair.owner.call(drop_pool)


def test_many_parts_of_one_registration_in_one_transfer(pair):
    """Neither side registers anything for the parts, in whatever order they are named."""
    order = [7, 3, 3, 12, 0, 15, 1]
    pair.owner.call(make_pool, 16 << 10)
    number, metadata = pair.owner.call(expose_blocks, 1 << 10, order)
    assert pair.owner.call(registrations) == 1
    assert pair.reader.call(read_blocks, metadata, 16 << 10, order[::-1]) == (True, 1)
    assert pair.owner.call(roles.wait, number) == "DONE"
    pair.owner.call(drop_pool)


def test_a_descriptor_belongs_to_one_connection(pair):
    pair.owner.call(use_elsewhere)


def test_a_descriptor_that_goes_takes_its_registration_along(pair):
    pair.owner.call(forget_registered)


async def register_and_deregister(here):
    connector = here.connector
    connection = await connector._create_connection()
    descriptor = Descriptor(pattern(4096))
    assert not descriptor.is_registered
    with pytest.raises(RuntimeError, match="not registered"):
        descriptor.deregister_with_connector(connection)
    descriptor.register_with_connector(connection)
    descriptor.register_with_connector(connection)
    assert descriptor.is_registered
    assert stats(connector)["regions"] == 1
    descriptor.deregister_with_connector(connection)
    assert not descriptor.is_registered
    assert stats(connector)["regions"] == 0
    descriptor.register_memory(connector)
    assert stats(connector)["regions"] == 1
    for wrong in (None, connector, "connection"):
        with pytest.raises(TypeError):
            descriptor.register_with_connector(wrong)
        with pytest.raises(TypeError):
            descriptor.deregister_with_connector(wrong)
    with pytest.raises(TypeError):
        descriptor.register_memory(connection)
    with pytest.raises(ValueError, match="address"):
        Descriptor((0, 16)).register_with_connector(connection)


async def read_into_a_pool(here, metadata, seed):
    """Workers keep big registered buffers, and say by `_data_size` how much of one they use."""
    connector = here.connector
    connection = await connector._create_connection()
    buffer = blank(1 << 20)
    descriptor = Descriptor(buffer)
    descriptor.register_with_connector(connection)
    remote = RdmaMetadata.model_validate(metadata)
    descriptor._data_size = remote.descriptors[0].size
    operation = await connector.begin_read(remote, descriptor)
    await operation.wait_for_completion()
    regions = stats(connector)["regions"]
    descriptor._data_size = buffer.nbytes
    arrived = is_pattern(buffer[: remote.descriptors[0].size], seed) and bool(np.all(buffer[5000:] == blank(1)))
    operation.__exit__(None, None, None)
    assert descriptor.is_registered
    descriptor.deregister_with_connector(connection)
    await settle(connector)
    return arrived, regions


async def make_pool(here, size):
    here.pool = Descriptor(pattern(size))
    here.pool.register_with_connector(await here.connector._create_connection())


async def drop_pool(here):
    del here.pool
    while here.kept:
        here.kept.popitem()[1][0].__exit__(None, None, None)
    await settle(here.connector)


async def expose_pooled(here, size):
    here.pool._data_size = size
    operation = await here.connector.create_readable(here.pool)
    return here.keep((operation, [])), operation.metadata().model_dump()


async def registrations(here):
    return stats(here.connector)["regions"]


async def expose_blocks(here, size, order):
    blocks = [Descriptor((here.pool.ptr + block * size, size, "cpu", here.pool)) for block in order]
    operation = await here.connector.create_readable(blocks)
    return here.keep((operation, [])), operation.metadata().model_dump()


async def read_blocks(here, metadata, total, order):
    connector = here.connector
    buffer = blank(total)
    pool = Descriptor(buffer)
    pool.register_memory(connector)
    remote = RdmaMetadata.model_validate(metadata)
    size = remote.descriptors[0].size
    blocks = [Descriptor((pool.ptr + block * size, size, "cpu", buffer)) for block in order]
    with await connector.begin_read(remote, blocks) as operation:
        await operation.wait_for_completion()
        regions = stats(connector)["regions"]
    expected = pattern(total).reshape(-1, size)
    wanted = blank(total).reshape(-1, size)
    # As the peer exposed them, in its order.
    for source, target in zip(order[::-1], order, strict=True):
        wanted[target] = expected[source]
    del pool
    await settle(connector)
    return bool(np.array_equal(buffer.reshape(-1, size), wanted)), regions


async def use_elsewhere(here):
    other = Connector()
    descriptor = Descriptor(bytearray(4096))
    descriptor.register_with_connector(await here.connector._create_connection())
    with pytest.raises(RuntimeError, match="another connection"):
        await other.create_readable(descriptor)
    with pytest.raises(RuntimeError, match="another connection"):
        descriptor.register_memory(other)
    with pytest.raises(RuntimeError, match="another connection"):
        descriptor.deregister_with_connector(await other._create_connection())
    assert stats(other)["regions"] == 0
    await other.aclose()


async def forget_registered(here):
    connection = await here.connector._create_connection()
    descriptor = Descriptor(bytearray(4096))
    descriptor.register_with_connector(connection)
    operation = await here.connector.create_readable(descriptor)
    del descriptor
    assert stats(here.connector)["regions"] == 1  # the operation's own hold
    operation.cancel()
    del operation
    await settle(here.connector)
