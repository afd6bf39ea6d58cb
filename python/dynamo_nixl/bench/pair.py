"""An owner and a reader as two processes, and the cases put to them."""

from __future__ import annotations

import os
import socket
import subprocess
import tempfile
from contextlib import suppress
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
        self._owner = _Side(implementation.owner or implementation, "owner", between[0])
        self._reader = _Side(implementation, "reader", between[1], readers)
        self._channel = Channel(mine)
        self.versions: dict[str, str] = self._receive()

    def measure(self, case: Case) -> dict[str, Any]:
        """Carry out one case.

        Raises
        ------
        PeerFailedError
            Where one of the processes has ended.
        """
        try:
            self._channel.send(case.to_json())
            return self._receive()
        except OSError:
            raise self._failure() from None

    def _receive(self) -> dict[str, Any]:
        result: dict[str, Any] | None = self._channel.receive()
        if result is None:
            raise self._failure()
        return result

    def _failure(self) -> PeerFailedError:
        with suppress(OSError):
            self._channel.close()
        said = "".join(side.end(5) for side in (self._reader, self._owner))
        return PeerFailedError(f"{self._name} has ended early:\n{said.strip() or 'without a word'}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, exc_type: type[BaseException] | None, *exc_info: object) -> None:
        with suppress(OSError):
            self._channel.close()
        for side in (self._reader, self._owner):
            # An owner that waits for a reader which is no more has no end to come to.
            side.end(60 if exc_type is None else 1)


class _Side:
    """One of the two processes."""

    def __init__(self, implementation: Implementation, role: str, *ends: socket.socket) -> None:
        numbers = [end.fileno() for end in ends]
        environment = {
            # With the system's libefa in the process, UCX's module for it crashes the exit. Ours sees to that itself.
            "UCX_MODULES": "^efa",
            "NIXL_LOG_LEVEL": "WARN",
            **os.environ,
            **implementation.environment,
        }
        # A file, since nobody reads what is said until the end.
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 - closed where it is read
        self._process = subprocess.Popen(
            [*implementation.command, role, implementation.name, *map(str, numbers)],
            pass_fds=numbers,
            env=environment,
            # Neither NIXL's nor upstream's chatter belongs to the output of the benchmark.
            stdout=subprocess.DEVNULL,
            stderr=self._said,
        )
        for end in ends:
            end.close()

    def end(self, patience: float) -> str:
        """Wait for the process, and return what it has written to its standard error; nothing the second time."""
        try:
            self._process.wait(patience)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._said.closed:
            return ""
        with self._said:
            self._said.seek(0)
            return self._said.read().decode(errors="replace")
