"""What UCX itself says about the transports it uses, read from its log.

With `UCX_PROTO_INFO=y` and the log level `info` UCX prints a table for each kind of transfer to each peer when it
decides how to carry it out. Nothing is inferred: what the log does not say is not known.
"""

from __future__ import annotations

import ctypes
import os
import re
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, MutableMapping
    from pathlib import Path

_VARIABLES: Final = ("UCX_LOG_LEVEL", "UCX_LOG_FILE", "UCX_PROTO_INFO")
_UNITS: Final = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_OPERATIONS: Final = {"read": "remote memory read", "write": "remote memory write"}


class Protocol(NamedTuple):
    """How UCX carries out one kind of transfer to one peer."""

    operation: str
    """UCX's words for the kind of transfer."""
    ranges: list[tuple[int, int | None, str]]
    """First and last size in bytes, and the transports; the last size of all is None."""


def turn_on(environ: MutableMapping[str, str], directory: Path) -> bool:
    """Have UCX log into `directory`, from this process and its children. False if the user logs already.

    Only of use before UCX is loaded.
    """
    if any(name in environ for name in _VARIABLES):
        return False
    environ.update({"UCX_LOG_LEVEL": "info", "UCX_LOG_FILE": str(directory / "ucx.%p"), "UCX_PROTO_INFO": "y"})
    return True


def turn_off(environ: MutableMapping[str, str]) -> None:
    """Undo `turn_on`."""
    for name in _VARIABLES:
        environ.pop(name, None)


def read(directory: Path) -> str:
    """Everything that UCX has logged for this process so far."""
    # UCX writes through stdio, whose buffer is not in the file yet.
    ctypes.CDLL(None).fflush(None)
    try:
        return (directory / f"ucx.{os.getpid()}").read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return ""


def version(log: str) -> str | None:
    """UCX's version."""
    match = re.search(r"UCX\s+INFO\s+Version (\S+)", log)
    return match[1] if match is not None else None


def transport(log: str, direction: str, size: int) -> str | None:
    """How UCX reads from, or writes to, peers: its own words, or None if it did not say.

    Parameters
    ----------
    log
        From `read`.
    direction
        `read` or `write`.
    size
        Bytes in a transfer.
    """
    wanted = _OPERATIONS[direction]
    found = [
        transports
        for protocol in protocols(log.splitlines())
        if protocol.operation.startswith(wanted)
        for first, last, transports in protocol.ranges
        if first <= size and (last is None or size <= last)
    ]
    return ", ".join(dict.fromkeys(found)) or None


def protocols(lines: Iterable[str]) -> list[Protocol]:
    """Take the tables about peers from the lines of a log.

    Such a table has three parts between rules: whom and what it is about, the titles of its columns, and its rows.
    """
    tables = []
    parts: list[list[list[str]]] = []
    for line in lines:
        match = re.match(r"\[[^]]*\] \[[^]]*\]\s+([+|].*)$", line)
        if match is None:
            parts = []
        elif match[1].startswith("+"):
            if len(parts) == 3 and parts[2]:
                tables.append(parts)
                parts = []
            else:
                parts.append([])
        elif parts:
            parts[-1].append([cell.strip() for cell in match[1].strip("|").split("|")])
    found = []
    for heading, _, rows in tables:
        endpoint, operation = (" ".join(row) for row in heading[:2]) if len(heading) >= 2 else ("", "")
        # Every worker also plans how to reach itself.
        if " self cfg" in endpoint:
            continue
        ranges = [(*_bounds(row[0]), row[2]) for row in rows if len(row) == 3]
        found.append(Protocol(operation, ranges))
    return found


def _bounds(text: str) -> tuple[int, int | None]:
    first, _, last = text.partition("..")
    return _size(first) or 0, _size(last or first)


def _size(text: str) -> int | None:
    match = re.fullmatch(r"(\d+)([KMGT]?)B?", text)
    return int(match[1]) * _UNITS[match[2]] if match is not None else None
