"""Event loops of both kinds, and threads to run them in."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable


def factories() -> list[Callable[[], asyncio.AbstractEventLoop]]:
    """What makes an event loop: asyncio's and uvloop's."""
    import uvloop

    return [asyncio.new_event_loop, uvloop.new_event_loop]


def in_threads(count: int, function: Callable[[int], Any]) -> list[Any]:
    """Run `function(index)` in threads of their own, begun together, and return the results in order."""
    results = [None] * count
    barrier = threading.Barrier(count)

    def run(index: int) -> None:
        barrier.wait()
        results[index] = function(index)

    threads = [threading.Thread(target=run, args=(index,)) for index in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results
