"""What importing the package brings in, and what it does not."""

from __future__ import annotations

import pytest

from support import scripts
from support.scripts import Ended

HEAVY = ["torch", "numpy", "cupy", "pydantic", "typer", "rich", "aiohttp", "nixl", "nixl_cu12", "nixl_cu13", "uvloop"]

PROGRAM = f"""
import sys
import dynamo_nixl
{{use}}
assert not set({HEAVY}) & set(sys.modules), sorted(sys.modules)
with open("/proc/self/maps") as maps:
    mapped = {{{{line.split()[-1] for line in maps if ".so" in line}}}}
assert not [path for path in mapped if "nixl" in path.lower() and "dynamo_nixl" not in path], mapped
assert not [path for path in mapped if "libuc" in path or "libfabric" in path], mapped
assert [path for path in mapped if "dynamo_nixl" in path], mapped
"""

USES = {
    "nothing": "",
    "a connector": "connector = dynamo_nixl.Connector('worker')",
    "a descriptor": "descriptor = dynamo_nixl.Descriptor(bytearray(5)), dynamo_nixl.Descriptor((4096, 5, 'cuda:0'))",
    "the public names": "[getattr(dynamo_nixl, name) for name in set(dynamo_nixl.__all__) & set(vars(dynamo_nixl))]",
}


@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_nothing_heavy_and_no_nixl(tmp_path, use):
    assert scripts.run(PROGRAM.format(use=use), tmp_path) == Ended(0, "", "")


def test_it_works_where_none_of_them_is_installed(tmp_path):
    """Any attempt to import one of them fails here."""
    source = f"""
        import sys
        for name in {HEAVY}:
            sys.modules[name] = None
        import dynamo_nixl
        assert str(dynamo_nixl.Connector("worker")) == "worker"
        assert dynamo_nixl.Descriptor(bytearray(5)).size == 5
    """
    assert scripts.run(source, tmp_path) == Ended(0, "", "")


def test_it_starts_no_thread(tmp_path):
    source = """
        import os
        import dynamo_nixl
        connector = dynamo_nixl.Connector()
        assert len(os.listdir("/proc/self/task")) == 1
    """
    assert scripts.run(source, tmp_path) == Ended(0, "", "")


def test_the_models_come_when_they_are_asked_for(tmp_path):
    source = """
        import sys
        import dynamo_nixl
        dynamo_nixl.RdmaMetadata, dynamo_nixl.SerializedDescriptor
        assert "pydantic" in sys.modules
        assert {"RdmaMetadata", "SerializedDescriptor"} <= set(dir(dynamo_nixl))
    """
    assert scripts.run(source, tmp_path) == Ended(0, "", "")
