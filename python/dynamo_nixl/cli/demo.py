"""`dynamo-nixl demo`: tensors from one process to another and back, every byte verified."""

from __future__ import annotations

import asyncio
import atexit
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import aiohttp
from rich.console import Console
from rich.table import Table

from dynamo_nixl import Connector, Descriptor, OperationStatus, RdmaMetadata, _library

from . import _ucx_log
from ._payload import Tensors, checksum, clear

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

SIZES: Final = (4 << 10, 1 << 20, 64 << 20)
"""What is moved unless the user says otherwise, in bytes."""

_EXIT_PATIENCE: Final = 20.0
"""Seconds that the peer gets for closing its connector once it is no longer needed."""


class DemoError(Exception):
    """The demo did not do what it is to show; the text is for the user."""


@dataclass(frozen=True, slots=True)
class Result:
    """One size in one direction."""

    direction: str
    tensor: str
    size: int
    seconds: list[float]
    verified_by: str
    transport: str | None = None

    @property
    def median(self) -> float:
        """Seconds, from the call that begins the transfer to the end of waiting for it."""
        return statistics.median(self.seconds)

    @property
    def gigabytes_per_second(self) -> float:
        """At the median time; a gigabyte is 10**9 bytes."""
        return self.size / self.median / 1e9


@dataclass(frozen=True, slots=True)
class Report:
    """All that the demo shows."""

    results: list[Result]
    library: str
    nixl: str
    ucx: str | None
    side_channel: str
    peer_pid: int
    peer_stderr: str


def run_demo(sizes: list[int], repeat: int, timeout: float, *, as_json: bool) -> int:
    """Run the demo and print what happened; returns the exit code."""
    directory = tempfile.mkdtemp(prefix="dynamo-nixl-demo-")
    # Before the connector arranges its own end, hence done after it: UCX aborts the process when it cannot open its
    # log, and after a time-out an agent may still be starting.
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    try:
        report = asyncio.run(_run(sizes, repeat, timeout, Path(directory)))
    except TimeoutError as raised:
        # What the peer reported was noted where the wait was cut short.
        error = "\n".join([f"no result within {timeout:g} s", *getattr(raised.__cause__, "__notes__", ())])
    except (DemoError, ImportError, RuntimeError, ValueError, OSError, aiohttp.ClientError) as raised:
        error = str(raised) or type(raised).__name__
    except MemoryError as raised:
        error = f"there is not enough memory for this size: {raised}"
    else:
        _print(report, repeat, as_json=as_json)
        return 0
    if as_json:
        sys.stdout.write(json.dumps({"ok": False, "error": error}, indent=2) + "\n")
    sys.stderr.write(f"dynamo-nixl demo failed: {error}\n")
    return 1


async def _run(sizes: list[int], repeat: int, timeout: float, directory: Path) -> Report:
    logs = _ucx_log.turn_on(os.environ, directory)
    try:
        # What is missing is told more plainly here than by a peer that dies of it.
        await asyncio.to_thread(_library.ensure_loaded)
        tensors = Tensors()
        async with asyncio.timeout(timeout), _Peer.start() as peer:
            connector = Connector()
            await connector._create_connection()
            results = []
            for size in sizes:
                results.append(await _read(connector, peer, tensors, size, repeat))
                results.append(await _write(connector, peer, tensors, size, repeat))
    finally:
        if logs:
            _ucx_log.turn_off(os.environ)
    log = _ucx_log.read(directory) if logs else ""
    return Report(
        results=[
            Result(
                each.direction,
                each.tensor,
                each.size,
                each.seconds,
                each.verified_by,
                _ucx_log.transport(log, each.direction, each.size),
            )
            for each in results
        ],
        library=tensors.library,
        nixl=_nixl(),
        ucx=_ucx_log.version(log),
        side_channel=peer.address,
        peer_pid=peer.pid,
        peer_stderr=peer.stderr,
    )


async def _read(connector: Connector, peer: _Peer, tensors: Tensors, size: int, repeat: int) -> Result:
    target = Descriptor(tensors.zeros(size))
    seconds = []
    tensor = ""
    for _ in range(repeat):
        clear(target)
        exposed = await peer.ask("/expose", direction="read", size=size)
        metadata = RdmaMetadata.model_validate(exposed["metadata"])
        started = time.perf_counter()
        with await connector.begin_read(metadata, target) as operation:
            await operation.wait_for_completion()
            seconds.append(time.perf_counter() - started)
            _check_complete("reading", str(operation.status), operation.status is OperationStatus.COMPLETE)
        finished = await peer.ask("/finish", key=metadata.notification_key)
        _check_complete("being read", finished["status"], finished["is_complete"])
        if checksum(target) != exposed["checksum"]:
            raise DemoError(f"the data read differs from the peer's: {size} bytes")
        tensor = exposed["tensor"]
    return Result("read", tensor, size, seconds, "this process")


