"""What an event loop feels of transfers: how long they hold it, how late its timers are, what small ones wait for.

Prints JSON, and writes it to `target/bench/loop.json` for `report.py`. The peer is this program itself, with a role.

- **held**: one step of the loop, the longest of all callbacks between two looks at the file descriptors.
- **lag**: a ticker of 1 ms, how late it is; Python rounds a loop's timers up to whole milliseconds, so up to one is
  there without any transfer: `idle` says how much.
- **bare wake**: another process writes to an eventfd that the loop watches, until the waiting task goes on.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from time import monotonic_ns
from typing import TYPE_CHECKING, Any

from dynamo_nixl import Connector, Descriptor, OperationStatus, RdmaMetadata
from dynamo_nixl.bench import machine
from dynamo_nixl.bench.cases import CADENCES
from dynamo_nixl.bench.peer.arena import allocate
from dynamo_nixl.bench.peer.case import summary
from dynamo_nixl.bench.peer.channel import Channel

if TYPE_CHECKING:
    from collections.abc import Coroutine, Generator

    import numpy as np

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
RESULT = Path("target/bench/loop.json")
SMALL = 4 * KIB
WAKES = 200
WARMING = 2.0


class Timed:
    """Awaits a coroutine, and counts the time that it holds the loop's thread."""

    def __init__(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        self._coroutine = coroutine
        self.microseconds = 0.0

    def __await__(self) -> Generator[Any, Any, Any]:
        """Step through the coroutine."""
        while True:
            begin = monotonic_ns()
            try:
                future = self._coroutine.send(None)
            except StopIteration as end:
                return end.value
            finally:
                self.microseconds += (monotonic_ns() - begin) / 1000
            yield future


@contextmanager
def callbacks() -> Generator[list[float]]:
    """Note how long each callback of any loop takes, in microseconds.

    What is to be timed has to run in a task of its own: the step of one that is under way is no callback any more.
    """
    times: list[float] = []
    run = asyncio.Handle._run

    def timed(handle: asyncio.Handle) -> None:
        begin = monotonic_ns()
        run(handle)
        times.append((monotonic_ns() - begin) / 1000)

    asyncio.Handle._run = timed  # type: ignore[method-assign]
    try:
        yield times
    finally:
        asyncio.Handle._run = run  # type: ignore[method-assign]


class Owner:
    """The peer's process."""

    def __init__(self) -> None:
        mine, theirs = socket.socketpair()
        self.bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_SEMAPHORE)
        numbers = [theirs.fileno(), self.bell]
        command = [sys.executable, __file__, "--peer", *map(str, numbers)]
        self._process = subprocess.Popen(command, pass_fds=numbers)
        theirs.close()
        self.channel = Channel(mine)

    def expose(self, *sizes: int, is_new: bool = False) -> list[RdmaMetadata]:
        """Have memory exposed, by a connector that nobody has met if that is asked for."""
        return [RdmaMetadata.model_validate(each) for each in self.ask("expose", sizes, is_new)]

    def ask(self, *order: Any) -> Any:
        """Give an order and wait for the answer."""
        self.channel.send(order)
        return self.channel.receive()

    def end(self) -> None:
        """Let it go."""
        self.channel.close()
        self._process.wait(60)


async def _serve(channel: Channel, bell: int) -> None:
    loop = asyncio.get_running_loop()
    connector = Connector()
    big, small, start = _memory(GIB), _memory(256 * MIB), 0
    kept: list[Any] = []
    while (order := await loop.run_in_executor(None, channel.receive)) is not None:
        match order:
            case ["expose", [*sizes], bool() as is_new]:
                kept.clear()
                if is_new:
                    connector = Connector()
                ahead = 0
                for size in sizes:
                    # What is exposed anew gets new keys, for which a reader that is at work has to wait. So small ones
                    # get memory that was not exposed before, as long as there is any.
                    if size > MIB:
                        memory, ahead = big[ahead:], ahead + size
                    else:
                        start = start if start + size <= len(small) else 0
                        memory, start = small[start:], start + size
                    kept.append(await connector.create_readable(Descriptor(memory[:size])))
                channel.send([each.metadata().model_dump() for each in kept])
            case ["ring", float() as gap_us, int() as count]:
                channel.send([_ring(bell, gap_us) for _ in range(count)])


