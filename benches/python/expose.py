"""What exposing costs on the loop's thread, and how long its metadata gets: `expose.py ours|upstream` prints JSON.

The same code for both packages, each in its own interpreter. The descriptor is registered before the clock starts:
once with ours, and anew each time with upstream, whose operations undo it.
"""

from __future__ import annotations

import asyncio
import json
import sys
from importlib import import_module
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

# Upstream's interpreter does not have this package.
sys.path.append(str(Path(__file__).parents[2] / "python" / "dynamo_nixl" / "bench"))
from peer.case import summary
from peer.connect_side import MODULES

ITERATIONS = 300
WARM_UP = 20
GAPS_US = (0.0, 2000.0)
SIZE = 64 << 10
REGISTRATIONS = (1, 1_000, 10_000)


async def _measure(module: Any) -> dict[str, Any]:
    connector = module.Connector()
    connection = await connector._create_connection()
    descriptor = module.Descriptor((np.ones(SIZE, dtype=np.uint8), "cpu"))
    return {
        "size": SIZE,
        "times": [await _times(connector, connection, descriptor, gap) for gap in GAPS_US],
        "lengths": await _lengths(module, connector, connection, descriptor),
    }


async def _times(connector: Any, connection: Any, descriptor: Any, gap_us: float) -> dict[str, Any]:
    both, created, made = [], [], []
    for _ in range(ITERATIONS + WARM_UP):
        if not descriptor.is_registered:
            descriptor.register_with_connector(connection)
        await asyncio.sleep(gap_us / 1e6)
        start = perf_counter()
        operation = await connector.create_readable(descriptor)
        middle = perf_counter()
        operation.metadata()
        end = perf_counter()
        both.append((end - start) * 1e6)
        created.append((middle - start) * 1e6)
        made.append((end - middle) * 1e6)
        operation.__exit__(None, None, None)
    return {
        "gap_us": gap_us,
        "both": summary(both[WARM_UP:]),
        "create": summary(created[WARM_UP:]),
        "metadata": summary(made[WARM_UP:]),
    }


async def _lengths(module: Any, connector: Any, connection: Any, descriptor: Any) -> dict[int, int]:
    """Characters of the metadata of one region, among so many that are registered."""
    memory = bytearray(max(REGISTRATIONS) * 64)
    address = module.Descriptor(memory).ptr
    others: list[Any] = []
    lengths = {}
    for count in REGISTRATIONS:
        while len(others) < count - 1:
            other = module.Descriptor((address + 64 * len(others), 64, "cpu", memory))
            other.register_with_connector(connection)
            others.append(other)
        with await connector.create_readable(descriptor) as operation:
            lengths[count] = len(operation.metadata().nixl_metadata)
        if not descriptor.is_registered:
            descriptor.register_with_connector(connection)
    return lengths


if __name__ == "__main__":
    print(json.dumps(asyncio.run(_measure(import_module(MODULES[sys.argv[1]])))))
