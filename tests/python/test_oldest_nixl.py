"""The oldest supported NIXL, with itself, with the newest, and with upstream on the newest."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from support import roles, upstream

pytestmark = [pytest.mark.nixl, pytest.mark.timeout(280)]

ROOT = Path(__file__).resolve().parents[2]
TARGET = ROOT / ".cache" / "nixl-1.4.1"
LIBRARY = TARGET / ".nixl_cu12.mesonpy.libs" / "libnixl_capi.so"


@pytest.fixture(scope="module")
def oldest():
    """The environment that chooses it. `make test` has installed it already."""
    if not LIBRARY.is_file():
        plain = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
        made = subprocess.run(
            ["make", "peers-nixl141"], cwd=ROOT, env=plain, capture_output=True, text=True, check=False
        )
        assert LIBRARY.is_file(), made.stdout + made.stderr
    return {"DYNAMO_NIXL_LIBRARY": str(LIBRARY)}


@pytest.mark.parametrize("sides", ["both", "owner", "reader"])
def test_operations(spawn, transport, oldest, sides):
    owner = spawn(transport | (oldest if sides in ("both", "owner") else {}))
    reader = spawn(transport | (oldest if sides in ("both", "reader") else {}))
    for size in (1, 4096, 5 << 20):
        number, metadata = owner.call(roles.expose_readable, [size, size], seed=1)
        assert reader.call(roles.read, metadata, seed=1) == ("DONE", True)
        assert owner.call(roles.wait, number) == "DONE"
        number, metadata = owner.call(roles.expose_writable, [size])
        assert reader.call(roles.write, metadata, seed=2) == "DONE"
        assert owner.call(roles.wait, number) == "DONE"
        assert owner.call(roles.dispose, number, seed=2)
    assert [worker.call(mapped_nixl) for worker in (owner, reader)] == [
        ["nixl-1.4.1"] if sides in ("both", "owner") else ["site-packages"],
        ["nixl-1.4.1"] if sides in ("both", "reader") else ["site-packages"],
    ]


@pytest.mark.interop
def test_with_upstream(spawn, spawn_upstream, transport, oldest):
    """Ours on the oldest, upstream on the newest; each owns, reads and writes."""
    ours, theirs = spawn(transport | oldest), spawn_upstream(transport)
    for size in (1, 4096, 5 << 20):
        number, metadata = ours.call(roles.expose_readable, [size, size], seed=1)
        assert theirs.call(upstream.read, metadata, seed=1) == ("DONE", True)
        assert ours.call(roles.wait, number) == "DONE"
        number, metadata = ours.call(roles.expose_writable, [size])
        assert theirs.call(upstream.write, metadata, seed=2) == "DONE"
        assert ours.call(roles.wait, number) == "DONE"
        assert ours.call(roles.dispose, number, seed=2)
        number, metadata = theirs.call(upstream.expose_readable, [size, size], seed=3)
        assert ours.call(roles.read, metadata, seed=3) == ("DONE", True)
        assert theirs.call(upstream.wait, number) == "DONE"
        number, metadata = theirs.call(upstream.expose_writable, [size])
        assert ours.call(roles.write, metadata, seed=4) == "DONE"
        assert theirs.call(upstream.wait, number) == "DONE"
        assert theirs.call(upstream.dispose, number, seed=4)
    assert ours.call(mapped_nixl) == ["nixl-1.4.1"]


async def mapped_nixl(here):
    """Which installations the NIXL libraries in this process are from: only one may be mixed in."""
    with open("/proc/self/maps", encoding="utf-8") as maps:
        paths = {Path(line.split(maxsplit=5)[5].strip()) for line in maps if ".nixl_cu1" in line}
    return sorted({parent.parent.name for path in paths for parent in path.parents if parent.name.startswith(".nixl_")})


def test_the_demo(oldest):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("UCX_LOG")}
    demo = subprocess.run(
        [sys.executable, "-m", "dynamo_nixl", "demo", "--json", "--size", "1M"],
        env=environment | oldest,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (demo.returncode, demo.stderr) == (0, "")
    assert "1.4.1" in json.loads(demo.stdout)["nixl"]
