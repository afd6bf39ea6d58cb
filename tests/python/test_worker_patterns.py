"""How Dynamo's workers send and fetch: the senders, loaders and servers. Pools are in test_worker_pools.py.

The code is ours, the order of calls is theirs: no `with` where they have none, nothing awaited that they do not await.
"""

from __future__ import annotations

import asyncio
import gc
import os
import uuid
import weakref

import dynamo_nixl
import pytest
from dynamo_nixl import (
    Connection,
    Connector,
    Descriptor,
    OperationKind,
    RdmaMetadata,
    ReadableOperation,
    ReadOperation,
    Remote,
    SerializedDescriptor,
    WritableOperation,
    WriteOperation,
)
from pydantic import BaseModel

from support import roles
from support.here import eventually, settle, stats
from support.memory import blank, is_pattern, pattern

pytestmark = pytest.mark.nixl

SIZE = 70_000


def test_a_sender_returns_only_the_wait(pair):
    """The coroutine, not awaited yet, is all that keeps operation and buffer; another task awaits it much later."""
    requests = [pair.owner.call(send_embedding, seed) for seed in range(5)]
    waiting = pair.owner.start(await_what_senders_returned)
    for seed, request in reversed(list(enumerate(requests))):
        assert pair.reader.call(roles.read, request, seed=seed) == ("DONE", True)
    waiting.result()
    pair.owner.call(every_buffer_is_gone)


def test_a_loader_builds_the_metadata_itself(pair):
    """A frontend exposes decoded media once; each reader invents a key, of which nobody there ever hears."""
    number, metadata = pair.owner.call(roles.expose_readable, [SIZE], seed=4)
    unknown = pair.owner.call(roles.counters)["notifications_unknown"]
    for turn in range(3):
        assert pair.reader.call(load_media, metadata["descriptors"][0], metadata["nixl_metadata"])
        pair.owner.call(wait_for_unknown_notifications, unknown + turn + 1)
        assert pair.owner.call(roles.status, number) == "INIT"
    assert pair.owner.call(roles.dispose, number, seed=4)


def test_a_server_streams_from_within_the_block(pair):
    """An async generator yields the request inside of the `with`, and waits when it is asked for more."""
    for seed in range(3):
        request = pair.owner.call(start_stream, seed)
        assert pair.reader.call(read_as_a_server, request, seed)
        assert pair.owner.call(end_stream) == "DONE"


def test_a_stream_that_is_closed_early_ends_its_exposure(pair):
    pair.owner.call(start_stream, 0)
    assert pair.owner.call(close_stream) == {"exposures": 0, "regions": 0}


def test_a_worker_with_only_a_connector(spawn):
    """Most encode workers make one and never use it."""
    assert spawn().call(make_connectors) == (0, 0, None)


def test_requests_carry_metadata_as_fields(pair):
    """Readables are kept in a list for ever and never awaited; the field may also hold a plain text."""
    texts = pair.owner.call(send_requests, 12)
    assert pair.reader.call(serve_requests, texts) == [True] * 12
    pair.owner.call(all_sent_are_done, 12)


def test_a_persistent_connector(spawn, transport):
    """A subclass that makes its connection itself, while `Remote._release` does nothing any more."""
    owner, reader = spawn(transport), spawn(transport)
    for worker in (owner, reader):
        worker.call(become_persistent)
    for seed in range(5):
        number, metadata = owner.call(roles.expose_readable, [SIZE], seed=seed)
        assert reader.call(roles.read, metadata, seed=seed) == ("DONE", True)
        assert owner.call(roles.wait, number) == "DONE"
        owner.call(roles.dispose, number)
    number, metadata = owner.call(roles.expose_writable, [SIZE])
    assert reader.call(roles.write, metadata, seed=7) == "DONE"
    assert owner.call(roles.wait, number) == "DONE"
    assert owner.call(roles.dispose, number, seed=7)
    for worker in (owner, reader):
        assert worker.call(end_persistent) == {"regions": 0, "exposures": 0, "transfers": 0}


