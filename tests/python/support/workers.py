"""Processes that run a test's functions, so that each one has a NIXL and an environment of its own.

The process of pytest never loads NIXL. A test starts workers and calls its own functions in them::

    async def expose(here, size): ...

    def test_it(spawn):
        owner = spawn()
        metadata = owner.call(expose, 4096)

Arguments and results travel as pickles; the test is the side channel between workers. Coroutine functions run on the
worker's event loop, also several at a time (`start`); plain functions run in a thread without a loop.
"""

from __future__ import annotations

import inspect
import os
import pickle
import re
import signal
import socket
import struct
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

TESTS = Path(__file__).resolve().parents[1]
PROGRAM = Path(__file__).with_name("worker_main.py")
LIMIT = 60.0
"""Seconds that one call may take, generously: the machine may be small and busy."""
BINDINGS = {
    # Agents of NIXL's own bindings say hello on stderr otherwise; and with a system libefa they crash at exit, see
    # _library.py.
    "NIXL_LOG_LEVEL": "ERROR",
    "UCX_MODULES": "^efa",
}
"""The environment of a worker that uses NIXL's Python bindings instead of this package."""
_HEADER = struct.Struct("<Q")
_LOG = re.compile(
    r"^([EW]\d{4} .* [a-z_]+\.cpp:\d+\] |\[\d+\.\d+\] \[.*\] +\S+:\d+ +UCX +(WARN|ERROR) ).*\n", re.MULTILINE
)
"""A line that NIXL (on stderr) or UCX (on stdout) log about what happened to a connection."""


class CallFailedError(AssertionError):
    """A function raised in a worker; the text is the traceback there."""


class WorkerDiedError(AssertionError):
    """A worker ended, or had to be ended, before it answered."""

    def __init__(self, worker: Worker, text: str) -> None:
        super().__init__(text)
        self.worker = worker


def environment(extra: Mapping[str, str]) -> dict[str, str]:
    """The environment of a child: ours without what steers NIXL, UCX or this package, and `extra`."""
    kept = {name: value for name, value in os.environ.items() if not re.match(r"DYNAMO_NIXL_|NIXL_|UCX_", name)}
    return {**kept, "PYTHONFAULTHANDLER": "1", **extra}


class Call:
    """A call under way in a worker."""

    def __init__(self, worker: Worker, number: int) -> None:
        self._worker = worker
        self._number = number

    def result(self, limit: float = LIMIT) -> Any:
        """Wait for what the function returns."""
        return self._worker._result(self._number, limit)


