"""The front door: one object per worker, from which all operations come."""

from __future__ import annotations

import math
import socket
import threading
from functools import cached_property
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self, TypeVar
from weakref import ref

import dynamo_nixl

from . import _fork, _loop
from ._pairing import check_remote_metadata, local_descriptors_of
from ._settings import DEFAULT, Default, Seconds, Settings, seconds
from .connection import EXIT_PATIENCE, Connection
from .descriptor import Descriptor
from .errors import ConnectorClosedError
from .kinds import OperationKind
from .operations import (
    AbstractOperation,
    PassiveOperation,
    ReadableOperation,
    ReadOperation,
    WritableOperation,
    WriteOperation,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from . import _core
    from .metadata import RdmaMetadata


_Operation = TypeVar("_Operation", bound=AbstractOperation)

_LONGEST_NAME: Final = 960
"""Bytes. An agent's name has at most 1024, of which `-<number>`, `-plain` and `-spare-<number>` are behind this one."""
_LONG_METADATA: Final = 4 * 1024
"""Characters. So many hold up to a thousand regions of ours, or a few MB of a hostile peer's zeros."""
_MANY_DESCRIPTORS: Final = 128
"""Each costs some microseconds on the way in; more of them go that way off the loop's thread."""


class Connector:
    """Begins transfers to and from peers, and exposes memory to them.

    Parameters
    ----------
    worker_id
        A name that no other worker has, of at most 960 bytes of UTF-8 and without a NUL. By default a random one.
    lease
        Seconds that an exposure waits for its peer before it ends with `LeaseExpiredError`. Default 600.
    grace
        Seconds that the memory of an exposure that ended without being complete stays registered and alive, since a
        peer that has its metadata may still be at work on it. Longer while one of our own kind is known to be at work
        on it and not to be dead, as far as `quarantine_limit` allows. Default 30.
    stall_timeout
        Seconds that a transfer may stand still before it ends with `TransferTimeoutError`. Default 30.
    timeout
        Seconds that a transfer may take from its start. Default None.
    keepalive
        Seconds between two questions to a peer of our own kind whether it is there, while a transfer with it is under
        way; 0.1 at the least. An exposure whose peer has left
        three in a row unanswered ends with `PeerLostError`; so does a transfer whose connection broke, where the peer
        does not answer over a new one for so long. None: it is never asked. Default 5.
    quarantine_limit
        Bytes of memory that may stay pinned after their operations have ended. Where transfers with one peer exceed
        it, new ones are refused with `QuarantineFullError`; exposures in `grace` give theirs up, the oldest first.
        Default 1 GiB.

    Raises
    ------
    TypeError
        If `worker_id` is empty or not a string, or a limit is no number.
    ValueError
        If `worker_id` cannot be part of an agent's name, being too long or with characters that are not allowed; if a
        limit is negative, here or in the environment.

    Notes
    -----
    None is no limit. What is not given is taken from the environment (`DYNAMO_NIXL_LEASE` and so on: a number, or
    `none`).

    Making one is cheap: NIXL is found, loaded and started when the first operation needs it. One connector serves any
    number of event loops and threads, also at the same time. Connectors are equal if their names are.

    `async with` closes it at the end, as `aclose` does. One that is not closed is when nothing refers to it or its
    operations any more, or when the interpreter exits.
    """

    def __init__(
        self,
        worker_id: str | None = None,
        *,
        lease: Seconds = DEFAULT,
        grace: Seconds = DEFAULT,
        stall_timeout: Seconds = DEFAULT,
        timeout: Seconds = DEFAULT,
        keepalive: Seconds = DEFAULT,
        quarantine_limit: int | Default | None = DEFAULT,
    ) -> None:
        given: object = _random_name() if worker_id is None else worker_id
        if not isinstance(given, str) or not given:
            raise TypeError(f"a worker id must be a non-empty str: {given!r}")
        _check_name(given)
        self._worker_id = given
        self._settings = Settings.of(
            lease=lease,
            grace=grace,
            stall_timeout=stall_timeout,
            timeout=timeout,
            keepalive=keepalive,
            quarantine_limit=quarantine_limit,
        )
        self._hostname = socket.gethostname()
        # A threading lock because an asyncio one belongs to a single loop. It is never held across an await. Reentrant,
        # since a user's finaliser may close the connector wherever Python runs, so also where this is held.
        self._connection_lock = threading.RLock()
        self._connection_count = 0
        self._shared_connection: Connection | None = None
        # Also those that a subclass or a worker made by itself, in order to close them.
        self._connections: set[ref[Connection]] = set()
        self._is_closed = False
        self._generation = _fork.generation()
        self._faults: _core.Faults | None = None

    @property
    def name(self) -> str:
        """The worker id."""
        return self._worker_id

    @property
    def hostname(self) -> str:
        """The name of this machine."""
        return self._hostname

    @cached_property
    def is_cuda_available(self) -> bool:
        """Whether there is a CUDA driver and a device that this process may use; found out once."""
        from . import _cuda

        return _cuda.is_available()

    async def initialize(self) -> None:
        """Do nothing. Deprecated, as upstream; what is needed is set up when it is needed."""

    async def warmup(self) -> None:
        """Find, load and start NIXL now, so that the first operation need not: half a second, off the loop's thread.

        May be called repeatedly; where it fails, a later call tries again.

        Raises
        ------
        ImportError
            If NIXL is missing, too old or too new.
        NixlConnectError
            If the agent could not be made, or the connector was closed.
        """
        await self._create_connection()

    def close(self) -> None:
        """Begin to close the connector, and return at once. May be called repeatedly, from any thread.

        Nothing new is taken; operations that have not ended fail with `ConnectorClosedError`. What is on its way is
        driven to its end with its memory held, for a few seconds, then the agents are destroyed. `aclose` waits.
        """
        for connection in self._close():
            connection._native.begin_close(EXIT_PATIENCE)

    async def aclose(self, *, deadline: float | None = EXIT_PATIENCE) -> None:
        """As `close`, and wait until all of it is done, off the loop's thread.

        Parameters
        ----------
        deadline
            Seconds that transfers on their way get. The memory of those that need longer stays pinned until the process
            ends, since nothing else would keep their bytes from landing in memory that has other uses by then. None: as
            long as they take.
        """
        limit = seconds("deadline", deadline, EXIT_PATIENCE)
        patience = math.inf if limit is None else limit
        connections = self._close()
        if connections:
            await _loop.run_off_loop(lambda: _close_all(connections, patience))

    def _close(self) -> list[Connection]:
        """Take nothing new. Returns what is to be closed."""
        if self._generation != _fork.generation():
            # A thread of the parent may have held the lock, and nothing here is this process's.
            return []
        with self._connection_lock:
            self._is_closed = True
            # The copy is made in one go, unlike that of a WeakSet, to which a finaliser may add meanwhile.
            living = [connection() for connection in list(self._connections)]
        return [connection for connection in living if connection is not None]

    def _take_faults(self, faults: _core.Faults) -> None:
        """Have faults happen to the connections that are made from now on, for `dynamo_nixl.testing`."""
        with self._connection_lock:
            if self._faults is not None or self._connections:
                raise RuntimeError(f"faults are attached once, and before a connector is used: {self._worker_id}")
            self._faults = faults

    def _adopt(self, connection: Connection) -> None:
        """Have a new connection closed with this connector; at once if it is closed already."""
        with self._connection_lock:
            self._connections.add(ref(connection, self._connections.discard))
            is_closed = self._is_closed
        if is_closed:
            connection._native.begin_close(0.0)

    async def __aenter__(self) -> Self:
        self._refuse_closed()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def begin_read(
        self,
        remote_metadata: dynamo_nixl.RdmaMetadata,
        local_descriptors: Descriptor | list[Descriptor],
        *,
        timeout: Seconds = DEFAULT,
        verify: bool = False,
    ) -> ReadOperation:
        """Begin to copy a peer's memory into local memory.

        The transfer starts at once and goes on in the background, whether or not anyone waits for it.

        Parameters
        ----------
        remote_metadata
            From the peer's `ReadableOperation.metadata`.
        local_descriptors
            Where the bytes go: as many descriptors as the peer exposed, each of the same size.
        timeout
            Seconds that the transfer may take, counted from its start; None: no limit. By default the connector's.
        verify
            Whether to compare what has arrived with the peer's checksum before the operation is complete. Needs a peer
            that has exposed its memory with `verify=True`, and host memory.

        Returns
        -------
        ReadOperation
            The transfer under way. Dropping the last reference to it cancels it.

        Raises
        ------
        TypeError
            If an argument has the wrong type.
        RuntimeError
            If the peer's memory is exposed for writing.
        ValueError
            If the descriptors do not fit the peer's, or cannot be written to. `MetadataError`, a ValueError, if the
            metadata is malformed.
        ImportError
            If NIXL is missing, too old or too new.
        NixlConnectError
            If the transfer could not be started.
        asyncio.CancelledError
            If the waiting task is cancelled; the operation is then cancelled as well.
        """
        remote_metadata = check_remote_metadata(remote_metadata)
        local_descriptors = local_descriptors_of(local_descriptors)
        if remote_metadata.operation_kind != OperationKind.READ:
            raise RuntimeError(_wrong_kind(remote_metadata, "reading"))
        connection = await self._create_connection()
        is_long = _is_long(local_descriptors, remote_metadata)
        return await _made(
            lambda: ReadOperation(connection, remote_metadata, local_descriptors, timeout=timeout, verify=verify),
            is_long=is_long,
        )

    async def begin_write(
        self,
        local_descriptors: Descriptor | list[Descriptor],
        remote_metadata: dynamo_nixl.RdmaMetadata,
        *,
        timeout: Seconds = DEFAULT,
    ) -> WriteOperation:
        """Begin to copy local memory into a peer's memory.

        The transfer starts at once and goes on in the background, whether or not anyone waits for it. The local memory
        must not be changed until it has ended.

        Parameters
        ----------
        local_descriptors
            What is sent: as many descriptors as the peer exposed, each of the same size.
        remote_metadata
            From the peer's `WritableOperation.metadata`.
        timeout
            Seconds that the transfer may take, counted from its start; None: no limit. By default the connector's.

        Returns
        -------
        WriteOperation
            The transfer under way. Dropping the last reference to it cancels it.

        Raises
        ------
        TypeError
            If an argument has the wrong type.
        RuntimeError
            If the peer's memory is exposed for reading.
        ValueError
            If the descriptors do not fit the peer's. `MetadataError`, a ValueError, if the metadata is malformed.
        ImportError
            If NIXL is missing, too old or too new.
        NixlConnectError
            If the transfer could not be started.
        asyncio.CancelledError
            If the waiting task is cancelled; the operation is then cancelled as well.
        """
        remote_metadata = check_remote_metadata(remote_metadata)
        local_descriptors = local_descriptors_of(local_descriptors)
        if remote_metadata.operation_kind != OperationKind.WRITE:
            raise RuntimeError(_wrong_kind(remote_metadata, "writing"))
        connection = await self._create_connection()
        is_long = _is_long(local_descriptors, remote_metadata)
        return await _made(
            lambda: WriteOperation(connection, local_descriptors, remote_metadata, timeout=timeout), is_long=is_long
        )

    async def create_readable(
        self,
        local_descriptors: Descriptor | list[Descriptor],
        *,
        lease: Seconds = DEFAULT,
        verify: bool = False,
    ) -> ReadableOperation:
        """Let one peer read local memory, once.

        Parameters
        ----------
        local_descriptors
            What may be read. It must not be changed until the operation has ended.
        lease
            Seconds after which the operation ends with `LeaseExpiredError` if no peer has completed it; None: no limit.
            By default the connector's.
        verify
            Whether to send a checksum (CRC-32C) of the bytes as they are now, which the peer may check. It is computed
            off the loop's thread, from host memory.

        Returns
        -------
        ReadableOperation
            The exposure; its `metadata` is what the peer needs. Dropping the last reference to it ends it.

        Raises
        ------
        TypeError
            If `local_descriptors` is neither a `Descriptor` nor a list of them.
        ValueError
            If the list is empty, mixes kinds of devices, or holds a null pointer.
        ImportError
            If NIXL is missing, too old or too new.
        NixlConnectError
            If the memory could not be registered.
        asyncio.CancelledError
            If the waiting task is cancelled; nothing stays exposed then.
        """
        local_descriptors = local_descriptors_of(local_descriptors)
        connection = await self._create_connection()
        is_long = _is_long(local_descriptors)
        return await _made(
            lambda: ReadableOperation(connection, local_descriptors, lease=lease, verify=verify), is_long=is_long
        )

    async def create_writable(
        self, local_descriptors: Descriptor | list[Descriptor], *, lease: Seconds = DEFAULT
    ) -> WritableOperation:
        """Let one peer write into local memory, once.

        Parameters
        ----------
        local_descriptors
            Where the peer's bytes go. Its contents are undefined until the operation is complete.
        lease
            Seconds after which the operation ends with `LeaseExpiredError` if no peer has completed it; None: no limit.
            By default the connector's.

        Returns
        -------
        WritableOperation
            The exposure; its `metadata` is what the peer needs. Dropping the last reference to it ends it.

        Raises
        ------
        TypeError
            If `local_descriptors` is neither a `Descriptor` nor a list of them.
        ValueError
            If the list is empty, mixes kinds of devices, or holds a null pointer or memory that cannot be written to.
        ImportError
            If NIXL is missing, too old or too new.
        NixlConnectError
            If the memory could not be registered.
        asyncio.CancelledError
            If the waiting task is cancelled; nothing stays exposed then.
        """
        local_descriptors = local_descriptors_of(local_descriptors)
        connection = await self._create_connection()
        is_long = _is_long(local_descriptors)
        return await _made(lambda: WritableOperation(connection, local_descriptors, lease=lease), is_long=is_long)

    async def _create_connection(self) -> Connection:
        """Get the one connection of this connector, opened. Workers call this, and override it."""
        connection = self._own_connection()
        try:
            await connection.initialize()
        except Exception:
            # The next caller gets a fresh one under a new number, so that no half-made agent's name is used twice. Who
            # is merely cancelled while waiting says nothing about the connection.
            with self._connection_lock:
                if self._shared_connection is connection:
                    self._shared_connection = None
            raise
        return connection

    def _refuse_closed(self) -> None:
        if self._is_closed:
            raise ConnectorClosedError(f"the connector is closed: {self._worker_id}")

    def _own_connection(self) -> Connection:
        """Get the one connection of this connector, opened or not."""
        _fork.refuse(self._generation)
        with self._connection_lock:
            self._refuse_closed()
            connection = self._shared_connection
            if connection is not None:
                return connection
            self._connection_count += 1
            connection = Connection(self, self._connection_count)
            # A finaliser may have been here while it was made.
            self._refuse_closed()
            if self._shared_connection is None:
                self._shared_connection = connection
            return self._shared_connection

    def __hash__(self) -> int:
        return hash(self._worker_id)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Connector):
            return NotImplemented
        return self._worker_id == other._worker_id

    def __str__(self) -> str:
        return self._worker_id

    def __repr__(self) -> str:
        return f"Connector(worker_id='{self._worker_id}', hostname={self._hostname})"


