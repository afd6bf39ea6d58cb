"""Operations that end otherwise than well: what tests have workers do, and how an end is told.

An end is the class of the error that a waiter gets, None for none, and the status. `docs/protocol.md` lists which
follows from what; the names here are used wherever a test states one.
"""

from __future__ import annotations

import asyncio
import os
import time
from typing import TYPE_CHECKING, Any

import dynamo_nixl
import numpy as np
from dynamo_nixl import Connector, Descriptor, NixlConnectError, RdmaMetadata

from support.here import eventually, stats
from support.memory import blank, pattern

if TYPE_CHECKING:
    from support.here import Here
    from support.workers import Worker

End = tuple[str | None, str]

DONE: End = (None, "DONE")
STOPPED: End = (None, "STOP")
"""Of one's own will."""
CANCELLED_BY_PEER: End = ("CancelledByPeerError", "STOP")
LEASE_EXPIRED: End = ("LeaseExpiredError", "ERR")
STALE: End = ("StaleMetadataError", "ERR")
TIMED_OUT: End = ("TransferTimeoutError", "ERR")
FAILED: End = ("TransferError", "ERR")
PEER_LOST: End = ("PeerLostError", "ERR")
CLOSED: End = ("ConnectorClosedError", "ERR")
QUARANTINED: End = ("QuarantineFullError", "ERR")

KINDS = ("read", "write")
"""Which way the bytes move, seen from the active side."""
HUGE = 1 << 30
"""Bytes that take hundreds of milliseconds over every transport. They are zeros, most of which no RAM is spent on."""
WARM = 8 << 20
"""Bytes of a transfer that all lanes carry out, after which both sides have all the threads that they will have."""


def _memory(size: int, seed: int | None, *, is_source: bool) -> np.ndarray:
    if seed is None:
        # They cost RAM only where they are written to.
        return np.zeros(size, dtype=np.uint8)
    return pattern(size, seed) if is_source else blank(size)


async def use_settings(here: Here, **settings: Any) -> None:
    """Work with a connector of these settings from now on."""
    here.connector = Connector(**settings)


async def expose(
    here: Here, kind: str, size: int, seed: int | None = None, **options: Any
) -> tuple[int, dict[str, Any]]:
    """Let a peer read a pattern or write into blank memory, both zeros without a seed. Returns as `roles` does."""
    array = _memory(size, seed, is_source=kind == "read")
    create = here.connector.create_readable if kind == "read" else here.connector.create_writable
    operation = await create(Descriptor(array), **options)
    return here.keep((operation, [array])), operation.metadata().model_dump()


async def begin(here: Here, metadata: dict[str, Any], seed: int | None = None, **options: Any) -> int:
    """Begin the transfer that the metadata is for, and keep the operation and its array."""
    remote = RdmaMetadata.model_validate(metadata)
    (size,) = [descriptor.size for descriptor in remote.descriptors]
    array = _memory(size, seed, is_source=remote.operation_kind == 2)
    if remote.operation_kind == 1:
        operation = await here.connector.begin_read(remote, Descriptor(array), **options)
    else:
        operation = await here.connector.begin_write(Descriptor(array), remote, **options)
    return here.keep((operation, [array]))


async def ended(here: Here, number: int) -> End:
    """Wait until a kept operation has ended, however that is."""
    operation, _ = here.kept[number]
    return await _end_of(operation)


async def _end_of(operation: Any) -> End:
    try:
        await operation.wait_for_completion()
    except NixlConnectError as error:
        assert str(operation.error) == str(error)
        return type(error).__name__, str(operation.status)
    assert operation.error is None
    return None, str(operation.status)


async def attempt(here: Here, metadata: dict[str, Any], seed: int | None = None, **options: Any) -> End:
    """Carry out the transfer that the metadata is for, be it that beginning it fails."""
    try:
        number = await begin(here, metadata, seed, **options)
    except NixlConnectError as error:
        # There is no operation, and so no status either; it would be this one.
        status = "STOP" if isinstance(error, dynamo_nixl.CancelledByPeerError) else "ERR"
        return type(error).__name__, status
    operation, _ = here.kept.pop(number)
    return await _end_of(operation)