def _memory(size: int) -> np.ndarray:
    """Memory with ordinary pages, as that of most tensors, all of which exists."""
    memory = allocate(size, huge=False)
    memory[:] = 1
    return memory


def _ring(bell: int, gap_us: float) -> int:
    time.sleep(gap_us / 1e6)
    begin = monotonic_ns()
    os.eventfd_write(bell, 1)
    return begin


async def _read(connector: Connector, metadata: RdmaMetadata, target: Descriptor) -> float:
    """Give the microseconds of one read."""
    begin = monotonic_ns()
    async with await connector.begin_read(metadata, target) as operation:
        await operation.wait_for_completion()
        return (monotonic_ns() - begin) / 1000


async def _warm_up(connector: Connector, owner: Owner) -> None:
    """Have a first big transfer make the agents that copy, which it does not wait for itself."""
    await _read(connector, owner.expose(64 * MIB)[0], Descriptor(_memory(64 * MIB)))
    await asyncio.sleep(WARMING)


async def creation() -> dict[str, Any]:
    """Make connectors; the first one also loads NIXL."""
    held, took = [], []

    async def make() -> Connector:
        begin = monotonic_ns()
        connector = Connector()
        await connector.warmup()
        took.append((monotonic_ns() - begin) / 1000)
        return connector

    for _ in range(5):
        with callbacks() as times:
            connector = await asyncio.create_task(make())
            await asyncio.sleep(0)
        held.append(max(times))
        await connector.aclose()
    return {"first_held": held[0], "held": summary(held[1:]), "took": summary(took)}


async def first_contact(owner: Owner) -> dict[str, Any]:
    """Read 4 KiB from peers that were never met."""
    async with Connector() as connector:
        await connector.warmup()
        target = Descriptor(_memory(SMALL))
        held, took = [], []
        for _ in range(10):
            [metadata] = owner.expose(SMALL, is_new=True)
            await asyncio.sleep(0.01)
            with callbacks() as times:
                took.append(await asyncio.create_task(_read(connector, metadata, target)))
                await asyncio.sleep(0)
            held.append(max(times))
        return {"held": summary(held), "took": summary(took)}


async def begin_alone(owner: Owner) -> list[dict[str, Any]]:
    """Begin reads that are too big for the loop's thread."""
    async with Connector() as connector:
        await _warm_up(connector, owner)
        rows = []
        for size in (MIB, 64 * MIB):
            target = Descriptor(_memory(size))
            for cadence in ("hot", "cold"):
                held = []
                for metadata in owner.expose(*[size] * (16 if size > MIB else 100)):
                    if CADENCES[cadence]:
                        await asyncio.sleep(CADENCES[cadence] / 1e6)
                    begin = Timed(connector.begin_read(metadata, target))
                    async with await begin as operation:
                        await operation.wait_for_completion()
                    held.append(begin.microseconds)
                rows.append({"size": size, "cadence": cadence, "held": summary(held[3:])})
        return rows


async def lag(owner: Owner) -> dict[str, Any]:
    """Tick each millisecond, without transfers and with four of 256 MiB under way."""
    size = 256 * MIB
    async with Connector() as connector:
        await _warm_up(connector, owner)
        targets = [Descriptor(_memory(size)) for _ in range(4)]
        for target in targets:
            await _read(connector, owner.expose(size)[0], target)
        idle = await _ticks(asyncio.sleep(1))
        late: list[float] = []
        held: list[float] = []
        for _ in range(10):
            exposed = owner.expose(*[size] * 4)
            reads = [_read(connector, *each) for each in zip(exposed, targets, strict=True)]
            with callbacks() as times:
                late += await _ticks(asyncio.gather(*reads))
            held.append(max(times))
        return {"idle": summary(idle), "busy": summary(late), "held": summary(held)}


