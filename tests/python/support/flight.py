"""Transfers caught in the middle: by stopping the owner's process, so that none of it depends on timing.

Over TCP a stopped owner moves nothing but what the sockets hold already, which is far less than `CERTAIN`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dynamo_nixl import RdmaMetadata

from support import roles
from support.memory import pattern

if TYPE_CHECKING:
    from support.here import Here
    from support.workers import Worker

TCP = {"UCX_TLS": "tcp"}
BIG = 256 << 20
CERTAIN = 64 << 20
"""So many bytes left to move mean that a transfer cannot end while its owner is stopped."""


def catch_read(owner: Worker, reader: Worker, seed: int = 0) -> tuple[int, int]:
    """Have a read of `BIG` bytes under way and the owner stopped. Returns both sides' numbers of what is kept."""
    return _catch(owner, reader, lambda: owner.call(roles.expose_readable, [BIG], seed=seed), roles.begin_read)


def catch_write(owner: Worker, writer: Worker) -> tuple[int, int]:
    """Have a write under way and the owner stopped."""
    return _catch(owner, writer, lambda: owner.call(roles.expose_writable, [BIG]), begin_write)


def _catch(owner: Worker, active: Worker, expose: Any, begin: Any) -> tuple[int, int]:
    # Connects the two, so that no transfer waits for a connection while the owner is stopped.
    number, metadata = owner.call(roles.expose_readable, [1])
    assert active.call(roles.read, metadata) == ("DONE", True)
    owner.call(roles.dispose, number)
    for _ in range(20):
        number, metadata = expose()
        begun = active.call(begin, metadata)
        owner.pause()
        if active.call(left, begun) > CERTAIN:
            return number, begun
        # It was too fast for us.
        owner.resume()
        active.call(roles.wait, begun)
        active.call(forget, begun)
        owner.call(forget, number)
    raise AssertionError("no transfer could be caught in the middle")


async def begin_write(here: Here, metadata: dict[str, Any]) -> int:
    """Begin to write, and keep the operation and its arrays."""
    remote = RdmaMetadata.model_validate(metadata)
    arrays = [pattern(descriptor.size) for descriptor in remote.descriptors]
    return here.keep((await here.connector.begin_write(roles.descriptors(arrays), remote), arrays))


async def left(here: Here, number: int) -> int:
    """How many bytes of a kept operation have not been moved."""
    native = here.kept[number][0]._native
    return int(native.bytes_total - native.bytes_done)


async def forget(here: Here, number: int) -> None:
    """Drop a kept operation and its arrays."""
    del here.kept[number]
