"""Faults for tests of how a program recovers: what goes wrong is chosen, everything else is real.

A set of `Faults` is attached to a connector before it is first used. From then on, faults can be added and cleared at
any time; they strike what that connector does and hears, on real NIXL::

    faults = Faults(seed=1)
    connector = faults.attach(Connector(stall_timeout=2.0))

    with faults.stall() as stall:
        read = await connector.begin_read(metadata, descriptors)
        with pytest.raises(TransferTimeoutError):
            await read.wait_for_completion()
    await read.wait_quiesced()

`dynamo_nixl.testing.plugin` has a fixture for pytest. A connector without faults has no part of this in its way.
"""

from __future__ import annotations

import asyncio
import math
from types import TracebackType
from typing import Any, Final, Literal, Self, TypeAlias, TypeVar

from .. import _core
from .._settings import seconds as _checked_seconds
from ..connector import Connector

__all__ = ["Fault", "Faults", "Notifications"]

Notifications: TypeAlias = Literal["completion", "message", "any"]
"""Which notifications: the one with which the active side completes an operation; what two dynamo_nixl tell each other
beside (that a transfer has begun, was given up, has ended); or both."""

_Connector = TypeVar("_Connector", bound=Connector)

_EFFECTS: Final = ("drop", "delay", "duplicate", "stall", "slow", "fail", "stale", "lost")
_LOOK: Final = 0.002
"""Seconds between two looks at a counter that announces nothing."""


class Fault:
    """One thing that goes wrong. Made by the methods of `Faults`.

    In a `with` block it is cleared at the end.
    """

    def __init__(self, native: _core.Fault, name: str) -> None:
        self._native = native
        self._name = name

    @property
    def injected(self) -> int:
        """How often it has struck."""
        return self._native.injected

    async def struck(self, times: int = 1) -> None:
        """Wait until it has struck so often in all; for ever, if it does not."""
        while self.injected < times:  # noqa: ASYNC110 - nothing announces it
            await asyncio.sleep(_LOOK)

    def release(self) -> None:
        """Let go of what it holds now, of stalled pieces and delayed notifications. It stays, and may hold others."""
        self._native.release()

    def clear(self) -> None:
        """Take it out, and let go of what it holds. May be called repeatedly."""
        self._native.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.clear()

    def __repr__(self) -> str:
        return f"Fault({self._name}, injected={self.injected})"


