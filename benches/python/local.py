"""What one process of ours costs by itself: `local.py import|create|idle` prints JSON.

Each runs in an interpreter of its own, so that nothing measured before lingers.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from statistics import median
from time import perf_counter, process_time
from typing import Any

import numpy as np
from dynamo_nixl.bench.peer.case import summary

INTERPRETERS = 15
IMPORT = """
import asyncio, pydantic
from time import perf_counter
start = perf_counter()
import dynamo_nixl
print((perf_counter() - start) * 1000)
"""

KIB, MIB = 1 << 10, 1 << 20
EXPOSURES = 1000
QUIET = 1.0
WINDOW = 5.0


def measure_import() -> dict[str, Any]:
    """Time the import in fresh interpreters that have pydantic and asyncio already."""
    times = []
    for _ in range(INTERPRETERS):
        done = subprocess.run([sys.executable, "-c", IMPORT], check=True, capture_output=True, text=True)
        times.append(float(done.stdout))
    return {"interpreters": INTERPRETERS, "median_ms": median(times), "least_ms": min(times), "most_ms": max(times)}


async def measure_create() -> list[dict[str, Any]]:
    """Time the making of an exposure and of its metadata, as the loop that awaits them sees it."""
    import dynamo_nixl

    connector = dynamo_nixl.Connector()
    results = []
    for size, count in ((4 * KIB, 200), (64 * KIB, 200), (MIB, 100), (256 * MIB, 10)):
        created, made = [], []
        # Each time other memory, as far as there is any, all of which has been touched.
        memory = np.ones(max(256 * MIB, size), dtype=np.uint8)
        for number in range(count + 3):
            start_of_it = number * size % len(memory)
            descriptor = dynamo_nixl.Descriptor(memory[start_of_it : start_of_it + size])
            start = perf_counter()
            operation = await connector.create_readable(descriptor)
            middle = perf_counter()
            operation.metadata()
            end = perf_counter()
            created.append((middle - start) * 1e6)
            made.append((end - middle) * 1e6)
            operation.__exit__()
            # What ends is deregistered in the background; the next one must not find it registered still.
            await asyncio.sleep(0.005)
        results.append({"size": size, "create": summary(created[3:]), "metadata": summary(made[3:])})
    return results


async def measure_idle() -> dict[str, float]:
    """Measure the processor time of a process that waits, in percent of one core.

    By the clock of the process's processor time: what /proc/self/stat counts in ticks of 10 ms, in nanoseconds.
    """
    import dynamo_nixl

    owner, reader = dynamo_nixl.Connector(), dynamo_nixl.Connector()
    memory, destination = np.ones((EXPOSURES, 4 * KIB), dtype=np.uint8), np.zeros(4 * KIB, dtype=np.uint8)
    operations = [await owner.create_readable(dynamo_nixl.Descriptor(row)) for row in memory]
    results = {"exposed": await _percent()}
    for operation in operations[1:]:
        operation.__exit__()
    transfer = await reader.begin_read(operations[0].metadata(), dynamo_nixl.Descriptor(destination))
    await transfer.wait_for_completion()
    # A second agent with a loaded peer, and here one registered range: a late reader could still come.
    results["attached"] = await _percent()
    operations[0].__exit__()
    del transfer, reader
    results["detached"] = await _percent()
    return results


async def _percent() -> float:
    await asyncio.sleep(QUIET)
    wall, processor = perf_counter(), process_time()
    await asyncio.sleep(WINDOW)
    return 100 * (process_time() - processor) / (perf_counter() - wall)


def main() -> None:
    """Print what was asked for."""
    match sys.argv[1:]:
        case ["import"]:
            result: Any = measure_import()
        case ["create"]:
            result = asyncio.run(measure_create())
        case ["idle"]:
            result = asyncio.run(measure_idle())
        case _:
            raise SystemExit(__doc__)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
