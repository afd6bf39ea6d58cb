"""What a coroutine, and the last reference to an operation, mean for the operation."""

from __future__ import annotations

import asyncio
import gc
import inspect
import time
import weakref

import pytest
from dynamo_nixl import (
    Connection,
    Connector,
    Descriptor,
    RdmaMetadata,
    ReadableOperation,
    ReadOperation,
    WritableOperation,
    WriteOperation,
)

from support import flight, roles
from support.flight import BIG, TCP
from support.here import eventually, settle, stats
from support.memory import blank, is_pattern, pattern

pytestmark = pytest.mark.nixl


@pytest.fixture(params=["asyncio", "uvloop"])
def two(request, spawn):
    """An owner and a reader over TCP, where a transfer takes time, each on both kinds of loop."""
    return spawn(TCP, loop=request.param), spawn(TCP, loop=request.param)


def test_every_async_method_is_a_coroutine_function():
    for method in (
        Connector.begin_read,
        Connector.begin_write,
        Connector.create_readable,
        Connector.create_writable,
        Connector.initialize,
        Connector.warmup,
        Connector.aclose,
        Connector._create_connection,
        Connection.initialize,
        ReadableOperation.wait_for_completion,
        WritableOperation.wait_for_completion,
        ReadOperation.wait_for_completion,
        WriteOperation.wait_for_completion,
    ):
        assert asyncio.iscoroutinefunction(method)
        assert inspect.iscoroutinefunction(method)


def test_tasks(two):
    owner, reader = two
    number, metadata = owner.call(roles.expose_readable, [5000])
    waiting = owner.start(wait_in_tasks, number)
    assert reader.call(read_in_tasks, metadata)
    assert waiting.result() == ["DONE"] * 3


def test_an_unawaited_coroutine_keeps_its_operation(two):
    """The pattern of Dynamo's embedding senders: they return the coroutine and forget everything else."""
    owner, reader = two
    metadata = owner.call(expose_and_keep_only_the_wait)
    assert reader.call(roles.read, metadata) == ("DONE", True)
    owner.call(await_what_was_kept)
    owner.call(roles.forget_connector)


def test_an_unawaited_coroutine_keeps_an_active_operation(two):
    owner, reader = two
    number, metadata = owner.call(roles.expose_readable, [BIG])
    reader.call(begin_and_keep_only_the_wait, metadata)
    assert owner.call(roles.wait, number) == "DONE"
    reader.call(await_what_was_kept)


def test_dropping_an_active_operation_cancels_it(two):
    owner, reader = two
    number, begun = flight.catch_read(owner, reader)
    # Not quiet yet, but the peer stands still: everything stays as it is.
    assert reader.call(drop, begun) == (1, 1)
    owner.resume()
    reader.call(memory_goes)
    assert owner.call(roles.fail_to_wait, number) == ("CancelledByPeerError", "STOP")
    owner.call(roles.dispose, number)
    small, metadata = owner.call(roles.expose_readable, [4096])
    assert reader.call(roles.read, metadata) == ("DONE", True)
    assert owner.call(roles.wait, small) == "DONE"


def test_dropping_a_passive_operation_ends_its_exposure(two):
    owner, _ = two
    assert owner.call(expose_and_drop) == (1, 0, 0)


def test_memory_is_let_go_with_its_last_operation(two):
    owner, reader = two
    metadata = owner.call(expose_without_a_name, 70_000)
    assert reader.call(roles.read, metadata) == ("DONE", True)
    owner.call(let_go)
    metadata = owner.call(expose_without_a_name, BIG)
    reader.call(begin_without_a_name, metadata)
    reader.call(let_go)
    owner.call(let_go)


def test_a_disposed_passive_operation_does_not_keep_its_waiters(two):
    owner, _ = two
    assert owner.call(dispose_under_a_waiter) == "STOP"


def test_several_tasks_wait_and_one_is_cancelled(two):
    owner, reader = two
    number, metadata = owner.call(roles.expose_readable, [4096])
    assert owner.call(cancel_one_waiter, number) == "INIT"
    waiting = owner.start(wait_in_tasks, number)
    assert reader.call(roles.read, metadata) == ("DONE", True)
    assert waiting.result() == ["DONE"] * 3


def test_cancelling_a_task_that_waits_for_an_active_operation(two):
    owner, reader = two
    number, kept = flight.catch_read(owner, reader)
    assert reader.call(cancel_one_waiter, kept) == "PROC"
    owner.resume()
    assert reader.call(roles.wait, kept) == "DONE"
    assert reader.call(roles.dispose, kept)
    assert owner.call(roles.wait, number) == "DONE"


def test_a_timeout_ends_the_wait_only(two):
    owner, reader = two
    number, metadata = owner.call(roles.expose_readable, [4096])
    assert owner.call(time_out, number) == ["INIT", "INIT"]
    assert reader.call(roles.read, metadata) == ("DONE", True)
    assert owner.call(roles.wait, number) == "DONE"


