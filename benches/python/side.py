"""One of the two processes of a benchmark: `side.py ROLE IMPLEMENTATION DESCRIPTOR...`, started by `pair.py`.

The owner has one channel, to its reader; the reader has a second one, to whoever started both.
"""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

import connect_side
import raw_side
from channel import Channel
from plan import Case, summary

if TYPE_CHECKING:
    from types import ModuleType

MODULES = {"ours": "dynamo_nixl", "upstream": "dynamo.nixl_connect"}


def main() -> None:
    """Play the role that the arguments say."""
    role, implementation, *descriptors = sys.argv[1:]
    channels = [Channel.of_descriptor(int(number)) for number in descriptors]
    side = raw_side if implementation == "raw" else connect_side
    module = raw_side.bindings() if implementation == "raw" else import_module(MODULES[implementation])
    if role == "owner":
        side.own(module, channels[0])
    else:
        _read(side, module, *channels)


def _read(side: ModuleType, module: ModuleType, owner: Channel, starter: Channel) -> None:
    state: dict[str, Any] = {}
    starter.send(_versions())
    while (request := starter.receive()) is not None:
        case = Case(**request)
        _measure(side, module, case, case.warm_up, owner, state)
        begun, read, owned = _measure(side, module, case, case.iterations, owner, state)
        starter.send({"reader": _since(begun, read), "owner": _since(begun, owned)})
    owner.close()


def _measure(
    side: ModuleType, module: ModuleType, case: Case, count: int, owner: Channel, state: dict[str, Any]
) -> tuple[list[int], list[int], list[int]]:
    begun: list[int] = []
    read: list[int] = []
    owned: list[int] = []
    while len(begun) < count:
        owner.send({"size": case.size, "count": min(case.batch, count - len(begun))})
        starts, ends = side.read(module, case, owner, state)
        owner.send("done")
        owned += owner.receive()
        begun += starts
        read += ends
    return begun, read, owned


def _since(begun: list[int], ended: list[int]) -> dict[str, float]:
    """Times in microseconds. Both ends are on CLOCK_MONOTONIC, which the processes of a host share."""
    return summary([(end - begin) / 1000 for begin, end in zip(begun, ended, strict=True)])


def _versions() -> dict[str, str]:
    found = {"python": sys.version.split()[0]}
    for name in ("dynamo_nixl", "ai-dynamo-runtime", "nixl-cu12", "nixl-cu13", "pydantic", "numpy", "torch"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


if __name__ == "__main__":
    main()
