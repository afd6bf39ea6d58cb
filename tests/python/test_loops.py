"""One connector in several event loops, one after the other or at the same time in threads."""

from __future__ import annotations

import asyncio

import pytest
from dynamo_nixl import Connector, Descriptor, RdmaMetadata

from support import roles
from support.loops import factories, in_threads
from support.memory import blank, is_pattern, pattern

pytestmark = pytest.mark.nixl

SIZE = 300_000


def test_several_loops_in_the_life_of_a_connector(pair):
    exposed = [pair.owner.call(roles.expose_readable, [SIZE]) for _ in range(4)]
    assert pair.reader.call(read_in_loops_in_turn, [metadata for _, metadata in exposed]) == [True] * 4
    for number, _ in exposed:
        assert pair.owner.call(roles.wait, number) == "DONE"


def test_an_operation_begun_in_one_loop_is_awaited_in_another(pair):
    number, metadata = pair.owner.call(roles.expose_readable, [64 << 20])
    assert pair.reader.call(begin_here_and_wait_there, metadata)
    assert pair.owner.call(roles.wait, number) == "DONE"


def test_an_exposure_made_in_a_loop_that_is_gone(pair):
    metadata = pair.owner.call(expose_in_a_loop_of_its_own)
    assert pair.reader.call(roles.read, metadata) == ("DONE", True)
    assert pair.owner.call(wait_in_a_loop_of_its_own) == "DONE"


def test_one_operation_awaited_in_two_loops(pair):
    number, metadata = pair.owner.call(roles.expose_readable, [SIZE])
    waiting = pair.owner.start(wait_in_threads, number)
    assert pair.reader.call(roles.read, metadata) == ("DONE", True)
    assert waiting.result() == ["DONE", "DONE"]


def test_a_loop_closed_under_a_wait(pair):
    number, metadata = pair.owner.call(roles.expose_readable, [SIZE])
    pair.owner.call(close_loop_under_a_wait, number)
    assert pair.reader.call(roles.read, metadata) == ("DONE", True)
    assert pair.owner.call(roles.wait, number) == "DONE"


def test_operations_made_by_their_constructors(pair):
    """Without a loop at all: upstream's users construct operations themselves."""
    number, metadata = pair.owner.call(construct_readable)
    assert pair.reader.call(construct_read, metadata)
    assert pair.owner.call(roles.wait, number) == "DONE"


async def read_one(connector, metadata):
    array = blank(SIZE)
    with await connector.begin_read(RdmaMetadata.model_validate(metadata), Descriptor(array)) as operation:
        await operation.wait_for_completion()
        return is_pattern(array)


def read_in_loops_in_turn(here, exposed):
    # A fresh connector, so that the first of the loops opens it. Connectors need no running loop.
    connector = Connector()
    results = []
    for metadata, factory in zip(exposed, factories() * 2, strict=True):
        with asyncio.Runner(loop_factory=factory) as runner:
            results.append(runner.run(read_one(connector, metadata)))
    return results


def begin_here_and_wait_there(here, metadata):
    array = blank(64 << 20)
    connector = here.connector
    operation = asyncio.run(connector.begin_read(RdmaMetadata.model_validate(metadata), Descriptor(array)))
    asyncio.run(operation.wait_for_completion())
    return is_pattern(array)


def expose_in_a_loop_of_its_own(here):
    here.operation = asyncio.run(here.connector.create_readable(Descriptor(pattern(SIZE))))
    return here.operation.metadata().model_dump()


def wait_in_a_loop_of_its_own(here):
    asyncio.run(here.operation.wait_for_completion())
    status, here.operation = str(here.operation.status), None
    return status


def wait_in_threads(here, number):
    operation, _ = here.kept[number]

    def wait(index):
        with asyncio.Runner(loop_factory=factories()[index]) as runner:
            runner.run(operation.wait_for_completion())
        return str(operation.status)

    return in_threads(2, wait)


def close_loop_under_a_wait(here, number):
    operation, _ = here.kept[number]

    async def begin_to_wait():
        task = asyncio.create_task(operation.wait_for_completion())
        await asyncio.sleep(0)
        assert not task.done()

    # Cancels the task on its way out.
    asyncio.run(begin_to_wait())
    assert str(operation.status) == "INIT"


def construct_readable(here):
    from dynamo_nixl import Connection, ReadableOperation

    here.connection = Connection(here.connector, 7)
    array = pattern(SIZE)
    operation = ReadableOperation(here.connection, Descriptor(array))
    return here.keep((operation, [array])), operation.metadata().model_dump()


def construct_read(here, metadata):
    from dynamo_nixl import Connection, ReadOperation

    array = blank(SIZE)
    connection = Connection(here.connector, 7)
    operation = ReadOperation(connection, RdmaMetadata.model_validate(metadata), Descriptor(array))
    asyncio.run(operation.wait_for_completion())
    return is_pattern(array)
