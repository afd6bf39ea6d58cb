"""The event loop stays free: other tasks run while NIXL is started and while bytes move."""

from __future__ import annotations

import asyncio

import pytest
from dynamo_nixl import Connector, Descriptor, RdmaMetadata

from support import roles
from support.memory import blank, is_pattern

pytestmark = pytest.mark.nixl

BIG = 256 << 20
TURNS = 5
"""Turns of a ticker that must fit into something that takes a hundred times as long. One that blocks the loop leaves
none: the ticker starts before, and what it counts is read at once after."""


def test_while_a_connector_is_opened(spawn, transport):
    worker = spawn(transport)
    assert worker.call(ticks_while_opening) >= TURNS


def test_while_a_big_transfer_moves(pair):
    for which in ("read", "write"):
        exposed = roles.expose_readable if which == "read" else roles.expose_writable
        number, metadata = pair.owner.call(exposed, [BIG])
        assert pair.reader.call(ticks_while_moving, metadata, which) >= TURNS
        assert pair.owner.call(roles.wait, number) == "DONE"
        assert pair.owner.call(roles.dispose, number) == (which == "read")


def test_while_the_owner_waits(pair):
    number, metadata = pair.owner.call(roles.expose_readable, [BIG])
    ticking = pair.owner.start(ticks_while_waiting, number)
    # Answered after that has begun; the read would be over before it otherwise.
    assert pair.owner.call(roles.status, number) == "INIT"
    assert pair.reader.call(roles.read, metadata) == ("DONE", True)
    assert ticking.result() >= TURNS


class Ticker:
    """Counts how often a task gets its turn, a millisecond or more apart."""

    async def __aenter__(self):
        self.count = 0
        self.task = asyncio.create_task(self.run())
        # It is waiting for its second turn when the block begins.
        await asyncio.sleep(0)
        self.count = 0
        return self

    async def run(self):
        while True:
            self.count += 1
            await asyncio.sleep(0.001)

    async def __aexit__(self, *_):
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)


async def ticks_while_opening(here):
    connector = Connector()
    async with Ticker() as ticker:
        operation = await connector.create_readable(Descriptor(bytearray(1)))
        ticks = ticker.count
    operation.cancel()
    return ticks


async def ticks_while_moving(here, metadata, which):
    array = blank(BIG)
    remote = RdmaMetadata.model_validate(metadata)
    async with Ticker() as ticker:
        if which == "read":
            operation = await here.connector.begin_read(remote, Descriptor(array))
        else:
            operation = await here.connector.begin_write(Descriptor(array), remote)
        await operation.wait_for_completion()
        ticks = ticker.count
    assert is_pattern(array) == (which == "read")
    return ticks


async def ticks_while_waiting(here, number):
    operation, _ = here.kept[number]
    async with Ticker() as ticker:
        await operation.wait_for_completion()
        return ticker.count
