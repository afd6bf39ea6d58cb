"""Both sides on `nixl_connect`'s classes: ours or upstream's, the same code with another module."""

from __future__ import annotations

import asyncio
from importlib import import_module
from time import monotonic_ns
from typing import TYPE_CHECKING, Any

from .arena import OWNERS, READERS, Arena, check, mark
from .case import Case

if TYPE_CHECKING:
    from .channel import Channel

MODULES = {"ours": "dynamo_nixl", "upstream": "dynamo.nixl_connect"}


def own(implementation: str, reader: Channel) -> None:
    """Expose what the reader asks for, until it asks for nothing more."""
    asyncio.run(_own(import_module(MODULES[implementation]), reader))


async def _own(module: Any, reader: Channel) -> None:
    connector = module.Connector()
    arena = Arena(OWNERS)
    while (request := reader.receive()) is not None:
        count = request.pop("count")
        case = Case(**request)
        await _register(module, connector, arena, case)
        exposed = [_descriptors(module, arena.take(case)) for _ in range(count)]
        operations = [await connector.create_readable(descriptors) for descriptors in exposed]
        reader.send([operation.metadata().model_dump() for operation in operations])
        # One after the other, as they end: a task each would have upstream's polls get in each other's way.
        stamps = []
        for operation in operations:
            await operation.wait_for_completion()
            stamps.append(monotonic_ns())
            _check_complete(module, operation)
        reader.receive()
        # Of several tasks nobody knows whose transfer ends first.
        reader.send(stamps if case.tasks == 1 else [])
        for operation in operations:
            operation.__exit__(None, None, None)


class Reader:
    """The reader's connector and its event loop, which live as long as the process."""

    def __init__(self, implementation: str) -> None:
        self._module = import_module(MODULES[implementation])
        self._runner = asyncio.Runner()
        self._connector = self._module.Connector()
        self._arena = Arena(READERS)

    def read(self, case: Case, owner: Channel) -> tuple[list[int], list[int]]:
        """Carry one batch out."""
        return self._runner.run(self._read(case, owner))

    async def _read(self, case: Case, owner: Channel) -> tuple[list[int], list[int]]:
        # Pydantic's part comes before the clock; everything that is done with the metadata is inside.
        batch = [self._module.RdmaMetadata.model_validate(each) for each in owner.receive()]
        begun: list[int] = []
        ended: list[int] = []
        await _register(self._module, self._connector, self._arena, case)
        places = [self._arena.take(case) for _ in range(case.tasks)]
        async with asyncio.TaskGroup() as group:
            for index, place in enumerate(places):
                group.create_task(self._task(case, batch[index :: case.tasks], place, begun, ended))
        return begun, ended

    async def _task(self, case: Case, batch: list[Any], place: list[Any], begun: list[int], ended: list[int]) -> None:
        descriptors = _descriptors(self._module, place)
        mark(place)
        for metadata in batch:
            if case.gap_us:
                await asyncio.sleep(case.gap_us / 1e6)
            begin = monotonic_ns()
            with await self._connector.begin_read(metadata, descriptors) as operation:
                await operation.wait_for_completion()
                end = monotonic_ns()
                _check_complete(self._module, operation)
            begun.append(begin)
            ended.append(end)
        check(place)


async def _register(module: Any, connector: Any, arena: Arena, case: Case) -> None:
    """Have the memory of scattered transfers registered as one pool, as servers do, where that can be.

    Upstream registers each block once more all the same.
    """
    if case.blocks == 1 or module.__name__ != MODULES["ours"]:
        return
    if case.shape not in arena.pools:
        await connector.warmup()
        pool = arena.pools[case.shape] = module.Descriptor(arena.block(case))
        pool.register_memory(connector)


def _descriptors(module: Any, ranges: list[Any]) -> Any:
    made = [module.Descriptor((each, "cpu")) for each in ranges]
    return made[0] if len(made) == 1 else made


def _check_complete(module: Any, operation: Any) -> None:
    if operation.status != module.OperationStatus.COMPLETE:
        raise RuntimeError(f"a transfer ended badly: {operation.status!r}")
