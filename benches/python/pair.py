"""An owner and a reader as two processes, and the cases put to them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from channel import Channel

if TYPE_CHECKING:
    from plan import Case

SIDE = Path(__file__).with_name("side.py")


class Pair:
    """The two processes of one implementation. Use as a context manager."""

    def __init__(self, implementation: str, python: str) -> None:
        between = socket.socketpair()
        mine, readers = socket.socketpair()
        self._owner = _start(python, "owner", implementation, between[0])
        self._reader = _start(python, "reader", implementation, between[1], readers)
        self._channel = Channel(mine)
        versions = self._channel.receive()
        if versions is None:
            raise RuntimeError(f"the reader of {implementation} did not start; what it said is above")
        self.versions: dict[str, str] = versions

    def measure(self, case: Case) -> dict[str, Any]:
        """Carry out one case."""
        self._channel.send(case.to_json())
        result: dict[str, Any] | None = self._channel.receive()
        if result is None:
            raise RuntimeError("the reader ended early; what it said is above")
        return result

    def __enter__(self) -> Self:
        return self

    def __exit__(self, exc_type: type[BaseException] | None, *exc_info: object) -> None:
        self._channel.close()
        for process in (self._reader, self._owner):
            try:
                # An owner that waits for a reader which is no more has no end to come to.
                process.wait(60 if exc_type is None else 1)
            except subprocess.TimeoutExpired:
                print("a side did not end and is killed", file=sys.stderr)
                process.kill()
                process.wait()


def _start(python: str, role: str, implementation: str, *ends: socket.socket) -> subprocess.Popen[bytes]:
    numbers = [end.fileno() for end in ends]
    environment = {
        # With the system's libefa in the process, UCX's module for it crashes the exit. Ours sees to that by itself.
        "UCX_MODULES": "^efa",
        "NIXL_LOG_LEVEL": "WARN",
        **os.environ,
    }
    process = subprocess.Popen(
        [python, str(SIDE), role, implementation, *map(str, numbers)],
        pass_fds=numbers,
        env=environment,
        # Neither NIXL's nor upstream's chatter belongs to the output of the benchmark.
        stdout=subprocess.DEVNULL,
    )
    for end in ends:
        end.close()
    return process
