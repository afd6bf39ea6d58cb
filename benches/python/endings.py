"""How long it takes until one side of a transfer learns that the other has ended it.

Prints a table and writes `target/bench/endings.json` for `report.py`. The peer is this program itself, with a role. A
transfer of 1 GiB is caught in the middle each time; the clock starts before the call that ends it, or the SIGKILL, and
stops when the other side's `wait_for_completion` has raised. Both ends are on CLOCK_MONOTONIC, which the processes of a
host share.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import machine
import numpy as np
from channel import Channel
from dynamo_nixl import Connector, Descriptor, RdmaMetadata

GIB = 1 << 30
RESULT = Path("target/bench/endings.json")
EVENTS = ("cancel", "deadline", "close", "kill")
"""How the one side ends it. `deadline`: its `timeout` passes."""


async def _peer(channel: Channel) -> None:
    """Read what is exposed, and end it as told; or wait for it to be ended."""
    memory = np.empty(GIB, np.uint8)
    while (order := channel.receive()) is not None:
        connector = Connector()
        await connector.warmup()
        metadata = RdmaMetadata.model_validate_json(order["metadata"])
        timeout = 0.03 if order["event"] == "deadline" and order["by"] == "reader" else None
        operation = await connector.begin_read(metadata, Descriptor(memory), timeout=timeout)
        # In the middle: some of it has moved.
        while operation.bytes_done < GIB // 50 and operation.error is None:  # noqa: ASYNC110 - nothing announces it
            await asyncio.sleep(0)
        channel.send("moving")
        if order["by"] == "reader":
            await _end(operation, connector, order["event"], channel)
        else:
            with contextlib.suppress(RuntimeError):
                await operation.wait_for_completion()
            channel.send(time.monotonic())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(5):
                await operation.wait_quiesced()
        await connector.aclose()


async def _end(operation: Any, connector: Connector, event: str, channel: Channel) -> None:
    if event == "deadline":
        with contextlib.suppress(RuntimeError):
            await operation.wait_for_completion()
        channel.send(time.monotonic())
        return
    begun = time.monotonic()
    if event == "cancel":
        operation.cancel()
    else:
        connector.close()
    channel.send(begun)


class _Reader:
    """The peer's process."""

    def __init__(self) -> None:
        mine, theirs = socket.socketpair()
        command = [sys.executable, __file__, "--peer", str(theirs.fileno())]
        environment = os.environ | {"UCX_LOG_LEVEL": "fatal", "NIXL_LOG_LEVEL": "FATAL"}
        self._process = subprocess.Popen(command, pass_fds=[theirs.fileno()], env=environment)
        theirs.close()
        self.channel = Channel(mine)

    def kill(self) -> float:
        begun = time.monotonic()
        self._process.send_signal(signal.SIGKILL)
        return begun

    def end(self) -> None:
        self.channel.close()
        self._process.wait(60)


async def _once(reader: _Reader, memory: Any, event: str, by: str) -> float:
    """Give the milliseconds of one round."""
    connector = Connector(grace=0)
    operation = await connector.create_readable(Descriptor(memory))
    loop = asyncio.get_running_loop()
    waiting = asyncio.ensure_future(_ended(operation))
    await asyncio.sleep(0)
    reader.channel.send({"metadata": operation.metadata().model_dump_json(), "event": event, "by": by})
    assert await loop.run_in_executor(None, reader.channel.receive) == "moving"
    if by == "reader":
        begun = reader.kill() if event == "kill" else await loop.run_in_executor(None, reader.channel.receive)
        ended = await waiting
    else:
        begun = time.monotonic()
        if event == "cancel":
            operation.cancel()
        else:
            connector.close()
        ended = await loop.run_in_executor(None, reader.channel.receive)
        await waiting
    await connector.aclose()
    return float(ended - begun) * 1000


async def _ended(operation: Any) -> float:
    with contextlib.suppress(RuntimeError):
        await operation.wait_for_completion()
    return time.monotonic()


def main() -> None:
    """Measure every event in both directions."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15, help="of each event (default: 15)")
    parser.add_argument("--peer", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peer is not None:
        asyncio.run(_peer(Channel.of_descriptor(arguments.peer)))
        return
    memory = np.ones(GIB, np.uint8)
    rows = []
    for by, events in (("reader", EVENTS), ("owner", ("cancel", "close"))):
        for event in events:
            times = []
            reader = _Reader()
            for _ in range(arguments.rounds):
                times.append(asyncio.run(_once(reader, memory, event, by)))
                if event == "kill":
                    reader.end()
                    reader = _Reader()
            reader.end()
            times.sort()
            row = {"by": by, "event": event, "median": median(times), "worst": times[-1], "rounds": len(times)}
            rows.append(row)
            print(f"{by:6} {event:8} median {row['median']:6.2f} ms  worst {row['worst']:6.2f} ms")
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    RESULT.write_text(json.dumps({"rows": rows, "machine": machine.describe(), "load": machine.load()}, indent=1))


if __name__ == "__main__":
    main()