@pytest.mark.parametrize("sizes", [[SIZE], [5, SIZE, 0, 4096]], ids=["one", "list"])
def test_operations_by_their_constructors(pair, sizes):
    """The lists are always lists, also of one."""
    kept, metadata = pair.owner.call(construct_passive, "readable", sizes)
    assert pair.reader.call(construct_and_read, metadata)
    assert pair.owner.call(roles.wait, kept) == "DONE"
    kept, metadata = pair.owner.call(construct_passive, "writable", sizes)
    assert pair.reader.call(construct_and_write, metadata) == "DONE"
    assert pair.owner.call(roles.wait, kept) == "DONE"
    assert pair.owner.call(roles.dispose, kept, seed=2)


def test_a_connector_is_closed_if_it_can_be(spawn, transport):
    owner, reader = spawn(transport), spawn(transport)
    number, metadata = owner.call(roles.expose_readable, [SIZE])
    assert reader.call(roles.read, metadata) == ("DONE", True)
    assert owner.call(roles.wait, number) == "DONE"
    for worker in (reader, owner):
        worker.call(probe_and_close)


async def send_embedding(here, seed):
    array = pattern(SIZE, seed)
    operation = await here.connector.create_readable(Descriptor(array))
    vars(here).setdefault("returned", []).append(operation.wait_for_completion())
    vars(here).setdefault("buffers", []).append(weakref.ref(array))
    return operation.metadata().model_dump()


async def await_what_senders_returned(here):
    # References are all that counts here, so none may be left to the cyclic collector.
    gc.collect()
    assert all(buffer() is not None for buffer in here.buffers)
    returned, here.returned = here.returned, []
    tasks = [asyncio.create_task(each) for each in returned]
    del returned
    await asyncio.gather(*tasks)


async def every_buffer_is_gone(here):
    await settle(here.connector)
    await eventually(lambda: all(buffer() is None for buffer in here.buffers))


async def load_media(here, descriptor, nixl_metadata):
    metadata = RdmaMetadata(
        descriptors=[SerializedDescriptor(**descriptor)],
        nixl_metadata=nixl_metadata,
        notification_key=str(uuid.uuid4()),
        operation_kind=int(OperationKind.READ),
    )
    array = blank(descriptor["size"])
    operation = await here.connector.begin_read(metadata, Descriptor(array))
    await operation.wait_for_completion()
    return is_pattern(array, 4)


async def wait_for_unknown_notifications(here, count):
    await eventually(lambda: stats(here.connector)["notifications_unknown"] == count)


async def start_stream(here, seed):
    async def serve():
        with await here.connector.create_readable(Descriptor(pattern(SIZE, seed))) as operation:
            yield operation.metadata().model_dump()
            await operation.wait_for_completion()
            yield str(operation.status)

    here.stream = serve()
    return await anext(here.stream)


async def end_stream(here):
    status = await anext(here.stream)
    with pytest.raises(StopAsyncIteration):
        await anext(here.stream)
    return status


async def close_stream(here):
    assert stats(here.connector)["exposures"] == 1
    await here.stream.aclose()
    await settle(here.connector)
    counters = stats(here.connector)
    return {name: counters[name] for name in ("exposures", "regions")}


async def read_as_a_server(here, request, seed):
    array = blank(SIZE)
    read_operation = await here.connector.begin_read(RdmaMetadata.model_validate(request), Descriptor(array))
    with read_operation:
        await read_operation.wait_for_completion()
    return is_pattern(array, seed)


async def make_connectors(here):
    from dynamo_nixl import _core

    def held():
        return len(os.listdir("/proc/self/task")), len(os.listdir("/proc/self/fd"))

    before = held()
    connectors = [Connector() for _ in range(100)]
    after = held()
    assert len({connector.name for connector in connectors}) == 100
    return after[0] - before[0], after[1] - before[1], _core.loaded_library()


