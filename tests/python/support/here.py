"""What a worker keeps between the calls of a test."""

from __future__ import annotations

import asyncio
import itertools
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

PATIENCE = 30.0
"""Seconds until a condition that nothing announces must hold."""
LASTING = (
    "peers",
    "reloads",
    "copy_lanes",
    "notifications_matched",
    "notifications_unknown",
    "notifications_malformed",
    "messages_received",
    "trailer_fields_unknown",
)
"""Counters that do not go back to zero when all operations are over."""


class Here:
    """A worker's connector, and whatever its functions `keep`."""

    def __init__(self) -> None:
        self._connector: Any = None
        self._numbers = itertools.count(1)
        self.kept: dict[int, Any] = {}

    @property
    def connector(self) -> Any:
        """The worker's own connector, made when it is first used."""
        if self._connector is None:
            import dynamo_nixl

            self._connector = dynamo_nixl.Connector()
        return self._connector

    @connector.setter
    def connector(self, connector: Any) -> None:
        self._connector = connector

    def keep(self, thing: Any) -> int:
        """Hold a reference, until it is popped out of `kept`."""
        number = next(self._numbers)
        self.kept[number] = thing
        return number


def stats(connector: Any) -> dict[str, int]:
    """The native counters of a connector."""
    connection = connector._shared_connection
    return connection._native.stats() if connection is not None else {}


def unsettled(connector: Any) -> dict[str, int]:
    """What is not back to zero; nothing once all operations are over and quiet."""
    return {name: value for name, value in stats(connector).items() if value and name not in LASTING}


async def eventually(condition: Callable[[], Any], patience: float = PATIENCE) -> None:
    """Wait for a condition that nothing announces."""
    deadline = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < deadline, f"did not come about within {patience:g} s"
        await asyncio.sleep(0.005)


async def settle(connector: Any) -> None:
    """Wait until nothing of a connector's operations is left."""
    try:
        await eventually(lambda: not unsettled(connector))
    except AssertionError:
        raise AssertionError(f"still there: {unsettled(connector)}") from None
