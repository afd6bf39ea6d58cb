"""One of the two processes of a benchmark: `python -m peer ROLE IMPLEMENTATION DESCRIPTOR...`.

The owner has one channel, to its reader; the reader has a second one, to whoever started both.
"""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Protocol

from .case import Case, summary
from .channel import Channel

SIDES = {
    "ours": "connect_side",
    "upstream": "connect_side",
    "raw": "raw_side",
    "ucxx": "ucxx_side",
    "mooncake": "mooncake_side",
    "memcpy": "memcpy_side",
}
"""The program of each implementation."""

PACKAGES = (
    "dynamo_nixl",
    "ai-dynamo-runtime",
    "nixl-cu12",
    "nixl-cu13",
    "ucxx-cu12",
    "mooncake-transfer-engine",
    "pydantic",
    "numpy",
    "torch",
)


class Side(Protocol):
    """What a program offers. Times are of CLOCK_MONOTONIC, which the processes of a host share, in nanoseconds."""

    def own(self, implementation: str, reader: Channel) -> None:
        """Serve what the reader asks for, until it asks for nothing more."""

    def read(self, case: Case, owner: Channel) -> tuple[list[int], list[int]]:
        """Carry one batch out. Returns when each transfer began, and when the reader's wait for it returned."""


def main() -> None:
    """Play the role that the arguments say."""
    role, implementation, *descriptors = sys.argv[1:]
    channels = [Channel.of_descriptor(int(number)) for number in descriptors]
    program = import_module(f"{__package__}.{SIDES[implementation]}")
    if role == "owner":
        program.own(implementation, channels[0])
    else:
        owner, starter = channels
        reader: Side = program.Reader(implementation)
        starter.send(_versions())
        while (request := starter.receive()) is not None:
            starter.send(_measure(reader, Case(**request), owner))
        owner.close()


def _measure(reader: Side, case: Case, owner: Channel) -> dict[str, Any]:
    _run(reader, case, case.warm_up, owner)
    begun, read, owned, busy = _run(reader, case, case.iterations, owner)
    return {
        "reader": _since(begun, read),
        "owner": _since(begun, owned) if owned else None,
        # Of the owner, from the moment at which the reader knew.
        "told": _since(read, owned) if owned else None,
        "per_second": len(begun) / busy * 1e9,
    }


def _run(reader: Side, case: Case, count: int, owner: Channel) -> tuple[list[int], list[int], list[int], int]:
    begun: list[int] = []
    read: list[int] = []
    owned: list[int] = []
    busy = 0
    while len(begun) < count:
        request = case.to_json() | {"count": case.batch}
        owner.send(request)
        starts, ends = reader.read(case, owner)
        owner.send("done")
        owned += owner.receive()
        begun += starts
        read += ends
        busy += max(ends) - min(starts)
    return begun, read, owned, busy


def _since(begun: list[int], ended: list[int]) -> dict[str, float]:
    """Times in microseconds."""
    return summary([(end - begin) / 1000 for begin, end in zip(begun, ended, strict=True)])


def _versions() -> dict[str, str]:
    found = {"python": sys.version.split()[0]}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


if __name__ == "__main__":
    main()