class Request(BaseModel):
    """As the protocols of older workers declare them."""

    number: int
    serialized_request: RdmaMetadata | None = None
    embeddings: RdmaMetadata | str = ""


async def send_requests(here, count):
    here.readables = []
    texts = []
    for number in range(count):
        readable = await here.connector.create_readable(Descriptor(pattern(1000 + number, number)))
        here.readables.append(readable)
        request = Request(number=number)
        if number % 2 == 0:
            request.serialized_request = readable.metadata()
            request.embeddings = "none"
        else:
            request.embeddings = readable.metadata()
        texts.append(request.model_dump_json())
    return texts


async def serve_requests(here, texts):
    arrived = []
    for text in texts:
        request = Request.model_validate_json(text)
        # An absent field stays what it was, and metadata is told from a text.
        if request.number % 2 == 0:
            assert request.embeddings == "none"
            metadata = request.serialized_request
        else:
            assert request.serialized_request is None
            metadata = request.embeddings
        assert isinstance(metadata, RdmaMetadata)
        array = blank(1000 + request.number)
        operation = await here.connector.begin_read(metadata, Descriptor(array))
        await operation.wait_for_completion()
        arrived.append(is_pattern(array, request.number))
    return arrived


async def all_sent_are_done(here, count):
    await eventually(lambda: [str(each.status) for each in here.readables] == ["DONE"] * count)
    here.readables = []


class PersistentConnector(Connector):
    """A connector whose one connection is its own business, under the names that workers use."""

    def __init__(self):
        super().__init__()
        self._connection = None

    async def _create_connection(self):
        if self._connection is None:
            self._connection = Connection(self, 1)
            await self._connection.initialize()
        return self._connection


async def become_persistent(here):
    here.release = dynamo_nixl.Remote._release
    dynamo_nixl.Remote._release = lambda remote: None
    here.connector = PersistentConnector()


async def end_persistent(here):
    here.kept.clear()
    # Only what the subclass made was ever opened.
    assert here.connector._shared_connection is None
    native = here.connector._connection._native

    def left():
        return {name: native.stats()[name] for name in ("regions", "exposures", "transfers")}

    await eventually(lambda: not any(left().values()))
    found = left()
    # A peer, once met, stays whether or not its remotes are released.
    assert len(native.peers()) <= 1
    await here.connector.aclose()
    dynamo_nixl.Remote._release = here.release
    return found


async def construct_passive(here, which, sizes):
    connection = await here.connector._create_connection()
    arrays = [pattern(size) if which == "readable" else blank(size) for size in sizes]
    made = ReadableOperation if which == "readable" else WritableOperation
    operation = made(connection, [Descriptor(array) for array in arrays])
    return here.keep((operation, arrays)), operation.metadata().model_dump()


async def construct_and_read(here, request):
    connection = await here.connector._create_connection()
    metadata = RdmaMetadata.model_validate(request)
    arrays = [blank(descriptor.size) for descriptor in metadata.descriptors]
    operation = ReadOperation(connection, metadata, [Descriptor(array) for array in arrays])
    assert isinstance(operation.remote, Remote)
    await operation.wait_for_completion()
    assert len(operation.results()) == len(arrays)
    return all(is_pattern(array) for array in arrays)


async def construct_and_write(here, request):
    connection = await here.connector._create_connection()
    metadata = RdmaMetadata.model_validate(request)
    arrays = [pattern(descriptor.size, 2 + index) for index, descriptor in enumerate(metadata.descriptors)]
    operation = WriteOperation(connection, [Descriptor(array) for array in arrays], metadata)
    await operation.wait_for_completion()
    return str(operation.status)


async def probe_and_close(here):
    here.kept.clear()
    connector = here.connector
    assert hasattr(connector, "close")
    assert connector.close() is None
    with pytest.raises(RuntimeError):
        await connector.create_readable(Descriptor(bytearray(8)))
    connector.close()
    # `close` only begins it; nobody here waits for the end of the process to see the rest.
    await connector.aclose()
