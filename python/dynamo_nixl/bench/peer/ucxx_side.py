"""Both sides on ucxx's asyncio interface: the reader asks by a message, the owner sends.

Two-sided: the owner's event loop takes part in each transfer, which is how ucxx is used. Blocks go one after the other,
since a message is one piece of memory.
"""

from __future__ import annotations

import asyncio
import os
from importlib import import_module
from time import monotonic_ns
from typing import TYPE_CHECKING, Any

import numpy as np

from .arena import OWNERS, READERS, Arena, check, mark
from .case import Case

if TYPE_CHECKING:
    from .channel import Channel

END = 1 << 62


def own(_implementation: str, reader: Channel) -> None:
    """Send what the reader asks for, until it asks for nothing more."""
    asyncio.run(_own(import_module("ucxx"), reader))


async def _own(ucxx: Any, reader: Channel) -> None:
    offers: list[list[np.ndarray]] = []
    arena = Arena(OWNERS)
    served: list[asyncio.Task[None]] = []

    async def accept(endpoint: Any) -> None:
        task = asyncio.current_task()
        if task is not None:
            served.append(task)
        wish = np.empty(1, dtype=np.int64)
        while True:
            await endpoint.recv(wish)
            if wish[0] == END:
                return
            for each in offers[wish[0]]:
                await endpoint.send(each)

    listener = ucxx.create_listener(accept)
    loop = asyncio.get_running_loop()
    # Off the loop, which has to go on serving.
    while (request := await loop.run_in_executor(None, reader.receive)) is not None:
        count = request.pop("count")
        case = Case(**request)
        offers[:] = [arena.take(case) for _ in range(count)]
        reader.send({"port": listener.port, "count": count})
        await loop.run_in_executor(None, reader.receive)
        reader.send([])
    listener.close()
    os._exit(0)


class Reader:
    """The reader's endpoints, one for each task, and its event loop."""

    def __init__(self, _implementation: str) -> None:
        self._ucxx: Any = import_module("ucxx")
        self._runner = asyncio.Runner()
        self._arena = Arena(READERS)
        self._endpoints: list[Any] = []

    def read(self, case: Case, owner: Channel) -> tuple[list[int], list[int]]:
        """Carry one batch out."""
        return self._runner.run(self._read(case, owner.receive()))

    async def _read(self, case: Case, offer: dict[str, int]) -> tuple[list[int], list[int]]:
        while len(self._endpoints) < case.tasks:
            self._endpoints.append(await self._ucxx.create_endpoint("127.0.0.1", offer["port"]))
        begun: list[int] = []
        ended: list[int] = []
        async with asyncio.TaskGroup() as group:
            for index in range(case.tasks):
                numbers = range(index, offer["count"], case.tasks)
                group.create_task(self._task(case, self._endpoints[index], numbers, begun, ended))
        return begun, ended

    async def _task(self, case: Case, endpoint: Any, numbers: range, begun: list[int], ended: list[int]) -> None:
        place = self._arena.take(case)
        mark(place)
        wish = np.empty(1, dtype=np.int64)
        for number in numbers:
            if case.gap_us:
                await asyncio.sleep(case.gap_us / 1e6)
            wish[0] = number
            begin = monotonic_ns()
            await endpoint.send(wish)
            for each in place:
                await endpoint.recv(each)
            ended.append(monotonic_ns())
            begun.append(begin)
        check(place)