async def _made(make: Callable[[], _Operation], *, is_long: bool) -> _Operation:
    """Make an operation and wait until it has got going."""
    _loop.attend()
    operation = await _loop.run_off_loop(make) if is_long else make()
    if not operation._native.has_started:
        await operation._wait_until_started()
    if is_long and isinstance(operation, PassiveOperation):
        try:
            await _loop.run_off_loop(operation._prepare_metadata)
        except BaseException:
            # Nobody will get hold of this operation, though a traceback may keep it alive.
            operation.cancel()
            raise
    return operation


def _is_long(descriptors: Descriptor | list[Descriptor], metadata: RdmaMetadata | None = None) -> bool:
    """Whether making an operation of this takes so long that the loop should not wait for it.

    Upstream lists all of an agent's regions in its metadata: with thousands of them, decoding takes milliseconds.
    """
    if metadata is not None and len(metadata.nixl_metadata) > _LONG_METADATA:
        return True
    return isinstance(descriptors, list) and len(descriptors) > _MANY_DESCRIPTORS


def _wrong_kind(metadata: RdmaMetadata, wanted: str) -> str:
    if metadata.operation_kind == OperationKind.READ:
        return f"the peer's memory is exposed for reading, not for {wanted}"
    if metadata.operation_kind == OperationKind.WRITE:
        return f"the peer's memory is exposed for writing, not for {wanted}"
    return f"the metadata does not expose memory for {wanted}, its operation_kind is {metadata.operation_kind}"


def _check_name(name: str) -> None:
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        size = None
    if size is None or size > _LONGEST_NAME or "\0" in name:
        shown = repr(name) if len(name) <= 80 else f"{name[:80]!r}..."
        raise ValueError(f"a worker id is at most {_LONGEST_NAME} bytes of UTF-8, without a NUL: {shown}")


def _random_name() -> str:
    # Imports half a dozen modules, which importing the package need not wait for.
    from uuid import uuid4

    return uuid4().hex


def _close_all(connections: list[Connection], deadline: float) -> None:
    # All are told first, so that they end at the same time.
    for connection in connections:
        connection._native.begin_close(deadline)
    for connection in connections:
        connection._native.close(deadline)
