"""How Dynamo's receivers work: pools of registered buffers, used again and again, and event loops of their own."""

from __future__ import annotations

import asyncio
import threading

import numpy as np
import pytest
from dynamo_nixl import Descriptor, OperationKind, RdmaMetadata, Remote

from support import roles
from support.here import eventually, settle, stats
from support.memory import blank, is_pattern, pattern

pytestmark = pytest.mark.nixl

BUFFER = 256 << 10
COUNT = 16


def test_a_pool_is_registered_once_and_reused(pair):
    """An embedding receiver: every fetch in a loop of its own, no `with`, nothing released by hand."""
    pair.reader.call(make_pool, COUNT)
    for turn in range(4 * COUNT):
        size = 1 + (turn * 50_021) % BUFFER
        number, request = pair.owner.call(roles.expose_readable, [size], seed=turn)
        assert pair.reader.call(receive_into_pool, request, turn)
        assert pair.owner.call(roles.wait, number) == "DONE"
        pair.owner.call(roles.dispose, number)
    # The pool as it was, each of its buffers used four times.
    assert pair.reader.call(pool_state) == {"regions": COUNT, "registered": COUNT, "whole": COUNT}
    pair.reader.call(drop_pool)


def test_items_are_fetched_at_once_into_a_smaller_pool(pair):
    """A receiver of multimodal items: all are checked, then fetched with `gather`, more of them than buffers."""
    pair.reader.call(make_pool, 4)
    sizes = [1, 4096, BUFFER, 77_777, 5, 6, 7, 100_000, BUFFER - 1, 12]
    for turn in range(3):
        requests = pair.owner.call(send_items, sizes, turn)
        waiting = pair.owner.start(wait_for_items, 60.0)
        assert pair.reader.call(receive_items, requests, turn) == [True] * len(sizes)
        assert waiting.result() == [None] * len(sizes)
        assert pair.owner.call(items_state) == {"regions": 0, "exposures": 0}
    assert pair.reader.call(pool_state) == {"regions": 4, "registered": 4, "whole": 4}
    pair.reader.call(drop_pool)


def test_items_that_are_not_fetched_in_time(pair):
    """The sender gives up after a while, and disposes of everything by hand; the pool of the receiver works on."""
    pair.reader.call(make_pool, 2)
    requests = pair.owner.call(send_items, [4096, 5000], 0)
    assert pair.reader.call(receive_items, requests[:1], 0) == [True]
    assert pair.owner.call(wait_for_items, 0.2) == "timeout"
    assert pair.owner.call(items_state) == {"regions": 0, "exposures": 0}
    requests = pair.owner.call(send_items, [4096, 5000], 0)
    waiting = pair.owner.start(wait_for_items, 60.0)
    assert pair.reader.call(receive_items, requests, 0) == [True, True]
    assert waiting.result() == [None, None]
    pair.reader.call(drop_pool)


def test_items_with_a_spoiled_one_are_refused_before_anything_moves(pair):
    pair.reader.call(make_pool, 2)
    requests = pair.owner.call(send_items, [4096, 5000], 0)
    spoiled = requests[1] | {"nixl_metadata": "b64:" + "A" * 40}
    assert pair.reader.call(refuse_items, [requests[0], spoiled]) == "MetadataError"
    assert pair.owner.call(wait_for_items, 0.05) == "timeout"
    # Not even the sound one was fetched.
    assert pair.owner.call(item_statuses) == ["STOP", "STOP"]
    pair.reader.call(drop_pool)


@pytest.mark.parametrize("kind", ["asyncio", "uvloop"])
def test_a_loop_in_a_thread_of_its_own(pair, kind):
    """Both sides work from plain threads; what nobody fetches is waited for by a task that is cancelled."""
    for worker in (pair.owner, pair.reader):
        worker.call(start_loop, kind)
    for seed in range(3):
        key, request = pair.owner.call(put, [30_000, 40], seed)
        assert pair.reader.call(get, request, seed)
        pair.owner.call(was_fetched, key)
        # Nobody comes for this one.
        key, _ = pair.owner.call(put, [5000], seed)
        assert pair.owner.call(cancel_after, key, 0.05) == ("INIT", "STOP")
    key, request = pair.owner.call(put, [5000], 9)
    assert pair.reader.call(get, request, 9)
    pair.owner.call(was_fetched, key)
    for worker in (pair.owner, pair.reader):
        worker.call(stop_loop)


