"""How long it takes until one side of a transfer learns that the other has ended it.

Prints a table and writes `target/bench/endings.json` for `report.py`. The peer is this program itself, with a role. A
transfer of 1 GiB is caught in the middle each time; the clock starts before the call that ends it, or the SIGKILL, and
stops when the other side's `wait_for_completion` has raised. Both ends are on CLOCK_MONOTONIC, which the processes of a
host share. Where a `timeout` passes, the clock starts then. A lease ends an exposure that nobody comes for: the clock
starts when it has passed, and stops when the owner's `wait_for_completion` has raised.

Over the default transports and over TCP, or over those of `UCX_TLS` alone where that is set. Each row is measured in a
process of its own: UCX aborts an owner now and then whose reader is killed over TCP, and the row is measured anew then.
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

import numpy as np
from dynamo_nixl import Connector, Descriptor, RdmaMetadata
from dynamo_nixl.bench import machine
from dynamo_nixl.bench.peer.channel import Channel

GIB = 1 << 30
RESULT = Path("target/bench/endings.json")
EVENTS = [
    *(("reader", event) for event in ("cancel", "deadline", "close", "kill")),
    *(("owner", event) for event in ("cancel", "close")),
    ("nobody", "lease"),
]
"""Which side ends it, and how. `deadline`: its `timeout` passes."""
TIMEOUTS = {"tcp": 0.1}
"""Seconds after which a deadline comes in the middle, by transports."""
TIMEOUT = 0.03
LEASE = 0.1
ROUNDS = 15
ATTEMPTS = 3


async def _peer(channel: Channel) -> None:
    """Read what is exposed, and end it as told; or wait for it to be ended."""
    memory = np.empty(GIB, np.uint8)
    while (order := channel.receive()) is not None:
        connector = Connector()
        await connector.warmup()
        metadata = RdmaMetadata.model_validate_json(order["metadata"])
        timeout = TIMEOUTS.get(os.environ.get("UCX_TLS", ""), TIMEOUT) if order["event"] == "deadline" else None
        due = time.monotonic() + (timeout or 0)
        operation = await connector.begin_read(metadata, Descriptor(memory), timeout=timeout)
        # In the middle: some of it has moved.
        while operation.bytes_done < GIB // 50 and operation.error is None:  # noqa: ASYNC110 - nothing announces it
            await asyncio.sleep(0)
        channel.send("moving")
        if order["by"] == "reader":
            if timeout is not None:
                await _ended(operation)
            channel.send(due if timeout is not None else _end(operation, connector, order["event"]))
        else:
            channel.send(await _ended(operation))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(5):
                await operation.wait_quiesced()
        await connector.aclose()


def _end(operation: Any, connector: Connector, event: str) -> float:
    """End it, unless that is left to a SIGKILL. Give the moment before."""
    begun = time.monotonic()
    if event == "cancel":
        operation.cancel()
    elif event == "close":
        connector.close()
    return begun


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
    waiting = asyncio.ensure_future(_ended(operation)) if by == "reader" else None
    await asyncio.sleep(0)
    reader.channel.send({"metadata": operation.metadata().model_dump_json(), "event": event, "by": by})
    assert await loop.run_in_executor(None, reader.channel.receive) == "moving"
    if waiting is not None:
        begun = reader.kill() if event == "kill" else await loop.run_in_executor(None, reader.channel.receive)
        ended = await waiting
    else:
        begun = _end(operation, connector, event)
        ended = await loop.run_in_executor(None, reader.channel.receive)
    await connector.aclose()
    return float(ended - begun) * 1000


async def _expired(memory: Any) -> float:
    """Give the milliseconds of one round in which nobody comes."""
    async with Connector(grace=0) as connector:
        # Registered before, so that the lease does not begin with that.
        operation = await connector.create_readable(Descriptor(memory), lease=None)
        operation.metadata()
        waiting = asyncio.ensure_future(_ended(operation))
        await asyncio.sleep(0)
        over = time.monotonic() + LEASE
        operation.renew(LEASE)
        return float(await waiting - over) * 1000


async def _ended(operation: Any) -> float:
    """Give the moment at which an operation has ended, which must not be well."""
    try:
        await operation.wait_for_completion()
    except RuntimeError:
        return time.monotonic()
    raise SystemExit("the transfer was complete before it could be ended: not enough bytes for this machine")


def _rounds(by: str, event: str, count: int) -> list[float]:
    """Give the milliseconds of each round."""
    memory = np.ones(GIB, np.uint8)
    if event == "lease":
        return [asyncio.run(_expired(memory)) for _ in range(count)]
    times = []
    reader = _Reader()
    for _ in range(count):
        times.append(asyncio.run(_once(reader, memory, event, by)))
        if event == "kill":
            reader.end()
            reader = _Reader()
    reader.end()
    return times


def _measured(environment: dict[str, str], by: str, event: str, count: int) -> list[float]:
    """Have a process measure one row."""
    for _ in range(ATTEMPTS):
        mine, theirs = socket.socketpair()
        command = [sys.executable, __file__, "--rounds", str(count), "--row", by, event, str(theirs.fileno())]
        with subprocess.Popen(command, pass_fds=[theirs.fileno()], env=os.environ | environment) as process:
            theirs.close()
            times = Channel(mine).receive()
        if process.returncode == 0:
            return list(times)
        print(f"the owner ended with {process.returncode} (ended by the {by}: {event}); once more", file=sys.stderr)
    raise SystemExit(f"no row of {by}, {event} could be measured")


def main() -> None:
    """Measure every event in both directions."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"of each event (default: {ROUNDS})")
    parser.add_argument("--peer", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--row", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peer is not None:
        asyncio.run(_peer(Channel.of_descriptor(arguments.peer)))
        return
    if arguments.row is not None:
        by, event, descriptor = arguments.row
        Channel.of_descriptor(int(descriptor)).send(_rounds(by, event, arguments.rounds))
        return
    load = machine.load()
    given = os.environ.get("UCX_TLS")
    transports = {given: {}} if given else {"default": {}, "tcp": {"UCX_TLS": "tcp"}}
    rows = []
    for name, environment in transports.items():
        for by, event in EVENTS:
            times = sorted(_measured(environment, by, event, arguments.rounds))
            row = {"transports": name, "by": by, "event": event, "median": median(times), "worst": times[-1]}
            rows.append(row | {"rounds": len(times)})
            print(f"{name:8} {by:6} {event:8} median {row['median']:6.2f} ms  worst {row['worst']:6.2f} ms")
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    RESULT.write_text(json.dumps({"rows": rows, "machine": machine.describe(), "load": load}, indent=1))


if __name__ == "__main__":
    main()