class Faults:
    """A set of faults, and the connectors that they happen to.

    Parameters
    ----------
    seed
        Decides what `probability` leaves open. The same seed, the same faults and the same events in the same order
        have the same events struck; what runs at the same time may change the order.

    Notes
    -----
    All faults are added with the same four choices:

    at
        The first event that it may strike, counted from 1 from the moment it is added: `fail(at=3)` fails the third
        piece from now on.
    count
        How many it strikes; None: all from `at` on.
    probability
        How likely each of them is struck.
    peer
        Only with this peer: its worker id, or the name of one of its agents. By default with any.

    A *piece* is what moves bytes: a transfer is cut into pieces of at most 4 MiB, of which a few are on their way at
    once. Those of all transfers of a connector are counted together, in the order in which they are begun. So that
    there is one, a connector with faults moves big transfers with one agent.

    The rules for memory hold as always: what a fault holds back stays pinned, and a connector that is closed waits for
    it, for a while. So clear the faults before.

    Examples
    --------
    >>> faults = Faults(seed=1)
    >>> connector = faults.attach(Connector("reader"))
    >>> fault = faults.drop(count=None, probability=0.1)
    >>> faults.injected["drop"]
    0
    """

    def __init__(self, seed: int = 0) -> None:
        given: object = seed
        if not isinstance(given, int):
            raise TypeError(f"a seed is an int: {type(given).__name__}")
        self._native = _core.Faults(given % 2**64)

    def attach(self, connector: _Connector) -> _Connector:
        """Have these faults happen to a connector, which must not have been used. Any number may share them.

        Parameters
        ----------
        connector
            The active or the passive side. In one process, give each side a connector of its own.

        Returns
        -------
        Connector
            The same.

        Raises
        ------
        TypeError
            If it is no `Connector`.
        RuntimeError
            If it has been used, or has faults already.
        """
        given: object = connector
        if not isinstance(given, Connector):
            raise TypeError(f"faults happen to a Connector: {type(given).__name__}")
        given._take_faults(self._native)
        return connector

    def drop(
        self,
        kind: Notifications = "completion",
        *,
        at: int = 1,
        count: int | None = 1,
        probability: float = 1.0,
        peer: str | None = None,
    ) -> Fault:
        """Lose a notification that arrives.

        An exposure whose completion is lost waits until its lease ends, with `LeaseExpiredError`, though all bytes have
        moved. One that was told by a message that a transfer is under way waits for as long as that peer's process
        runs; `kind="any"` loses the message as well.
        """
        return self._add("drop", self._kind(kind), None, at, count, probability, peer)

    def delay(
        self,
        seconds: float | None = None,
        kind: Notifications = "completion",
        *,
        at: int = 1,
        count: int | None = 1,
        probability: float = 1.0,
        peer: str | None = None,
    ) -> Fault:
        """Have a notification that arrives heard so many seconds later; None: when it is released.

        Others may overtake it.
        """
        return self._add("delay", self._kind(kind), seconds, at, count, probability, peer)

    def duplicate(
        self,
        kind: Notifications = "completion",
        *,
        at: int = 1,
        count: int | None = 1,
        probability: float = 1.0,
        peer: str | None = None,
    ) -> Fault:
        """Have a notification that arrives heard twice. Harmless: an operation ends once."""
        return self._add("duplicate", self._kind(kind), None, at, count, probability, peer)

    def stall(
        self,
        seconds: float | None = None,
        *,
        at: int = 1,
        count: int | None = 1,
        probability: float = 1.0,
        peer: str | None = None,
    ) -> Fault:
        """Have a piece not end for so many seconds; None: until it is released.

        Its transfer ends with `TransferTimeoutError` after the connector's `stall_timeout` or its own `timeout`, and is
        not quiesced before the piece has ended. The bytes do move.
        """
        return self._add("stall", "", seconds, at, count, probability, peer)

    def slow(
        self,
        seconds: float,
        *,
        at: int = 1,
        count: int | None = None,
        probability: float = 1.0,
        peer: str | None = None,
    ) -> Fault:
        """Have every piece take at least so many seconds."""
        return self._add("slow", "", seconds, at, count, probability, peer)

    def fail(
        self,
        *,
        after_moving: bool = False,
        at: int = 1,
        count: int | None = 1,
        probability: float = 1.0,
        peer: str | None = None,
    ) -> Fault:
        """Have a piece fail, which ends its transfer with `TransferError`.

        As in earnest, nobody can tell whether a failed piece of several descriptors is quiet: the transfer's memory
        then stays pinned, and `wait_quiesced` raises.

        Parameters
        ----------
        after_moving
            Whether its bytes move before. If not, nothing of it does.
        """
        return self._add("fail", "after moving" if after_moving else "", None, at, count, probability, peer)

    def stale(
        self,
        *,
        at: int = 1,
        count: int | None = 1,
        probability: float = 1.0,
        peer: str | None = None,
    ) -> Fault:
        """Have a transfer find that what the peer exposed is no longer so: it ends with `StaleMetadataError`.

        Counted is each question whether an exposure is open. A transfer asks before its first byte, twice where it
        takes more than a moment, and behind its last one: `at=2`, or 3 for a big one, has the bytes move first. The
        peer hears nothing of it, and its operation waits on. Peers that are not dynamo_nixl are not asked.
        """
        return self._add("stale", "", None, at, count, probability, peer)

    def lose(self, peer: str | None = None, *, is_dead: bool = False) -> Fault:
        """Have everything with a peer fail until this is cleared; None: with every peer.

        Transfers end with `TransferError`, nothing is sent to the peer and nothing that it sends arrives. What is on
        its way is driven to its end before that is said.

        Parameters
        ----------
        peer
            Its worker id, or the name of one of its agents.
        is_dead
            Whether it is known that its process has ended: transfers then end with `PeerLostError`.
        """
        return self._add("lost", "dead" if is_dead else "", None, 1, None, 1.0, peer)

    @property
    def injected(self) -> dict[str, int]:
        """How often each kind of fault has struck, those that were cleared included.

        The kinds are drop, delay, duplicate, stall, slow, fail, stale and lost. Of the last one, everything that failed
        counts.
        """
        return dict.fromkeys(_EFFECTS, 0) | self._native.injected

    def release(self) -> None:
        """Let go of what is held now, of stalled pieces and delayed notifications. The faults stay."""
        self._native.release()

    def clear(self) -> None:
        """Take all faults out, and let go of what they hold. Others can be added afterwards."""
        self._native.clear()

    def __repr__(self) -> str:
        return f"Faults(injected={self._native.injected})"

    def _add(
        self,
        effect: str,
        variant: str,
        seconds: float | None,
        at: int,
        count: int | None,
        probability: float,
        peer: str | None,
    ) -> Fault:
        """Check what all have in common, and add it. Raises TypeError and ValueError."""
        at = _positive("at", at)
        count = None if count is None else _positive("count", count)
        chance: Any = probability
        if not isinstance(chance, int | float):
            raise TypeError(f"probability is a number: {type(chance).__name__}")
        if math.isnan(chance) or not 0 <= chance <= 1:
            raise ValueError(f"probability is from 0 to 1: {chance!r}")
        name: object = peer
        if name is not None and not isinstance(name, str):
            raise TypeError(f"a peer is named by a str: {type(name).__name__}")
        held = _checked_seconds("seconds", seconds, None)
        return Fault(self._native.add(effect, variant, held, (at, count, float(chance), peer)), effect)

    @staticmethod
    def _kind(kind: str) -> str:
        if kind not in ("completion", "message", "any"):
            raise ValueError(f"notifications are of kind completion, message or any: {kind!r}")
        return kind


def _positive(name: str, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} is an int: {type(value).__name__}")
    if not 1 <= value < 2**63:
        raise ValueError(f"{name} is at least 1: {value}")
    return value
