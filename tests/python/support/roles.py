"""What most tests have a worker do: expose, read, write, wait."""

from __future__ import annotations

import asyncio
import ctypes
import gc
from typing import TYPE_CHECKING, Any

import dynamo_nixl
from dynamo_nixl import Descriptor, RdmaMetadata

from support.here import Here, settle, stats
from support.memory import blank, is_pattern, pattern

if TYPE_CHECKING:
    import numpy as np


def descriptors(arrays: list[np.ndarray]) -> Descriptor | list[Descriptor]:
    """Describe arrays; one alone is not put into a list."""
    made = [Descriptor(array) for array in arrays]
    return made[0] if len(made) == 1 else made


async def expose_readable(
    here: Here, sizes: list[int], seed: int = 0, *, hex_encode: bool = False
) -> tuple[int, dict[str, Any]]:
    """Let a peer read patterns. Returns the number of what is kept, the operation and its arrays, and the metadata."""
    arrays = [pattern(size, seed + index) for index, size in enumerate(sizes)]
    operation = await here.connector.create_readable(descriptors(arrays))
    return here.keep((operation, arrays)), operation.metadata(hex_encode=hex_encode).model_dump()


async def expose_writable(here: Here, sizes: list[int], *, hex_encode: bool = False) -> tuple[int, dict[str, Any]]:
    """Let a peer write into blank memory. Returns as `expose_readable`."""
    arrays = [blank(size) for size in sizes]
    operation = await here.connector.create_writable(descriptors(arrays))
    return here.keep((operation, arrays)), operation.metadata(hex_encode=hex_encode).model_dump()


async def wait(here: Here, number: int) -> str:
    """Wait for the end of a kept operation and return its status. It stays kept."""
    operation, _ = here.kept[number]
    await operation.wait_for_completion()
    return str(operation.status)


async def status(here: Here, number: int) -> str:
    """The status of a kept operation."""
    return str(here.kept[number][0].status)


async def dispose(here: Here, number: int, seed: int = 0) -> bool:
    """End and forget a kept operation. Returns whether its memory holds the patterns."""
    operation, arrays = here.kept.pop(number)
    with operation:
        return all(is_pattern(array, seed + index) for index, array in enumerate(arrays))


async def read(here: Here, metadata: dict[str, Any], seed: int = 0) -> tuple[str, bool]:
    """Read all that is exposed. Returns the status, and whether the patterns arrived."""
    remote = RdmaMetadata.model_validate(metadata)
    arrays = [blank(descriptor.size) for descriptor in remote.descriptors]
    with await here.connector.begin_read(remote, descriptors(arrays)) as operation:
        await operation.wait_for_completion()
        return str(operation.status), all(is_pattern(array, seed + index) for index, array in enumerate(arrays))


async def write(here: Here, metadata: dict[str, Any], seed: int = 0) -> str:
    """Write patterns to all that is exposed. Returns the status."""
    remote = RdmaMetadata.model_validate(metadata)
    arrays = [pattern(descriptor.size, seed + index) for index, descriptor in enumerate(remote.descriptors)]
    with await here.connector.begin_write(descriptors(arrays), remote) as operation:
        await operation.wait_for_completion()
        return str(operation.status)


async def begin_read(here: Here, metadata: dict[str, Any]) -> int:
    """Begin to read, and keep the operation and its blank arrays."""
    remote = RdmaMetadata.model_validate(metadata)
    arrays = [blank(descriptor.size) for descriptor in remote.descriptors]
    return here.keep((await here.connector.begin_read(remote, descriptors(arrays)), arrays))


async def fail_to_wait(here: Here, number: int) -> tuple[str, str]:
    """Wait for a kept operation that is bound to fail. Returns the error's class and the status."""
    operation, _ = here.kept[number]
    try:
        await operation.wait_for_completion()
    except dynamo_nixl.NixlConnectError as error:
        return type(error).__name__, str(operation.status)
    raise AssertionError(f"the operation did not fail but ended as {operation.status}")


async def fail_to_read(here: Here, metadata: dict[str, Any]) -> str:
    """Which error says that the peer cannot be reached, be it when the read begins or when it is awaited."""
    remote = RdmaMetadata.model_validate(metadata)
    try:
        operation = await here.connector.begin_read(remote, Descriptor(blank(remote.descriptors[0].size)))
        await operation.wait_for_completion()
    except dynamo_nixl.NixlConnectError as error:
        return type(error).__name__
    return "read"


async def settled(here: Here) -> None:
    """Let go of what is kept and wait until nothing is left of this worker's operations."""
    here.kept.clear()
    await settle(here.connector)


async def trim(here: Here) -> None:
    """Have the allocator give back what nobody uses: after large arrays it may keep hundreds of MiB."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)


async def counters(here: Here) -> dict[str, int]:
    """The native counters of this worker's connector."""
    return stats(here.connector)


async def forget_connector(here: Here) -> None:
    """Let the worker's connector go; the next use makes another."""
    here.connector = None


async def use_connector(here: Here, worker_id: str) -> None:
    """Work under a given name from now on."""
    here.connector = dynamo_nixl.Connector(worker_id)


async def nothing(here: Here) -> None:
    """Answer, to show that the loop runs."""
    await asyncio.sleep(0)
