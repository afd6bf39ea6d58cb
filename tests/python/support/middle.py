"""Ends that one side brings about, also while its process is stopped in the middle of a transfer."""

from __future__ import annotations

import asyncio
import ctypes
import mmap
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from dynamo_nixl import Descriptor, RdmaMetadata, TransferError

from support import endings

if TYPE_CHECKING:
    from collections.abc import Callable

    from support.here import Here
    from support.workers import Worker

PROT_NONE = 0
HOWS = ("cancel", "exit", "drop")
"""The ways to give an operation up."""


def interrupt(
    owner: Worker, active: Worker, kind: str, function: Callable[..., Any], *args: Any, **options: Any
) -> tuple[int, int, Any]:
    """Catch a transfer, and have its active side call a function of the kept operation as soon as it goes on."""
    for _ in range(5):
        number, begun = endings.catch(owner, active, kind, **options)
        # It lies in the worker's socket when that wakes, and so comes long before the end of what is left to move.
        calling = active.start(function, begun, *args)
        active.resume()
        result = calling.result()
        if owner.call(endings.ended, number) != endings.DONE:
            return number, begun, result
        # Not much was left.
    raise AssertionError("no transfer could be ended in the middle")


async def give_up(here: Here, number: int, how: str) -> str:
    """End a kept operation of one's own will. Returns its status."""
    operation, _ = here.kept[number]
    if how == "cancel":
        operation.cancel()
    elif how == "exit":
        operation.__exit__(None, None, None)
    else:
        del here.kept[number]
        return "STOP"
    return str(operation.status)


async def begin_in_the_middle(here: Here, metadata: dict[str, Any], seed: int | None = None) -> int:
    """As `endings.begin`, and return when some of it has moved."""
    number = await endings.begin(here, metadata, seed)
    operation, _ = here.kept[number]
    while not operation.bytes_done and operation.error is None:  # noqa: ASYNC110 - nothing announces it
        await asyncio.sleep(0)
    return number


def unreadable(size: int) -> np.ndarray:
    """Memory that nobody can read, nor write to."""
    pages = np.frombuffer(mmap.mmap(-1, size), dtype=np.uint8)
    assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(pages.ctypes.data), ctypes.c_size_t(pages.size), PROT_NONE) == 0
    return pages


async def break_by_a_write(here: Here, writable: dict[str, Any], other: dict[str, Any], seed: int) -> tuple[int, bool]:
    """In the middle of a write, break the connection by one of what nobody can read.

    Only where the kernel copies. Over TCP UCX may read such memory itself, and abort an owner with replies to send.
    Returns the number of the first, and whether it was under way still when the second had failed.
    """
    remote = RdmaMetadata.model_validate(other)
    source = Descriptor(unreadable(remote.descriptors[0].size))
    number = await begin_in_the_middle(here, writable, seed)
    operation, _ = here.kept[number]
    with pytest.raises(TransferError):
        await (await here.connector.begin_write(source, remote)).wait_for_completion()
    assert operation.error is None
    return number, operation.bytes_done < operation.bytes_total


async def close_now(here: Here, number: int) -> str:
    """Close the worker's connector, which a kept operation belongs to. Returns that one's status."""
    await endings.close(here)
    return str(here.kept[number][0].status)
