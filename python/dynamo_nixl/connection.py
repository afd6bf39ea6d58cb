"""A connector's link to NIXL: the native half that owns agents, registrations and peers."""

from __future__ import annotations

import atexit
import math
import os
import sys
import threading
from importlib import import_module
from typing import Final
from weakref import ref

import dynamo_nixl

from . import _core, _fork, _loop

EXIT_PATIENCE: Final = 5.0
"""Seconds that the end of the interpreter waits for transfers in flight."""


_NO_LIMIT: Final = 2**64 - 1
_LAST: Final = -100
"""Among multiprocessing's finalizers, of which those for queues and pools have higher numbers."""


class Connection:
    """One set of NIXL agents, made for a connector and shared by all its operations.

    `Connector` makes its own when it needs it; there is seldom a reason to make another.

    Parameters
    ----------
    connector
        Whose connection it is.
    number
        Positive; tells the connections of one connector apart.

    Raises
    ------
    TypeError
        If `connector` is no `Connector` or `number` no integer.
    ValueError
        If `number` is not positive.

    Notes
    -----
    Making the object is cheap; NIXL is found, loaded and started by `initialize`, or else by the first operation.
    The connector owns its connection, not the other way round.
    """

    def __init__(self, connector: dynamo_nixl.Connector, number: int) -> None:
        from .connector import Connector

        if not isinstance(connector, Connector):
            raise TypeError(f"a connection belongs to a Connector: {type(connector).__name__}")
        if not isinstance(number, int):
            raise TypeError(f"a connection's number must be an int: {type(number).__name__}")
        if number <= 0:
            raise ValueError(f"a connection's number must be positive: {number}")
        # Weak: a cycle would leave agents, threads and file descriptors to the cyclic garbage collector.
        self._connector = ref(connector)
        settings = connector._settings
        self._native = _core.Connector(
            f"{connector.name}-{number}",
            settings.lease,
            math.inf if settings.grace is None else settings.grace,
            settings.stall_timeout,
            settings.timeout,
            settings.keepalive,
            _NO_LIMIT if settings.quarantine_limit is None else settings.quarantine_limit,
            # Pieces that several agents move come in no order, and are moved anew where one fails.
            settings.copy_lanes if connector._faults is None else 0,
            connector._faults,
        )
        self._remote_refs: dict[str, int] = {}
        self._remote_refs_changes = 0
        # Reentrant, since a `Remote` may be finalised wherever Python runs, so also where this is held.
        self._remote_refs_lock = threading.RLock()
        connector._adopt(self)

    @property
    def name(self) -> str:
        """The name of the NIXL agent: the connector's name, a dash and the number."""
        return self._native.name

    @property
    def connector(self) -> dynamo_nixl.Connector:
        """Whose connection it is.

        Raises
        ------
        RuntimeError
            If the connector is gone; a connection alone does not keep it alive, an operation does.
        """
        connector = self._connector()
        if connector is None:
            raise RuntimeError(f"the connector of this connection no longer exists: {self.name}")
        return connector

    @property
    def metadata(self) -> bytes:
        """What NIXL has to say of this connection's agent and of all that is registered now, in NIXL's own form.

        Grows with the registrations, and opens all of them to whoever holds it; operations send far less. Opens the
        connection if need be, which blocks for half a second.

        Raises
        ------
        ImportError
            If NIXL is missing, too old or too new.
        NixlConnectError
            If the agent could not be made, or was closed.
        """
        self._open_blocking()
        return self._native.agent_metadata()

    def acquire_remote_ref(self, name: str) -> None:
        """Count one more reference to a peer. See `Remote`."""
        self._count_remote_ref(name, 1)

    def release_remote_ref(self, name: str) -> bool:
        """Count one reference to a peer less. True if it was the last; False also if there was none."""
        return self._count_remote_ref(name, -1) == 1

    def _count_remote_ref(self, name: str, change: int) -> int:
        """Returns how many there were before."""
        with self._remote_refs_lock:
            while True:
                changes = self._remote_refs_changes
                before = self._remote_refs.get(name, 0)
                after = max(before + change, 0)
                # The lock keeps other threads out, but no finaliser on this one. From here on nothing is called, and so
                # none can come in between.
                if self._remote_refs_changes == changes:
                    self._remote_refs_changes = changes + 1
                    if after > 0:
                        self._remote_refs[name] = after
                    elif before > 0:
                        del self._remote_refs[name]
                    return before

    async def initialize(self) -> None:
        """Find and load NIXL and start this connection's agent, off the loop's thread.

        Takes about half a second the first time and nothing afterwards. Any number of tasks, loops and threads may call
        it at the same time; a failure is raised to each, and a later call tries again.

        Raises
        ------
        ImportError
            If NIXL is missing, too old or too new; the text says what helps.
        NixlConnectError
            If the agent could not be made. `ConnectorClosedError`, one of these, if the connector is closed.
        """
        self._refuse_closed()
        if self._native.is_open:
            return
        await _loop.run_off_loop_once(_prepare)
        # Before opening: the program may end while that is still going on.
        _close_at_exit()
        await self._native.open()

    def _open_blocking(self) -> None:
        """`initialize` for constructors, which cannot await: upstream's make their agent on the spot as well."""
        self._refuse_closed()
        if self._native.is_open:
            return
        _prepare()
        _close_at_exit()
        self._native.open_blocking()

    def _refuse_closed(self) -> None:
        # Before NIXL is looked for. A connector that is gone as well has closed this one natively.
        connector = self._connector()
        if connector is not None:
            connector._refuse_closed()

    def __str__(self) -> str:
        return self.name

    def __repr__(self) -> str:
        return f"Connection(is_initialized={self._native.is_open}, name='{self.name}')"


def _prepare() -> None:
    """Load what operations need and importing the package must not: NIXL, and pydantic for the metadata."""
    from ._library import ensure_loaded

    import_module(".metadata", __package__)
    ensure_loaded()


_exit_lock = threading.Lock()
_exit_is_arranged = False


def _forget_arrangement() -> None:
    """In a forked child, whose process may end in another way than its parent's."""
    global _exit_lock, _exit_is_arranged
    _exit_lock, _exit_is_arranged = threading.Lock(), False


os.register_at_fork(after_in_child=_forget_arrangement)


def _close_at_exit() -> None:
    """Have live connectors closed in order before the interpreter goes: NIXL's own threads must not outlive it."""
    global _exit_is_arranged
    with _exit_lock:
        if not _exit_is_arranged:
            # Again in a child, where multiprocessing may have cleared it. A second call does nothing.
            atexit.register(_core.shutdown, EXIT_PATIENCE)
            # What multiprocessing has forked off leaves by os._exit, up to CPython 3.12 without looking there.
            util = sys.modules.get("multiprocessing.util")
            if _fork.generation() > 0 and util is not None:
                util.Finalize(None, _core.shutdown, args=(EXIT_PATIENCE,), exitpriority=_LAST)
            _exit_is_arranged = True
