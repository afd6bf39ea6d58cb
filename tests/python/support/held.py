"""What a worker's process holds, to be compared before and after something that has to leave nothing behind."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, NamedTuple

from support import roles

if TYPE_CHECKING:
    from collections.abc import Iterable

    from support.workers import Worker

PATIENCE = 10.0


class Held(NamedTuple):
    """Files, threads, and what the connector counts."""

    open_files: int
    threads: int
    peers: int
    regions: int
    exposures: int
    transfers: int
    unquiet_regions: int


def held_by(worker: Worker) -> Held:
    """What a worker holds now."""
    counters = worker.call(roles.counters)
    return Held(worker.open_files, worker.threads, *(counters[name] for name in Held._fields[2:]))


def settled_and_held(worker: Worker) -> tuple[Held, int]:
    """What a worker holds once its operations are over, and how much memory."""
    worker.call(roles.settled)
    worker.call(roles.trim)
    return held_by(worker), worker.resident


def held_now(
    before: list[tuple[Held, int]], workers: Iterable[Worker], *, besides: tuple[str, ...] = ()
) -> list[tuple[Held, int]]:
    """As `settled_and_held`, once there is no more of anything than before; or what there is after a while.

    Files that watch over the peer's process are closed some seconds after the transfer that was watched.
    """
    after = []
    for (held_before, _), worker in zip(before, workers, strict=True):
        deadline = time.monotonic() + PATIENCE
        now = settled_and_held(worker)
        while grown(held_before, now[0], besides=besides) and time.monotonic() < deadline:
            time.sleep(0.1)
            now = settled_and_held(worker)
        after.append(now)
    return after


def grown(before: Held, after: Held, *, besides: tuple[str, ...] = ()) -> dict[str, tuple[int, int]]:
    """What there is more of. Of files and threads there may be less: those that watch over processes end at times."""
    pairs = {name: (getattr(before, name), getattr(after, name)) for name in Held._fields if name not in besides}
    return {name: (then, now) for name, (then, now) in pairs.items() if now > then}
