"""A million operations: what two processes hold after them, against after the first ten thousand.

Prints a table and writes `target/bench/soak.json` for `report.py`. The owner is this program itself, with a role. Each
operation is an exposure of its own, over memory that is registered for it, and a read of 4 KiB that ends it.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
from dynamo_nixl import Connector, Descriptor, RdmaMetadata
from dynamo_nixl.bench import machine
from dynamo_nixl.bench.peer.channel import Channel

RESULT = Path("target/bench/soak.json")
SIZE = 4 << 10
BATCH = 500
FIRST, LAST = 10_000, 1_000_000
SETTLING = 2.0
"""Seconds: what ends is let go by another thread."""


async def _held(connector: Connector) -> dict[str, int]:
    """Tell what this process holds."""
    gc.collect()
    await asyncio.sleep(SETTLING)
    connection = await connector._create_connection()
    stats = connection._native.stats()
    return {
        "RSS, KiB": _resident(),
        "file descriptors": len(os.listdir("/proc/self/fd")),
        "threads": len(os.listdir("/proc/self/task")),
        "registrations": stats["regions"],
        "exposures": stats["exposures"],
        "transfers": stats["transfers"],
    }


def _resident() -> int:
    [line] = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1])


async def _own(channel: Channel) -> None:
    """Expose what is asked for, until nothing more is."""
    connector = Connector()
    memory = np.ones(BATCH * SIZE, np.uint8)
    loop = asyncio.get_running_loop()
    while (order := await loop.run_in_executor(None, channel.receive)) is not None:
        if order == "held":
            channel.send(await _held(connector))
            continue
        rows = (memory[start : start + SIZE] for start in range(0, len(memory), SIZE))
        operations = [await connector.create_readable(Descriptor(row)) for row in rows]
        channel.send([operation.metadata().model_dump() for operation in operations])
        for operation in operations:
            await operation.wait_for_completion()
        del operations, operation, rows


async def _read(channel: Channel, last: int) -> dict[str, Any]:
    connector = Connector()
    target = Descriptor(np.zeros(SIZE, np.uint8))
    held: dict[int, dict[str, dict[str, int]]] = {}
    begun = monotonic()
    for count in range(BATCH, last + 1, BATCH):
        channel.send("expose")
        for each in channel.receive():
            async with await connector.begin_read(RdmaMetadata.model_validate(each), target) as operation:
                await operation.wait_for_completion()
        del operation, each
        if count in (FIRST, last):
            channel.send("held")
            held[count] = {"owner": channel.receive(), "reader": await _held(connector)}
            print(f"{count:,} operations, {monotonic() - begun:.0f} s: {held[count]}", flush=True)
    return {"first": FIRST, "last": last, "before": held[FIRST], "after": held[last], "seconds": monotonic() - begun}


def main() -> None:
    """Run the soak, or play its owner."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--operations", type=int, default=LAST, help=f"a multiple of {BATCH} (default: {LAST:,})")
    parser.add_argument("--owner", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.owner is not None:
        asyncio.run(_own(Channel.of_descriptor(arguments.owner)))
        return
    if arguments.operations <= FIRST or arguments.operations % BATCH:
        parser.error(f"--operations must be more than {FIRST:,} and a multiple of {BATCH}")
    mine, theirs = socket.socketpair()
    command = [sys.executable, __file__, "--owner", str(theirs.fileno())]
    with subprocess.Popen(command, pass_fds=[theirs.fileno()]):
        theirs.close()
        channel = Channel(mine)
        result = asyncio.run(_read(channel, arguments.operations))
        channel.close()
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    RESULT.write_text(json.dumps(result | {"machine": machine.describe()}, indent=1))


if __name__ == "__main__":
    main()