async def _write(connector: Connector, peer: _Peer, tensors: Tensors, size: int, repeat: int) -> Result:
    source = Descriptor(tensors.random(size))
    expected = checksum(source)
    seconds = []
    tensor = ""
    for _ in range(repeat):
        exposed = await peer.ask("/expose", direction="write", size=size)
        metadata = RdmaMetadata.model_validate(exposed["metadata"])
        started = time.perf_counter()
        with await connector.begin_write(source, metadata) as operation:
            await operation.wait_for_completion()
            seconds.append(time.perf_counter() - started)
            _check_complete("writing", str(operation.status), operation.status is OperationStatus.COMPLETE)
        finished = await peer.ask("/finish", key=metadata.notification_key)
        _check_complete("being written", finished["status"], finished["is_complete"])
        if finished["checksum"] != expected:
            raise DemoError(f"the data that arrived at the peer differs from what was sent: {size} bytes")
        tensor = exposed["tensor"]
    return Result("write", tensor, size, seconds, "the peer")


def _check_complete(what: str, status: str, is_complete: bool) -> None:
    if not is_complete:
        raise DemoError(f"{what} did not complete, its status is {status}")


class _Peer:
    """The other process, and the HTTP side channel to it."""

    def __init__(self, process: asyncio.subprocess.Process, session: aiohttp.ClientSession, port: int) -> None:
        self._process = process
        self._session = session
        self.address = f"http://127.0.0.1:{port}"
        self.pid = process.pid
        self.stderr = ""

    @staticmethod
    @asynccontextmanager
    async def start() -> AsyncIterator[_Peer]:
        """Start the process; at the end have it stop, and see to it that it does."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "dynamo_nixl.cli._demo_peer",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        # Read all the time, or the peer would block once the pipe is full.
        errors = asyncio.create_task(process.stderr.read())
        try:
            port = None
            # UCX may have something to say on standard output before.
            while port is None:
                line = await process.stdout.readline()
                if not line:
                    raise DemoError("the peer ended before it was ready")
                port = json.loads(line)["port"] if line.startswith(b"{") else None
            async with aiohttp.ClientSession() as session:
                peer = _Peer(process, session, port)
                yield peer
            process.stdin.close()
            try:
                async with asyncio.timeout(_EXIT_PATIENCE):
                    code = await process.wait()
            except TimeoutError:
                raise DemoError(f"the peer did not end within {_EXIT_PATIENCE:g} s") from None
            if code != 0:
                raise DemoError(f"the peer ended with exit code {code}")
            peer.stderr = (await errors).decode(errors="replace").strip()
        except BaseException as error:
            if process.returncode is None:
                process.kill()
                await process.wait()
            text = (await errors).decode(errors="replace").strip()
            if text and isinstance(error, Exception):
                # What the peer has to say is the better half of the story.
                raise DemoError(f"{str(error) or type(error).__name__}; the peer reported:\n{text}") from error
            if text:
                error.add_note(f"the peer reported:\n{text}")
            raise

    async def ask(self, path: str, **question: Any) -> dict[str, Any]:
        """Send a question to the peer and return its answer."""
        async with self._session.post(self.address + path, json=question) as response:
            if response.status != 200:
                raise DemoError(f"the peer answered {path} with HTTP status {response.status}")
            answer: dict[str, Any] = await response.json()
            return answer


def _nixl() -> str:
    load = _library.loaded()
    assert load is not None  # there were transfers
    return f"{load.candidate.version or 'unknown version'} ({load.candidate.origin})"


def _print(report: Report, repeat: int, *, as_json: bool) -> None:
    if as_json:
        content = asdict(report)
        for fields, result in zip(content["results"], report.results, strict=True):
            fields["median_seconds"] = result.median
            fields["gigabytes_per_second"] = result.gigabytes_per_second
        sys.stdout.write(json.dumps({"ok": True, **content}, indent=2) + "\n")
        return
    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        # Lines of a log should not be folded to the width of a terminal that does not exist.
        console.width = 140
    console.print(
        f"Tensors of {report.library} between process {os.getpid()} and its peer, process {report.peer_pid}",
        soft_wrap=True,
    )
    ucx = report.ucx or "of unknown version"
    console.print(f"NIXL {report.nixl}, UCX {ucx}; metadata over {report.side_channel}\n", soft_wrap=True)
    table = Table()
    for title in ("direction", "tensor", "bytes", "time", "GB/s", "transport", "bit-exact, verified by"):
        table.add_column(title, justify="right" if title in ("bytes", "time", "GB/s") else "left")
    for result in report.results:
        table.add_row(
            f"{result.direction} {'from' if result.direction == 'read' else 'to'} peer",
            result.tensor,
            f"{result.size:,}",
            _duration(result.median),
            f"{result.gigabytes_per_second:.2f}",
            result.transport or "not known",
            result.verified_by,
        )
    console.print(table)
    runs = "one transfer each" if repeat == 1 else f"median of {repeat} transfers, of which the very first connects"
    console.print(
        f"Time is from beginning a transfer to the end of awaiting it, without the side channel; {runs}.\n"
        "The transport is what UCX's own log names for such a transfer.",
        soft_wrap=True,
    )
    if report.peer_stderr:
        console.print(f"\nThe peer printed:\n{report.peer_stderr}", soft_wrap=True)


def _duration(seconds: float) -> str:
    return f"{seconds * 1e6:.0f} us" if seconds < 1e-3 else f"{seconds * 1e3:.2f} ms"
