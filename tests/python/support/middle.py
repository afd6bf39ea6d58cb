"""Ends that one side brings about, also while its process is stopped in the middle of a transfer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from support import endings

if TYPE_CHECKING:
    from collections.abc import Callable

    from support.here import Here
    from support.workers import Worker

HOWS = ("cancel", "exit", "drop")
"""The ways to give an operation up."""


def interrupt(
    owner: Worker, active: Worker, kind: str, function: Callable[..., Any], *args: Any, **options: Any
) -> tuple[int, int, Any]:
    """Catch a transfer, and have its active side call a function of the kept operation as soon as it goes on."""
    for _ in range(5):
        number, begun = endings.catch(owner, active, kind, **options)
        # It lies in the worker's socket when that wakes, and so comes long before the end of what is left to move.
        calling = active.start(function, begun, *args)
        active.resume()
        result = calling.result()
        if owner.call(endings.ended, number) != endings.DONE:
            return number, begun, result
        # Not much was left.
    raise AssertionError("no transfer could be ended in the middle")


async def give_up(here: Here, number: int, how: str) -> str:
    """End a kept operation of one's own will. Returns its status."""
    operation, _ = here.kept[number]
    if how == "cancel":
        operation.cancel()
    elif how == "exit":
        operation.__exit__(None, None, None)
    else:
        del here.kept[number]
        return "STOP"
    return str(operation.status)


async def close_now(here: Here, number: int) -> str:
    """Close the worker's connector, which a kept operation belongs to. Returns that one's status."""
    await endings.close(here)
    return str(here.kept[number][0].status)
