"""Upstream's nixl_connect owns the memory: we read and write, and tell it what its own class would, no more."""

from __future__ import annotations

import numpy as np
import pytest
from dynamo_nixl import Descriptor, RdmaMetadata

from support import roles, upstream
from support.memory import is_pattern, pattern

pytestmark = [pytest.mark.nixl, pytest.mark.interop, pytest.mark.timeout(280)]

KIB, MIB = 1 << 10, 1 << 20
SIZES = [[1], [4 * KIB], [MIB + 3], [64 * MIB], [1, 4 * KIB, MIB + 3], [64 * MIB, 7], [4 * KIB] * 100]


@pytest.mark.parametrize("sizes", SIZES, ids=lambda sizes: f"{len(sizes)}x{max(sizes)}")
def test_we_read(mixed, sizes):
    number, metadata = mixed.theirs.call(upstream.expose_readable, sizes, seed=3)
    assert mixed.ours.call(roles.read, metadata, seed=3) == ("DONE", True)
    assert mixed.theirs.call(upstream.wait, number) == "DONE"
    assert mixed.theirs.call(upstream.dispose, number, seed=3)


@pytest.mark.parametrize("sizes", SIZES, ids=lambda sizes: f"{len(sizes)}x{max(sizes)}")
def test_we_write(mixed, sizes):
    number, metadata = mixed.theirs.call(upstream.expose_writable, sizes)
    assert mixed.ours.call(roles.write, metadata, seed=5) == "DONE"
    assert mixed.theirs.call(upstream.wait, number) == "DONE"
    assert mixed.theirs.call(upstream.dispose, number, seed=5)


@pytest.mark.parametrize("memory", ["tensor", "array", "address"])
@pytest.mark.parametrize("hex_encode", [False, True], ids=["base64", "hex"])
@pytest.mark.parametrize("sizes", [[5000], [5000, 300]], ids=["single", "list"])
def test_memory_and_encodings(mixed, memory, hex_encode, sizes):
    options = {"memory": memory, "hex_encode": hex_encode}
    number, metadata = mixed.theirs.call(upstream.expose_readable, sizes, seed=7, **options)
    assert metadata["nixl_metadata"].startswith("b64:") is not hex_encode
    assert mixed.ours.call(roles.read, metadata, seed=7) == ("DONE", True)
    assert mixed.theirs.call(upstream.wait, number) == "DONE"
    assert mixed.theirs.call(upstream.dispose, number, seed=7)

    number, metadata = mixed.theirs.call(upstream.expose_writable, sizes, **options)
    assert metadata["nixl_metadata"].startswith("b64:") is not hex_encode
    assert mixed.ours.call(roles.write, metadata, seed=8) == "DONE"
    assert mixed.theirs.call(upstream.wait, number) == "DONE"
    assert mixed.theirs.call(upstream.dispose, number, seed=8)


def test_tensors_on_both_sides(mixed):
    number, metadata = mixed.theirs.call(upstream.expose_readable, [12_000], seed=1, memory="tensor")
    assert mixed.ours.call(read_into_a_tensor, metadata, seed=1)
    assert mixed.theirs.call(upstream.wait, number) == "DONE"
    number, metadata = mixed.theirs.call(upstream.expose_writable, [12_000], memory="tensor")
    assert mixed.ours.call(write_from_a_tensor, metadata, seed=2) == "DONE"
    assert mixed.theirs.call(upstream.wait, number) == "DONE"
    assert mixed.theirs.call(upstream.dispose, number, seed=2)


def test_overlapping_operations(mixed):
    """All that one agent exposes is read and written at once through one connector of ours."""
    sizes = [1, 4 * KIB, MIB + 3, 5 * MIB] * 8
    readable = [mixed.theirs.call(upstream.expose_readable, [size], seed=seed) for seed, size in enumerate(sizes)]
    writable = [mixed.theirs.call(upstream.expose_writable, [size]) for size in sizes]
    waits = [mixed.theirs.start(upstream.wait, number) for number, _ in readable + writable]
    reads = [mixed.ours.start(roles.read, metadata, seed=seed) for seed, (_, metadata) in enumerate(readable)]
    writes = [mixed.ours.start(roles.write, metadata, seed=seed) for seed, (_, metadata) in enumerate(writable)]
    assert [call.result() for call in reads] == [("DONE", True)] * len(sizes)
    assert [call.result() for call in writes] == ["DONE"] * len(sizes)
    assert [call.result() for call in waits] == ["DONE"] * len(waits)
    assert all(mixed.theirs.call(upstream.dispose, number, seed=seed) for seed, (number, _) in enumerate(writable))


def test_memory_that_is_registered_again_while_others_are_read(mixed):
    """Upstream sends all that its agent has registered, so that each metadata contradicts what was loaded before."""
    pool = [mixed.theirs.call(upstream.expose_readable, [70_000], seed=seed)[0] for seed in range(4)]
    for turn in range(5):
        # Long enough to be under way while the others come and go.
        big, metadata = mixed.theirs.call(upstream.expose_readable, [64 * MIB], seed=turn)
        reads = [mixed.ours.start(roles.read, metadata, seed=turn)]
        for seed, number in enumerate(pool):
            pool[seed], metadata = mixed.theirs.call(upstream.expose_again, number)
            reads.append(mixed.ours.start(roles.read, metadata, seed=seed))
        assert [call.result() for call in reads] == [("DONE", True)] * len(reads)
        assert [mixed.theirs.call(upstream.wait, number) for number in [big, *pool]] == ["DONE"] * (1 + len(pool))


def test_an_early_second_reader(mixed, spawn, transport):
    """Two of us read at once; which one ends upstream's operation is all the same."""
    second = spawn(transport)
    number, metadata = mixed.theirs.call(upstream.expose_readable, [64 * MIB], seed=4)
    reads = [worker.start(roles.read, metadata, seed=4) for worker in (mixed.ours, second)]
    assert [call.result() for call in reads] == [("DONE", True)] * 2
    assert mixed.theirs.call(upstream.wait, number) == "DONE"
    assert mixed.theirs.call(upstream.dispose, number, seed=4)


def test_a_read_that_nobody_awaits_is_notified_once(mixed):
    number, metadata = mixed.theirs.call(upstream.expose_readable, [MIB])
    before = mixed.theirs.call(upstream.notifications)
    mixed.ours.call(roles.begin_read, metadata)
    assert mixed.theirs.call(upstream.wait, number) == "DONE"
    mixed.ours.call(roles.settled)
    after = mixed.theirs.call(upstream.notifications)
    assert after.count(metadata["notification_key"].encode()) == 1
    assert len(after) == len(before) + 1


async def read_into_a_tensor(here, metadata, seed):
    import torch

    tensor = torch.zeros((3, 1000), dtype=torch.float32)
    with await here.connector.begin_read(RdmaMetadata.model_validate(metadata), Descriptor(tensor)) as operation:
        await operation.wait_for_completion()
    return is_pattern(tensor.numpy().view(np.uint8).ravel(), seed)


async def write_from_a_tensor(here, metadata, seed):
    import torch

    tensor = torch.from_numpy(pattern(12_000, seed).copy()).reshape(3, 4000)
    with await here.connector.begin_write(Descriptor(tensor), RdmaMetadata.model_validate(metadata)) as operation:
        await operation.wait_for_completion()
        return str(operation.status)