async def _ticks(until: Any) -> list[float]:
    """Give how late a ticker was, in microseconds, until something has ended."""
    work = asyncio.ensure_future(until)
    late = []
    loop = asyncio.get_running_loop()
    due = loop.time()
    while not work.done():
        due += 0.001
        await asyncio.sleep(due - loop.time())
        late.append(max(0.0, loop.time() - due) * 1e6)
        # Each tick that was missed was late, too.
        while due + 0.001 < loop.time():
            due += 0.001
            late.append((loop.time() - due) * 1e6)
    await work
    return late


async def small_among_big(owner: Owner) -> dict[str, Any]:
    """Read 4 KiB now and then while 1 GiB comes from the same peer, and without it."""
    async with Connector() as connector:
        await _warm_up(connector, owner)
        big, small = Descriptor(_memory(GIB)), Descriptor(_memory(SMALL))
        alone: list[float] = []
        among: list[float] = []
        for metadata in owner.expose(*[SMALL] * 300):
            await asyncio.sleep(0.001)
            alone.append(await _read(connector, metadata, small))
        while len(among) < 300:
            whole, *metadata_of_small = owner.expose(GIB, *[SMALL] * 60)
            operation = await connector.begin_read(whole, big)
            for metadata in metadata_of_small:
                await asyncio.sleep(0.001)
                time_taken = await _read(connector, metadata, small)
                if operation.status is not OperationStatus.IN_PROGRESS:
                    break
                among.append(time_taken)
            await operation.wait_for_completion()
        return {"alone": summary(alone), "among": summary(among)}


async def bare_wakes(owner: Owner) -> list[dict[str, Any]]:
    """Wait for an eventfd that another process writes to."""
    loop = asyncio.get_running_loop()
    rows = []
    for cadence in ("warm", "cold"):
        woken: list[int] = []
        arrived = asyncio.Event()

        def ring(arrived: asyncio.Event = arrived) -> None:
            os.eventfd_read(owner.bell)
            arrived.set()

        loop.add_reader(owner.bell, ring)
        owner.channel.send(["ring", CADENCES[cadence], WAKES])
        for _ in range(WAKES):
            await arrived.wait()
            woken.append(monotonic_ns())
            arrived.clear()
        loop.remove_reader(owner.bell)
        begun = owner.channel.receive()
        times = [(end - begin) / 1000 for begin, end in zip(begun, woken, strict=True)]
        rows.append({"cadence": cadence, "wake": summary(times)})
    return rows


async def measure(owner: Owner) -> dict[str, Any]:
    """Measure all of it."""
    return {
        "creation": await creation(),
        "first_contact": await first_contact(owner),
        "begin": await begin_alone(owner),
        "lag": await lag(owner),
        "small_among_big": await small_among_big(owner),
        "bare_wakes": await bare_wakes(owner),
    }


def main() -> None:
    """Run the benchmark, or play its peer."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3, help="default: 3")
    parser.add_argument("--once", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--peer", type=int, nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peer is not None:
        descriptor, bell = arguments.peer
        asyncio.run(_serve(Channel.of_descriptor(descriptor), bell))
        return
    if arguments.once:
        owner = Owner()
        print(json.dumps(asyncio.run(measure(owner))))
        owner.end()
        return
    load = machine.load()
    runs = []
    for _ in range(arguments.runs):
        # An interpreter each, for which NIXL is to be loaded.
        done = subprocess.run([sys.executable, __file__, "--once"], check=True, stdout=subprocess.PIPE, text=True)
        runs.append(json.loads(done.stdout.splitlines()[-1]))
    result = {"runs": runs, "machine": machine.describe(), "load": load}
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=1))
    print(json.dumps(runs, indent=1))


if __name__ == "__main__":
    main()
