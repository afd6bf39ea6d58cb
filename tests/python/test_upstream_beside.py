"""Both packages in one process: what is of upstream's making is accepted, and what is shown reads alike."""

from __future__ import annotations

from pathlib import Path

import pytest

from support import beside, roles, upstream

pytestmark = [pytest.mark.nixl, pytest.mark.interop, pytest.mark.timeout(280)]

PACKAGE = Path(__file__).resolve().parents[2] / "python"


@pytest.fixture
def both(spawn, needs_upstream):
    """A worker in upstream's environment that finds our package, too."""
    worker = spawn(upstream.ENVIRONMENT | {"PYTHONPATH": str(PACKAGE)}, python=upstream.PYTHON)
    worker.call(upstream.start, limit=upstream.PATIENCE)
    return worker


def test_upstreams_instances_are_accepted(spawn, both):
    owner = spawn()
    number, metadata = owner.call(roles.expose_readable, [4096, 300], seed=1)
    assert both.call(beside.read_into_upstreams, metadata, seed=1)
    assert owner.call(roles.wait, number) == "DONE"
    number, metadata = owner.call(roles.expose_writable, [4096])
    assert both.call(beside.write_from_upstreams, metadata, seed=2) == "DONE"
    assert owner.call(roles.wait, number) == "DONE"
    assert owner.call(roles.dispose, number, seed=2)


def test_what_upstreams_descriptors_state_is_trusted(spawn, both):
    """Address, size and device; what they keep only says whether it may be written to and moved at all."""
    alike, refusals, stays = both.call(beside.stated)
    assert [ours for _, ours in alike] == [theirs for theirs, _ in alike]
    assert [next(word for word in ("read-only", "contiguous") if word in text) for text in refusals] == [
        "read-only",
        "read-only",
        "contiguous",
        "contiguous",
    ]
    assert stays
    owner = spawn()
    number, metadata = owner.call(roles.expose_readable, [4096], seed=3)
    assert both.call(beside.read_over_an_owner, metadata, seed=3)
    assert owner.call(roles.wait, number) == "DONE"


def test_the_classes_of_operations_are_alike(both):
    ours, theirs = both.call(beside.classes_of_operations)
    assert ours == theirs


def test_what_operations_show_reads_alike(spawn, both):
    owner = spawn()
    for sizes in ([64], [64, 32]):
        exposed = [owner.call(roles.expose_readable, sizes) for _ in range(2)]
        ours, theirs = both.call(beside.shown, [metadata for _, metadata in exposed])
        assert ours == theirs
        assert len(ours) == 4
        for number, _ in exposed:
            assert owner.call(roles.wait, number) == "DONE"