def run_async(function, *arguments):
    """Run a coroutine function to its end from wherever: in this thread, or in another one if a loop runs here."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(function(*arguments))
    results = []
    thread = threading.Thread(target=lambda: results.append(asyncio.run(function(*arguments))))
    thread.start()
    thread.join()
    return results[0]


class Pool:
    """Registered buffers that are lent and come back."""

    def __init__(self, connector, count):
        connection = run_async(connector._create_connection)
        self.everything = [Descriptor(np.zeros(BUFFER, dtype=np.int8)) for _ in range(count)]
        for descriptor in self.everything:
            descriptor.register_with_connector(connection)
        self.free = asyncio.Queue()
        for descriptor in self.everything:
            self.free.put_nowait(descriptor)

    async def receive(self, connector, metadata, seed):
        """Fetch what is exposed into the beginning of a buffer. Returns whether it is right."""
        size = metadata.descriptors[0].size
        descriptor = await self.free.get()
        whole = descriptor._data_size
        try:
            descriptor._data_size = size
            received = descriptor._data_ref[:size]
            operation = await connector.begin_read(metadata, descriptor)
            # Nothing is registered for it, also not while it runs.
            assert stats(connector)["regions"] == len(self.everything)
            await operation.wait_for_completion()
            return is_pattern(received, seed)
        finally:
            descriptor._data_size = whole
            self.free.put_nowait(descriptor)


async def make_pool(here, count):
    # From within a loop, so that the helper thread is needed.
    here.pool = Pool(here.connector, count)


def receive_into_pool(here, request, seed):
    # A plain thread: each call makes and ends a loop of its own.
    return run_async(here.pool.receive, here.connector, RdmaMetadata.model_validate(request), seed)


async def pool_state(here):
    everything = here.pool.everything
    return {
        "regions": stats(here.connector)["regions"],
        "registered": sum(each.is_registered for each in everything),
        "whole": sum(each.size == BUFFER for each in everything),
    }


async def drop_pool(here):
    here.pool = None
    await settle(here.connector)


async def send_items(here, sizes, turn):
    here.items = []
    for index, size in enumerate(sizes):
        buffer = bytearray(pattern(size, turn + index))
        # A view of the sender's bytes, as `torch.frombuffer` gives.
        here.items.append(await here.connector.create_readable(Descriptor(np.frombuffer(buffer, dtype=np.uint8))))
    return [operation.metadata().model_dump() for operation in here.items]


async def wait_for_items(here, seconds):
    waits = [operation.wait_for_completion() for operation in here.items]
    try:
        return await asyncio.wait_for(asyncio.gather(*waits, return_exceptions=True), seconds)
    except TimeoutError:
        return "timeout"
    finally:
        for operation in here.items:
            operation.__exit__(None, None, None)


async def item_statuses(here):
    statuses = [str(operation.status) for operation in here.items]
    here.items = []
    return statuses


async def items_state(here):
    here.items = []
    await settle(here.connector)
    counters = stats(here.connector)
    return {name: counters[name] for name in ("regions", "exposures")}


def check(request):
    """What the newest receivers look at before they fetch anything."""
    metadata = RdmaMetadata.model_validate(request)
    assert metadata.operation_kind == OperationKind.READ.value
    assert metadata.notification_key
    described = metadata.to_descriptors()
    assert not isinstance(described, list)
    assert described.ptr > 0
    assert 0 <= described.size <= BUFFER
    assert Remote.decode_metadata(metadata.nixl_metadata).startswith(b"nixlSerDes|")
    return metadata


async def receive_items(here, requests, turn):
    checked = [check(request) for request in requests]
    fetches = (here.pool.receive(here.connector, metadata, turn + index) for index, metadata in enumerate(checked))
    return await asyncio.gather(*fetches)


async def refuse_items(here, requests):
    try:
        await receive_items(here, requests, 0)
    except ValueError as error:
        assert not any(each._data_ref.any() for each in here.pool.everything)
        return type(error).__name__
    raise AssertionError("the spoiled metadata was taken")


class LoopThread:
    """An event loop that runs in a thread for as long as its owner likes."""

    def __init__(self, kind):
        if kind == "uvloop":
            import uvloop

            self.loop = uvloop.new_event_loop()
        else:
            self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever)
        self.thread.start()

    def run(self, coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(60)

    def stop(self):
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()


def start_loop(here, kind):
    here.side = LoopThread(kind)


def stop_loop(here):
    here.side.stop()
    here.side = None


def put(here, sizes, seed):
    async def expose():
        descriptors = [Descriptor(pattern(size, seed + index)) for index, size in enumerate(sizes)]
        operation = await here.connector.create_readable(descriptors if len(sizes) > 1 else descriptors[0])
        return operation, asyncio.create_task(operation.wait_for_completion())

    operation, task = here.side.run(expose())
    return here.keep((operation, task)), operation.metadata().model_dump()


def get(here, request, seed):
    async def fetch():
        metadata = RdmaMetadata.model_validate(request)
        arrays = [blank(descriptor.size) for descriptor in metadata.descriptors]
        operation = await here.connector.begin_read(metadata, roles.descriptors(arrays))
        await operation.wait_for_completion()
        return all(is_pattern(array, seed + index) for index, array in enumerate(arrays))

    return here.side.run(fetch())


def was_fetched(here, number):
    operation, task = here.kept.pop(number)

    async def join():
        await task

    here.side.run(join())
    assert str(operation.status) == "DONE"


def cancel_after(here, number, seconds):
    """Give up on a task. Returns the status after that, and after its operation was cleaned up."""
    operation, task = here.kept.pop(number)

    async def give_up():
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(task, seconds)
        assert task.cancelled()

    here.side.run(give_up())
    before = str(operation.status)
    operation.__exit__(None, None, None)
    here.side.run(eventually(lambda: stats(here.connector)["exposures"] == 0))
    return before, str(operation.status)