def test_what_has_ended_when_the_timeout_is_looked_at_counts(two):
    """The loop was busy past both, the end and the timer."""
    owner, reader = two
    number, metadata = owner.call(roles.expose_readable, [4096])
    reading = reader.start(read_later, metadata)
    assert owner.call(wait_in_a_busy_loop, number) == "DONE"
    assert reading.result() == ("DONE", True)


async def read_later(here, metadata):
    await asyncio.sleep(0.1)
    return await roles.read(here, metadata)


async def wait_in_a_busy_loop(here, number):
    operation, _ = here.kept[number]
    waiting = asyncio.create_task(operation.wait_for_completion(timeout=0.01))
    await asyncio.sleep(0)
    deadline = time.monotonic() + 30
    while str(operation.status) != "DONE" and time.monotonic() < deadline:
        # The loop does not turn meanwhile.
        time.sleep(0.01)  # noqa: ASYNC251
    await waiting
    return str(operation.status)


def test_cancelling_a_task_that_begins(two):
    """Whenever it happens, nothing stays behind, and the next one works."""
    owner, reader = two
    reader.call(begin_and_cancel_at_once, owner.call(roles.expose_readable, [BIG])[1])
    number, metadata = owner.call(roles.expose_readable, [4096])
    assert reader.call(roles.read, metadata) == ("DONE", True)
    assert owner.call(roles.wait, number) == "DONE"


async def wait_in_tasks(here, number):
    operation, _ = here.kept[number]
    tasks = [asyncio.create_task(operation.wait_for_completion()) for _ in range(3)]
    await asyncio.gather(*tasks)
    return [str(operation.status) for _ in tasks]


async def read_in_tasks(here, metadata):
    array = blank(5000)
    begin = asyncio.create_task(here.connector.begin_read(RdmaMetadata.model_validate(metadata), Descriptor(array)))
    operation = await begin
    await asyncio.create_task(operation.wait_for_completion())
    return is_pattern(array)


async def expose_and_keep_only_the_wait(here):
    # No reference to the connector, the descriptor or the array survives this frame either.
    operation = await Connector().create_readable(Descriptor(pattern(70_000)))
    here.waiting = operation.wait_for_completion()
    return operation.metadata().model_dump()


async def begin_and_keep_only_the_wait(here, metadata):
    remote = RdmaMetadata.model_validate(metadata)
    operation = await Connector().begin_read(remote, Descriptor(blank(remote.descriptors[0].size)))
    here.waiting = operation.wait_for_completion()
    del operation
    gc.collect()


async def await_what_was_kept(here):
    gc.collect()
    waiting, here.waiting = here.waiting, None
    await waiting


async def drop(here, number):
    operation, (array,) = here.kept.pop(number)
    here.memory = weakref.ref(array)
    del operation, array
    gc.collect()
    assert here.memory() is not None
    counters = stats(here.connector)
    return counters["transfers"], counters["regions"]


async def memory_goes(here):
    await settle(here.connector)
    await eventually(lambda: here.memory() is None)


async def expose_without_a_name(here, size):
    array = pattern(size)
    here.operation, here.memory = await here.connector.create_readable(Descriptor(array)), weakref.ref(array)
    return here.operation.metadata().model_dump()


async def begin_without_a_name(here, metadata):
    array = blank(BIG)
    remote = RdmaMetadata.model_validate(metadata)
    here.operation, here.memory = await here.connector.begin_read(remote, Descriptor(array)), weakref.ref(array)


async def let_go(here):
    assert here.memory() is not None
    here.operation = None
    await memory_goes(here)


async def expose_and_drop(here):
    operation = await here.connector.create_readable(Descriptor(pattern(4096)))
    before = stats(here.connector)["exposures"]
    del operation
    await settle(here.connector)
    after = stats(here.connector)
    return before, after["exposures"], after["regions"]


async def dispose_under_a_waiter(here):
    operation = await here.connector.create_readable(Descriptor(pattern(4096)))
    waiting = asyncio.create_task(operation.wait_for_completion())
    await asyncio.sleep(0)
    assert not waiting.done()
    operation.__exit__(None, None, None)
    await waiting
    await operation.wait_for_completion()
    return str(operation.status)


async def cancel_one_waiter(here, number):
    operation, _ = here.kept[number]
    task = asyncio.create_task(operation.wait_for_completion())
    await asyncio.sleep(0)
    assert not task.done()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    return str(operation.status)


async def time_out(here, number):
    operation, _ = here.kept[number]
    seen = []
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await operation.wait_for_completion()
    seen.append(str(operation.status))
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(operation.wait_for_completion(), 0.05)
    seen.append(str(operation.status))
    return seen


async def begin_and_cancel_at_once(here, metadata):
    remote = RdmaMetadata.model_validate(metadata)
    for turns in (0, 1, 2, 3, 50):
        array = blank(BIG)
        task = asyncio.create_task(here.connector.begin_read(remote, Descriptor(array)))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        try:
            operation = await task
        except asyncio.CancelledError:
            pass
        else:
            operation.cancel()
        del array
        await settle(here.connector)