async def error_text(here: Here, number: int) -> str:
    """What the error of a kept operation says."""
    return str(here.kept[number][0].error)


async def status(here: Here, number: int) -> str:
    """The status of a kept operation."""
    return str(here.kept[number][0].status)


async def cancel(here: Here, number: int) -> str:
    """Cancel a kept operation and return its status."""
    operation, _ = here.kept[number]
    operation.cancel()
    return str(operation.status)


async def drop(here: Here, number: int) -> None:
    """Drop the last reference to a kept operation; its array goes with it."""
    del here.kept[number]


async def renew(here: Here, number: int, lease: float | None) -> None:
    """Renew the lease of a kept operation."""
    here.kept[number][0].renew(lease)


async def is_quiesced(here: Here, number: int) -> bool:
    """Whether the wire is done with the memory of a kept operation."""
    return bool(here.kept[number][0].is_quiesced)


async def wait_quiesced(here: Here, number: int) -> bool:
    """Wait until it is."""
    operation, _ = here.kept[number]
    await operation.wait_quiesced()
    return bool(operation.is_quiesced)


async def close(here: Here, deadline: float = 5.0) -> None:
    """Close the worker's connector; what was kept stays."""
    connector, here.connector = here.connector, None
    await connector.aclose(deadline=deadline)


async def hears(here: Here, more_than: int) -> int:
    """Wait until so many messages of peers have come, and return how many."""
    await eventually(lambda: stats(here.connector)["messages_received"] > more_than)
    return stats(here.connector)["messages_received"]


async def messages(here: Here) -> int:
    """How many messages of peers have come."""
    return stats(here.connector).get("messages_received", 0)


async def counts(here: Here, name: str, value: int) -> int:
    """Wait until a counter has a value."""
    await eventually(lambda: stats(here.connector)[name] == value)
    return stats(here.connector)[name]


def serve(owner: Worker, active: Worker, size: int = WARM) -> None:
    """Have one transfer from one to the other, of what takes a lane."""
    for _ in range(2):
        for kind in KINDS:
            number, metadata = owner.call(expose, kind, size, seed=6)
            assert active.call(attempt, metadata, seed=6) == DONE
            assert owner.call(ended, number) == DONE
            owner.call(drop, number)
        if active.call(all_lanes_were_open):
            break


async def all_lanes_were_open(here: Here) -> bool:
    """Wait until the agents are there that move big transfers' bytes. Whether they have been all the time."""
    cores = len(os.sched_getaffinity(0))
    expected = os.environ.get("DYNAMO_NIXL_COPY_LANES", 0 if cores == 1 else min(cores, 4))
    if here.connector._faults is not None:
        # With faults there are none.
        expected = 0

    def are_open() -> bool:
        return stats(here.connector)["copy_lanes"] == int(expected)

    if are_open():
        return True
    await eventually(are_open)
    return False


def catch(
    owner: Worker,
    active: Worker,
    kind: str,
    *,
    size: int = HUGE,
    lease: float | None = 600.0,
    timeout: float | None = None,
) -> tuple[int, int]:
    """Have a transfer in the middle, and its active side stopped. Returns both sides' numbers of what is kept.

    That works over every transport, also where bytes move without the owner: the active side posts each piece. It is in
    the middle, since the owner has heard its hello, which goes before the first byte, and has not heard of its end.
    """
    serve(owner, active, WARM)
    for _ in range(20):
        heard = owner.call(messages)
        number, metadata = owner.call(expose, kind, size, lease=lease)
        begun = active.call(begin, metadata, timeout=timeout)
        owner.call(hears, heard)
        active.pause()
        # What was on its way has come by then.
        time.sleep(0.1)
        if owner.call(status, number) == "INIT":
            return number, begun
        # It was too fast for us.
        active.resume()
        for worker, kept in ((active, begun), (owner, number)):
            worker.call(ended, kept)
            worker.call(drop, kept)
    raise AssertionError("no transfer could be caught in the middle")


async def still(here: Here, seconds: float) -> None:
    """Let time pass on the worker's loop."""
    await asyncio.sleep(seconds)


async def is_well(here: Here) -> bool:
    """Answer, unless the process is dead."""
    return True
