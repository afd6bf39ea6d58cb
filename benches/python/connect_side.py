"""Both sides on `nixl_connect`'s classes: ours or upstream's, the same code with another module."""

from __future__ import annotations

import asyncio
from time import monotonic_ns
from typing import TYPE_CHECKING, Any

from arena import OWNERS, READERS, Arena, check, mark

if TYPE_CHECKING:
    from types import ModuleType

    from channel import Channel
    from plan import Case


def own(module: ModuleType, reader: Channel) -> None:
    """Expose what the reader asks for, until it asks for nothing more."""
    asyncio.run(_own(module, reader))


async def _own(module: ModuleType, reader: Channel) -> None:
    connector = module.Connector()
    arena = Arena(OWNERS)
    while (request := reader.receive()) is not None:
        operations = []
        for _ in range(request["count"]):
            descriptor = module.Descriptor((arena.take(request["size"]), "cpu"))
            operations.append(await connector.create_readable(descriptor))
        reader.send([operation.metadata().model_dump() for operation in operations])
        # One after the other, as they end: a task each would have upstream's polls get in each other's way.
        stamps = []
        for operation in operations:
            await operation.wait_for_completion()
            stamps.append(monotonic_ns())
            _check_complete(module, operation)
        reader.receive()
        reader.send(stamps)
        for operation in operations:
            operation.__exit__(None, None, None)


def read(module: ModuleType, case: Case, owner: Channel, state: dict[str, Any]) -> tuple[list[int], list[int]]:
    """Carry one case out. Returns when each transfer began and when the reader's wait returned.

    The state lives as long as the process: the connector and its event loop.
    """
    if "runner" not in state:
        state["runner"] = asyncio.Runner()
        state["connector"] = module.Connector()
        state["arena"] = Arena(READERS)
    return state["runner"].run(_read(module, case, owner, state["connector"], state["arena"]))


async def _read(
    module: ModuleType, case: Case, owner: Channel, connector: Any, arena: Arena
) -> tuple[list[int], list[int]]:
    destination = arena.block(case.size)[: case.size]
    descriptor = module.Descriptor((destination, "cpu"))
    mark(destination)
    begun, ended = [], []
    # Pydantic's part comes before the clock; everything that is done with the metadata is inside.
    batch = [module.RdmaMetadata.model_validate(each) for each in owner.receive()]
    for metadata in batch:
        if case.gap_ms:
            await asyncio.sleep(case.gap_ms / 1000)
        begin = monotonic_ns()
        with await connector.begin_read(metadata, descriptor) as operation:
            await operation.wait_for_completion()
            end = monotonic_ns()
            _check_complete(module, operation)
        begun.append(begin)
        ended.append(end)
    check(destination)
    return begun, ended


def _check_complete(module: ModuleType, operation: Any) -> None:
    if operation.status != module.OperationStatus.COMPLETE:
        raise RuntimeError(f"a transfer ended badly: {operation.status!r}")
