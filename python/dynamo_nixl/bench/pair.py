"""An owner and a reader as two processes, and the cases put to them."""

from __future__ import annotations

import os
import socket
import subprocess
from typing import TYPE_CHECKING, Any, Self

from .peer.channel import Channel

if TYPE_CHECKING:
    from .implementations import Implementation
    from .peer.case import Case


class PeerFailedError(Exception):
    """One of the two processes has ended early; the text has what it said."""


class Pair:
    """The two processes of one implementation. Use as a context manager."""

    def __init__(self, implementation: Implementation) -> None:
        self._name = implementation.name
        between = socket.socketpair()
        mine, readers = socket.socketpair()
        self._owner = _start(implementation.owner or implementation, "owner", between[0])
        self._reader = _start(implementation, "reader", between[1], readers)
        self._channel = Channel(mine)
        self.versions: dict[str, str] = self._receive()

    def measure(self, case: Case) -> dict[str, Any]:
        """Carry out one case.

        Raises
        ------
        PeerFailedError
            Where one of the processes has ended.
        """
        self._channel.send(case.to_json())
        return self._receive()

    def _receive(self) -> dict[str, Any]:
        result: dict[str, Any] | None = self._channel.receive()
        if result is None:
            self._channel.close()
            said = "".join(self._end(process, 5) for process in (self._reader, self._owner))
            raise PeerFailedError(f"{self._name} has ended early:\n{said.strip() or 'without a word'}")
        return result

    def __enter__(self) -> Self:
        return self

    def __exit__(self, exc_type: type[BaseException] | None, *exc_info: object) -> None:
        self._channel.close()
        for process in (self._reader, self._owner):
            # An owner that waits for a reader which is no more has no end to come to.
            self._end(process, 60 if exc_type is None else 1)

    @staticmethod
    def _end(process: subprocess.Popen[str], patience: float) -> str:
        """Wait for a process, and return what it has written to its standard error."""
        if process.stderr is None or process.stderr.closed:
            return ""
        try:
            _, said = process.communicate(timeout=patience)
        except subprocess.TimeoutExpired:
            process.kill()
            _, said = process.communicate()
        return said


def _start(implementation: Implementation, role: str, *ends: socket.socket) -> subprocess.Popen[str]:
    numbers = [end.fileno() for end in ends]
    environment = {
        # With the system's libefa in the process, UCX's module for it crashes the exit. Ours sees to that by itself.
        "UCX_MODULES": "^efa",
        "NIXL_LOG_LEVEL": "WARN",
        **os.environ,
        **implementation.environment,
    }
    process = subprocess.Popen(
        [*implementation.command, role, implementation.name, *map(str, numbers)],
        pass_fds=numbers,
        env=environment,
        # Neither NIXL's nor upstream's chatter belongs to the output of the benchmark.
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    for end in ends:
        end.close()
    return process
