"""What NIXL does when a peer still holds metadata of memory that its owner has given up, and what we make of it.

Deregistering revokes nothing: the first tests show it, with a raw agent at each end. Should one of them fail with a new
NIXL, revocation has come, or access has become worse. The others show what two of our own peers get instead, and what
an owner of ours bears from a raw agent.
"""

from __future__ import annotations

import ctypes
import gc
import mmap
import signal
import weakref
from typing import TYPE_CHECKING, Any

import dynamo_nixl
import numpy as np
import pytest
from dynamo_nixl import Descriptor, RdmaMetadata

from support import foreign, roles
from support.memory import is_pattern, pattern

if TYPE_CHECKING:
    from support.here import Here
    from support.workers import Worker

pytestmark = [pytest.mark.nixl, pytest.mark.interop]

SIZE = 1 << 20
LONG_GRACE = {"DYNAMO_NIXL_GRACE": "600"}
PROT_NONE = 0


# Raw agents at both ends.


@pytest.fixture
def raw_owner(spawn, transport):
    worker = spawn(transport | foreign.ENVIRONMENT)
    worker.call(foreign.start)
    return worker


@pytest.fixture
def raw_peer(spawn, transport):
    worker = spawn(transport | foreign.ENVIRONMENT, loses_peers=True)
    worker.call(foreign.start)
    return worker


def test_a_late_read_of_deregistered_memory_gets_what_lies_there(raw_owner, raw_peer):
    """And nothing tells."""
    metadata = raw_owner.call(foreign.expose_readable, SIZE, seed=1)
    assert raw_peer.call(foreign.read, metadata, seed=1) == ("DONE", True)
    raw_owner.call(deregister, seed=2)
    assert raw_peer.call(foreign.read, metadata, seed=2) == ("DONE", True)


def test_a_late_write_to_deregistered_memory_lands(raw_owner, raw_peer):
    metadata = raw_owner.call(foreign.expose_writable, SIZE)
    assert raw_peer.call(foreign.write, metadata, seed=1) == "DONE"
    raw_owner.call(deregister, seed=2)
    assert raw_peer.call(foreign.write, metadata, seed=3) == "DONE"
    assert raw_owner.call(foreign.holds_pattern, seed=3)


@pytest.mark.parametrize("direction", ["READ", "WRITE"])
def test_a_late_access_to_unmapped_memory(raw_owner, raw_peer, transport, direction):
    """Over TCP it kills the owner; over shared memory it is an error at the peer."""
    metadata = raw_owner.call(register_a_mapping)
    assert raw_peer.call(foreign.read, metadata, seed=1) == ("DONE", True)
    raw_owner.call(unmap)
    assert raw_peer.call(access, direction, metadata) == "ERR"
    if transport:
        assert raw_owner.wait_for_death() == -signal.SIGSEGV
    else:
        assert raw_owner.call(foreign.receive_nothing_more)


def deregister(here: Here, seed: int | None = None) -> None:
    """Give up the memory that was registered last; with `seed`, put another pattern there."""
    here.foreign.agent.deregister_memory(here.foreign.registrations.pop())
    if seed is not None:
        here.foreign.arrays[-1][:] = pattern(SIZE, seed)


def register_a_mapping(here: Here) -> dict[str, Any]:
    """Register a mapping of its own, so that it can be unmapped."""
    array, _ = mapped(1)
    return here.foreign.metadata([here.foreign.register(array)], 1, None, in_hex=False)


def mapped(seed: int) -> tuple[np.ndarray, mmap.mmap]:
    """A pattern in a mapping of its own, which ends with the last reference."""
    mapping = mmap.mmap(-1, SIZE)
    array = np.frombuffer(mapping, dtype=np.uint8)
    array[:] = pattern(SIZE, seed)
    return array, mapping


def unmap(here: Here) -> None:
    """Deregister the mapping, and make a hole of it that nothing else is mapped into."""
    deregister(here)
    make_a_hole(here.foreign.arrays[-1].ctypes.data)


def make_a_hole(address: int) -> None:
    """Let nobody access these pages: as if they were unmapped, but for good."""
    assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(address), ctypes.c_size_t(SIZE), PROT_NONE) == 0


def access(here: Here, direction: str, metadata: dict[str, Any]) -> str:
    """Read or write all that is exposed. A failure is "ERR"."""
    array = here.foreign.register(pattern(SIZE, 3))
    try:
        return here.foreign.finish(here.foreign.begin(direction, [array], metadata))
    except Exception:
        return "ERR"


# Our own peers at both ends.


@pytest.mark.parametrize("use", ["held", "free", "exposed again"])
@pytest.mark.parametrize("end", ["complete", "cancelled"])
def test_a_late_read_of_ours_is_an_error(pair, end, use):
    """Whatever has become of the memory, what lies there is not handed out as complete."""
    number, metadata = pair.owner.call(expose, "create_readable")
    if end == "complete":
        assert pair.reader.call(roles.read, metadata, seed=1) == ("DONE", True)
    again = pair.owner.call(end_and_use, number, end, use)
    expected = "StaleMetadataError" if end == "complete" else "CancelledByPeerError"
    assert pair.reader.call(fail_to_move, "begin_read", metadata) == expected
    if again:
        assert pair.reader.call(roles.read, again, seed=2) == ("DONE", True)