class Worker:
    """A child process that runs functions. Its standard streams go to files in `folder`.

    One that `loses_peers` and has NIXL or UCX log may find what they say about that on its standard streams, and
    nothing else; where nobody tells them to, they are silent. With the `python` of another environment it runs
    functions of modules that import nothing but what is installed there. A `prefix` is a command that ends by running
    the one behind it, such as nsenter.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        extra: Mapping[str, str],
        *,
        python: str | Path = sys.executable,
        loop: str = "asyncio",
        loses_peers: bool = False,
        prefix: Sequence[str] = (),
    ) -> None:
        self.name = name
        self._loses_peers = loses_peers and not {"NIXL_LOG_LEVEL", "UCX_LOG_LEVEL"}.isdisjoint(extra)
        self._output, self._errors = folder / f"{name}.stdout", folder / f"{name}.stderr"
        self._connection, theirs = socket.socketpair()
        self._answers: dict[int, tuple[bool, Any]] = {}
        self._calls = 0
        self._was_killed = False
        with theirs, self._output.open("wb") as output, self._errors.open("wb") as errors:
            self._process = subprocess.Popen(
                [*prefix, python, "-W", "error", str(PROGRAM), str(theirs.fileno()), loop],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=errors,
                cwd=folder,
                env=environment(extra),
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def open_files(self) -> int:
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    @property
    def threads(self) -> int:
        return len(os.listdir(f"/proc/{self.pid}/task"))

    @property
    def agents(self) -> int:
        """How many agents of ours it has; each has a thread."""
        names = [path.read_text().strip() for path in Path(f"/proc/{self.pid}/task").glob("*/comm")]
        return sum(name in ("nixl-control", "nixl-plain", "nixl-spare", "nixl-copy") for name in names)

    @property
    def resident(self) -> int:
        """How many bytes of its memory are in RAM."""
        pages = Path(f"/proc/{self.pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")

    @property
    def errors(self) -> str:
        """What the worker has written to its standard error so far."""
        return self._errors.read_text(errors="replace")

    def start(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Call:
        """Begin to run `function(here, *args, **kwargs)` in the worker."""
        module = Path(inspect.getsourcefile(function) or "").resolve().relative_to(TESTS).with_suffix("")
        self._calls += 1
        request = (self._calls, ".".join(module.parts), function.__qualname__, args, kwargs)
        message = pickle.dumps(request)
        try:
            self._connection.sendall(_HEADER.pack(len(message)) + message)
        except OSError:
            raise WorkerDiedError(self, self._obituary()) from None
        return Call(self, self._calls)

    def call(self, function: Callable[..., Any], /, *args: Any, limit: float = LIMIT, **kwargs: Any) -> Any:
        """Run `function(here, *args, **kwargs)` in the worker and return what it returns."""
        return self.start(function, *args, **kwargs).result(limit)

    def kill(self) -> None:
        """Kill the worker with SIGKILL, on purpose: nothing is expected of it any more."""
        self._was_killed = True
        self._process.kill()
        self._process.wait()

    def wait_for_death(self, limit: float = LIMIT) -> int:
        """Wait until the worker has died by what happened to it, and return its exit code: nothing more is expected."""
        self._was_killed = True
        return self._process.wait(limit)

    def pause(self) -> None:
        """Stop the worker, all of its threads, until `resume`."""
        self._process.send_signal(signal.SIGSTOP)
        # The signal was sent, but each thread stops only when it sees it.
        os.waitid(os.P_PID, self.pid, os.WSTOPPED)

    def resume(self) -> None:
        """Let a stopped worker go on."""
        self._process.send_signal(signal.SIGCONT)

    def leave(self) -> None:
        """Let the worker end, also one that is stopped, without waiting for it as `finish` does."""
        self._connection.close()
        self.resume()

    def finish(self) -> None:
        """Let the worker end, and insist on exit code 0 and silence."""
        self._connection.close()
        self.resume()
        if self._was_killed:
            return
        try:
            code = self._process.wait(LIMIT / 2)
        except subprocess.TimeoutExpired:
            code = self._abort()
        written = self._output.read_text(errors="replace") + self.errors
        if self._loses_peers:
            written = _LOG.sub("", written)
        assert (code, written) == (0, ""), f"worker {self.name} ended with {code} and wrote:\n{written}"

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    def _result(self, number: int, limit: float) -> Any:
        self._connection.settimeout(limit)
        while number not in self._answers:
            try:
                (size,) = _HEADER.unpack(self._receive(_HEADER.size))
                answered, *answer = pickle.loads(self._receive(size))
            except TimeoutError:
                self._abort()
                raise WorkerDiedError(self, f"no answer within {limit:g} s; {self._obituary()}") from None
            except (EOFError, OSError):
                raise WorkerDiedError(self, self._obituary()) from None
            self._answers[answered] = (answer[0], answer[1])
        succeeded, value = self._answers.pop(number)
        if not succeeded:
            raise CallFailedError(f"in worker {self.name}:\n{value}")
        return value

    def _receive(self, size: int) -> bytes:
        parts = bytearray()
        while len(parts) < size:
            part = self._connection.recv(size - len(parts))
            if not part:
                raise EOFError
            parts += part
        return bytes(parts)

    def _abort(self) -> int:
        self.resume()
        # faulthandler writes the stacks of all threads.
        self._process.send_signal(signal.SIGABRT)
        try:
            return self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()

    def _obituary(self) -> str:
        try:
            code: int | str = self._process.wait(10)
        except subprocess.TimeoutExpired:
            code = "none yet"
        return f"worker {self.name}, exit code {code}, wrote:\n{self.errors}"
