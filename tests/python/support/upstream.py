"""Dynamo's own nixl_connect as a peer: what tests have a worker do that runs in upstream's environment.

The functions have the names and the meaning of those in `roles`. Nothing of upstream is imported by this module, since
the interpreter of pytest, which names the functions, does not have it.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from support.here import eventually
from support.memory import blank, is_pattern, pattern
from support.workers import BINDINGS

if TYPE_CHECKING:
    from support.here import Here

ENVIRONMENT = BINDINGS
FOLDER = Path(__file__).resolve().parents[3] / ".cache" / "peers" / "upstream"
PYTHON = FOLDER / "bin" / "python"
PATIENCE = 300.0
"""Seconds that its import may take: where nothing of torch is in the page cache, it is slow."""


def is_installed() -> bool:
    """Whether `make peers` has come to its end."""
    return (FOLDER / ".ready").is_file()


def start(here: Here) -> str:
    """Import upstream and make the first connector. Returns the name of its agent."""
    # It warns that there is no CuPy. What it calls an error is still written, and fails the test.
    logging.getLogger("dynamo.nixl_connect").setLevel(logging.ERROR)
    import dynamo.nixl_connect

    here.upstream = dynamo.nixl_connect
    here.connectors = {}
    return f"{_connector(here, 1).name}-1"


def _connector(here: Here, agent: int) -> Any:
    """One of the worker's connectors, made when first asked for: each has an agent of its own."""
    if agent not in here.connectors:
        here.connectors[agent] = here.upstream.Connector()
    return here.connectors[agent]


def _descriptors(here: Here, arrays: list[np.ndarray], memory: str) -> Any:
    """Describe arrays as one of the kinds of memory that upstream takes; one alone is not put into a list."""
    make = here.upstream.Descriptor
    if memory == "tensor":
        import torch

        made = [make(torch.from_numpy(array)) for array in arrays]
    elif memory == "array":
        made = [make((array, "cpu")) for array in arrays]
    else:
        made = [make((array.ctypes.data, array.nbytes, "cpu", array)) for array in arrays]
    return made[0] if len(made) == 1 else made


async def expose_readable(
    here: Here, sizes: list[int], seed: int = 0, *, memory: str = "array", hex_encode: bool = False
) -> tuple[int, dict[str, Any]]:
    """Let a peer read patterns. Returns the number of what is kept, and the metadata."""
    arrays = [pattern(size, seed + index) for index, size in enumerate(sizes)]
    operation = await _connector(here, 1).create_readable(_descriptors(here, arrays, memory))
    return here.keep((operation, arrays)), operation.metadata(hex_encode).model_dump()


async def expose_writable(
    here: Here, sizes: list[int], *, memory: str = "array", hex_encode: bool = False
) -> tuple[int, dict[str, Any]]:
    """Let a peer write into blank memory."""
    arrays = [blank(size) for size in sizes]
    operation = await _connector(here, 1).create_writable(_descriptors(here, arrays, memory))
    return here.keep((operation, arrays)), operation.metadata(hex_encode).model_dump()


async def expose_again(here: Here, number: int) -> tuple[int, dict[str, Any]]:
    """End a kept operation, which takes its registration away, and let a peer read the same memory anew."""
    operation, arrays = here.kept.pop(number)
    with operation:
        pass
    operation = await _connector(here, 1).create_readable(_descriptors(here, arrays, "array"))
    return here.keep((operation, arrays)), operation.metadata().model_dump()


async def status(here: Here, number: int) -> str:
    """The status of a kept operation. For an active one upstream begins or polls the transfer at this question."""
    return str(here.kept[number][0].status)


async def wait(here: Here, number: int) -> str:
    """Wait for the end of a kept operation and return its status. It stays kept."""
    operation, _ = here.kept[number]
    await operation.wait_for_completion()
    return str(operation.status)


async def dispose(here: Here, number: int, seed: int = 0) -> bool:
    """End and forget a kept operation. Returns whether its memory holds the patterns."""
    operation, arrays = here.kept.pop(number)
    with operation:
        return all(is_pattern(array, seed + index) for index, array in enumerate(arrays))


async def begin_read(here: Here, metadata: dict[str, Any], *, agent: int = 1, memory: str = "array") -> int:
    """Connect to the owner and keep a read that upstream posts when it is first asked for its status."""
    remote = here.upstream.RdmaMetadata.model_validate(metadata)
    arrays = [blank(descriptor.size) for descriptor in remote.descriptors]
    operation = await _connector(here, agent).begin_read(remote, _descriptors(here, arrays, memory))
    return here.keep((operation, arrays))


async def read(
    here: Here, metadata: dict[str, Any], seed: int = 0, *, agent: int = 1, memory: str = "array"
) -> tuple[str, bool]:
    """Read all that is exposed. Returns the status, and whether the patterns arrived."""
    number = await begin_read(here, metadata, agent=agent, memory=memory)
    return await wait(here, number), await dispose(here, number, seed)


async def write(here: Here, metadata: dict[str, Any], seed: int = 0, *, memory: str = "array") -> str:
    """Write patterns to all that is exposed. Returns the status."""
    remote = here.upstream.RdmaMetadata.model_validate(metadata)
    arrays = [pattern(descriptor.size, seed + index) for index, descriptor in enumerate(remote.descriptors)]
    with await _connector(here, 1).begin_write(_descriptors(here, arrays, memory), remote) as operation:
        await operation.wait_for_completion()
        return str(operation.status)


async def notifications(here: Here, least: int = 0) -> list[bytes]:
    """All that the first agent has ever been notified of, as upstream keeps it; so many are waited for."""
    connection = await _connector(here, 1)._create_connection()

    def received() -> list[bytes]:
        return [message for messages in connection._nixl.update_notifs().values() for message in messages]

    await eventually(lambda: len(received()) >= least)
    return received()


async def settled(here: Here) -> None:
    """Let go of what is kept."""
    here.kept.clear()
