"""We own the memory: upstream's nixl_connect reads and writes."""

from __future__ import annotations

import numpy as np
import pytest
from dynamo_nixl import Descriptor

from support import roles, upstream
from support.here import eventually, stats
from support.memory import blank, pattern

pytestmark = [pytest.mark.nixl, pytest.mark.interop, pytest.mark.timeout(280)]

KIB, MIB = 1 << 10, 1 << 20
SIZES = [[1], [4 * KIB], [MIB + 3], [64 * MIB], [1, 4 * KIB, MIB + 3], [64 * MIB, 7], [4 * KIB] * 100]


@pytest.mark.parametrize("sizes", SIZES, ids=lambda sizes: f"{len(sizes)}x{max(sizes)}")
def test_they_read(mixed, sizes):
    number, metadata = mixed.ours.call(roles.expose_readable, sizes, seed=3)
    assert mixed.theirs.call(upstream.read, metadata, seed=3) == ("DONE", True)
    assert mixed.ours.call(roles.wait, number) == "DONE"
    assert mixed.ours.call(roles.dispose, number, seed=3)


@pytest.mark.parametrize("sizes", SIZES, ids=lambda sizes: f"{len(sizes)}x{max(sizes)}")
def test_they_write(mixed, sizes):
    number, metadata = mixed.ours.call(roles.expose_writable, sizes)
    assert mixed.theirs.call(upstream.write, metadata, seed=5) == "DONE"
    assert mixed.ours.call(roles.wait, number) == "DONE"
    assert mixed.ours.call(roles.dispose, number, seed=5)


@pytest.mark.parametrize("memory", ["tensor", "array", "address"])
@pytest.mark.parametrize("hex_encode", [False, True], ids=["base64", "hex"])
@pytest.mark.parametrize("sizes", [[5000], [5000, 300]], ids=["single", "list"])
def test_memory_and_encodings(mixed, memory, hex_encode, sizes):
    number, metadata = mixed.ours.call(roles.expose_readable, sizes, seed=7, hex_encode=hex_encode)
    assert metadata["nixl_metadata"].startswith("b64:") is not hex_encode
    assert mixed.theirs.call(upstream.read, metadata, seed=7, memory=memory) == ("DONE", True)
    assert mixed.ours.call(roles.wait, number) == "DONE"

    number, metadata = mixed.ours.call(roles.expose_writable, sizes, hex_encode=hex_encode)
    assert metadata["nixl_metadata"].startswith("b64:") is not hex_encode
    assert mixed.theirs.call(upstream.write, metadata, seed=8, memory=memory) == "DONE"
    assert mixed.ours.call(roles.wait, number) == "DONE"
    assert mixed.ours.call(roles.dispose, number, seed=8)


def test_tensors_on_both_sides(mixed):
    number, metadata = mixed.ours.call(expose_tensor, "create_readable", pattern(12_000, 1))
    assert mixed.theirs.call(upstream.read, metadata, seed=1, memory="tensor") == ("DONE", True)
    assert mixed.ours.call(roles.wait, number) == "DONE"
    number, metadata = mixed.ours.call(expose_tensor, "create_writable", blank(12_000))
    assert mixed.theirs.call(upstream.write, metadata, seed=2, memory="tensor") == "DONE"
    assert mixed.ours.call(roles.wait, number) == "DONE"
    assert mixed.ours.call(roles.dispose, number, seed=2)


def test_overlapping_operations(mixed):
    """All that one connector of ours exposes is read and written at once by one agent of upstream's."""
    sizes = [1, 4 * KIB, MIB + 3, 5 * MIB] * 8
    readable = [mixed.ours.call(roles.expose_readable, [size], seed=seed) for seed, size in enumerate(sizes)]
    writable = [mixed.ours.call(roles.expose_writable, [size]) for size in sizes]
    waits = [mixed.ours.start(roles.wait, number) for number, _ in readable + writable]
    reads = [mixed.theirs.start(upstream.read, metadata, seed=seed) for seed, (_, metadata) in enumerate(readable)]
    writes = [mixed.theirs.start(upstream.write, metadata, seed=seed) for seed, (_, metadata) in enumerate(writable)]
    assert [call.result() for call in reads] == [("DONE", True)] * len(sizes)
    assert [call.result() for call in writes] == ["DONE"] * len(sizes)
    assert [call.result() for call in waits] == ["DONE"] * len(waits)
    assert all(mixed.ours.call(roles.dispose, number, seed=seed) for seed, (number, _) in enumerate(writable))


def test_both_directions_at_once(mixed):
    sizes = [4 * KIB, 5 * MIB] * 6
    mine = [mixed.ours.call(roles.expose_readable, [size], seed=seed) for seed, size in enumerate(sizes)]
    yours = [mixed.theirs.call(upstream.expose_readable, [size], seed=seed) for seed, size in enumerate(sizes)]
    reads = []
    for seed, ((_, exposed), (_, offered)) in enumerate(zip(mine, yours, strict=True)):
        reads.append(mixed.theirs.start(upstream.read, exposed, seed=seed))
        reads.append(mixed.ours.start(roles.read, offered, seed=seed))
    assert [call.result() for call in reads] == [("DONE", True)] * len(reads)
    assert [mixed.ours.call(roles.wait, number) for number, _ in mine] == ["DONE"] * len(sizes)
    assert [mixed.theirs.call(upstream.wait, number) for number, _ in yours] == ["DONE"] * len(sizes)


def test_exposures_that_come_and_go(mixed):
    """A peer that is connected anew for every operation, as upstream is, while our agent lives on."""
    for turn in range(20):
        number, metadata = mixed.ours.call(roles.expose_readable, [70_000], seed=turn)
        assert mixed.theirs.call(upstream.read, metadata, seed=turn) == ("DONE", True)
        assert mixed.ours.call(roles.wait, number) == "DONE"
        assert mixed.ours.call(roles.dispose, number, seed=turn)


def test_an_early_second_reader(mixed):
    """The second one ends while the first has only connected, and ends our operation."""
    number, metadata = mixed.ours.call(roles.expose_readable, [64 * MIB], seed=4)
    before = mixed.ours.call(roles.counters)
    first = mixed.theirs.call(upstream.begin_read, metadata, agent=1)
    assert mixed.ours.call(roles.status, number) == "INIT"
    assert mixed.theirs.call(upstream.read, metadata, seed=4, agent=2) == ("DONE", True)
    assert mixed.ours.call(roles.wait, number) == "DONE"
    assert mixed.theirs.call(upstream.wait, first) == "DONE"
    assert mixed.theirs.call(upstream.dispose, first, seed=4)
    # What the first sent is of an operation that has ended already.
    mixed.ours.call(wait_for_unknown, before["notifications_unknown"] + 1)
    assert mixed.ours.call(roles.counters)["notifications_matched"] == before["notifications_matched"] + 1
    assert mixed.ours.call(roles.status, number) == "DONE"


async def expose_tensor(here, method, array):
    import torch

    tensor = torch.from_numpy(array.view(np.float32).reshape(3, 1000))
    operation = await getattr(here.connector, method)(Descriptor(tensor))
    return here.keep((operation, [tensor.numpy()])), operation.metadata().model_dump()


async def wait_for_unknown(here, count):
    """Wait until so many notifications have come that no operation waits for."""
    await eventually(lambda: stats(here.connector)["notifications_unknown"] == count)