@pytest.mark.parametrize("use", ["held", "free", "exposed again"])
@pytest.mark.parametrize("end", ["complete", "cancelled"])
def test_a_late_write_of_ours_is_refused_before_its_first_byte(pair, end, use):
    number, metadata = pair.owner.call(expose, "create_writable")
    if end == "complete":
        assert pair.reader.call(roles.write, metadata, seed=1) == "DONE"
    pair.owner.call(end_and_use, number, end, use)
    expected = "StaleMetadataError" if end == "complete" else "CancelledByPeerError"
    assert pair.reader.call(fail_to_move, "begin_write", metadata) == expected
    assert pair.owner.call(holds, 2)


async def expose(here: Here, how: str) -> tuple[int, dict[str, Any]]:
    """Let a peer use memory that stays where it is, whatever becomes of the operation."""
    here.array = pattern(SIZE, 1)
    operation = await getattr(here.connector, how)(Descriptor(here.array))
    return here.keep(operation), operation.metadata().model_dump()


async def end_and_use(here: Here, number: int, end: str, use: str) -> dict[str, Any] | None:
    """End the exposure, and give its memory another use; where it is exposed again, return the new metadata."""
    operation = here.kept.pop(number)
    if end == "complete":
        # The peer is done before its notification is heard here, and until then a cancel would be the end.
        await operation.wait_for_completion()
    operation.cancel()
    if use != "held":
        await operation.wait_quiesced()
    here.array[:] = pattern(SIZE, 2)
    if use != "exposed again":
        return None
    again = await here.connector.create_readable(Descriptor(here.array))
    here.keep(again)
    return dict(again.metadata().model_dump())


async def fail_to_move(here: Here, how: str, metadata: dict[str, Any]) -> str:
    """Begin what is bound to fail, and return the error's class."""
    remote, local = RdmaMetadata.model_validate(metadata), Descriptor(pattern(SIZE, 3))
    arguments = (remote, local) if how == "begin_read" else (local, remote)
    async with await getattr(here.connector, how)(*arguments) as operation:
        try:
            await operation.wait_for_completion()
        except dynamo_nixl.NixlConnectError as error:
            return type(error).__name__
        raise AssertionError(f"it ended as {operation.status}")


async def holds(here: Here, seed: int) -> bool:
    """Whether the memory holds what its owner put there."""
    return is_pattern(here.array, seed)


@pytest.mark.parametrize(("expose", "begin"), [("create_readable", "begin_read"), ("create_writable", "begin_write")])
def test_a_late_access_of_ours_to_unmapped_memory_harms_nobody(pair, expose, begin):
    """Neither the owner nor the connection, which other transfers use."""
    metadata = pair.owner.call(expose_a_mapping, expose)
    pair.owner.call(end_the_mapping)
    assert pair.reader.call(fail_to_move, begin, metadata) == "CancelledByPeerError"
    still_serves(pair.owner, pair.reader)


@pytest.mark.parametrize("direction", ["READ", "WRITE"])
def test_within_the_grace_an_owner_of_ours_bears_a_late_foreign_access(spawn, raw_peer, transport, direction):
    """The memory of what was given up stays mapped: nobody else gets it, and nothing crashes."""
    owner = spawn(transport | {"DYNAMO_NIXL_GRACE": "600"})
    metadata = owner.call(expose_a_mapping, "create_readable")
    owner.call(give_up)
    assert raw_peer.call(access, direction, metadata) == "DONE"
    assert owner.call(still_maps, 3 if direction == "WRITE" else 1)
    still_serves(owner, raw_peer, by=foreign.read)


def still_serves(owner: Worker, peer: Worker, by: Any = roles.read) -> None:
    """Move something else between the two."""
    number, metadata = owner.call(roles.expose_readable, [SIZE], seed=9)
    assert peer.call(by, metadata, seed=9) == ("DONE", True)
    assert owner.call(roles.wait, number) == "DONE"
    owner.call(roles.dispose, number, 9)


async def expose_a_mapping(here: Here, how: str) -> dict[str, Any]:
    """Let a peer use a mapping that nothing but the operation refers to."""
    array, mapping = mapped(1)
    here.address, here.mapping = array.ctypes.data, weakref.ref(mapping)
    here.exposure = await getattr(here.connector, how)(Descriptor(array))
    return dict(here.exposure.metadata().model_dump())


async def end_the_mapping(here: Here) -> None:
    """End the exposure, and once its memory is free, make a hole of it."""
    mapping = here.mapping()
    here.exposure.cancel()
    await here.exposure.wait_quiesced()
    here.exposure = None
    make_a_hole(here.address)
    # Nothing may be mapped into the hole.
    here.keep(mapping)


async def give_up(here: Here) -> None:
    """Drop the exposure, and with it all that refers to the mapping from outside of the core."""
    here.exposure = None
    gc.collect()


async def still_maps(here: Here, seed: int) -> bool:
    """Whether the mapping is there still, and holds the pattern."""
    mapping = here.mapping()
    return mapping is not None and is_pattern(mapping, seed)
