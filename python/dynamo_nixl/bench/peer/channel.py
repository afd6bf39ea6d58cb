"""Lines of JSON over a socket, blocking: what the processes of a benchmark say to each other off the clock.

Not over stdout, to which NIXL and upstream write as they please.
"""

from __future__ import annotations

import json
import select
import socket
from typing import Any

PATIENCE = 900.0
"""Seconds until a silent peer is given up; upstream's import can take minutes."""


class Channel:
    """One end."""

    def __init__(self, end: socket.socket) -> None:
        end.settimeout(PATIENCE)
        self._socket = end
        self._file = end.makefile("rwb")

    @classmethod
    def of_descriptor(cls, number: int) -> Channel:
        """Take over an inherited file descriptor."""
        return cls(socket.socket(fileno=number))

    def send(self, message: Any) -> None:
        """Send one message."""
        self._file.write(json.dumps(message).encode() + b"\n")
        self._file.flush()

    def receive(self) -> Any:
        """Wait for one; None at the end of the conversation."""
        line = self._file.readline()
        return json.loads(line) if line else None

    def has_message(self) -> bool:
        """Whether there is something to receive, if what came before was received already."""
        return bool(select.select([self._socket], [], [], 0)[0])

    def close(self) -> None:
        """Say goodbye."""
        self._file.close()
        self._socket.close()
