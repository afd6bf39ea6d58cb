"""The four operations: two that move bytes, two that let a peer move them.

An operation runs natively from the moment it is made; the objects here watch and end it. Dropping the last reference to
one, which includes coroutines of its `wait_for_completion`, cancels it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from types import TracebackType
from typing import Self

import dynamo_nixl

from . import _core, _loop
from ._pairing import (
    as_list,
    check_fit,
    check_remote,
    check_remote_metadata,
    local_descriptors_of,
    local_ranges,
    remote_ranges,
)
from ._settings import DEFAULT, Seconds, seconds
from .connection import Connection
from .descriptor import Descriptor, add_user
from .errors import NixlConnectError
from .kinds import OperationKind, OperationStatus
from .remote import Remote


class AbstractOperation(ABC):
    """What all four operations have in common."""

    def __init__(
        self,
        connection: Connection,
        operation_kind: OperationKind,
        local_descriptors: list[Descriptor],
        native: _core.Operation,
    ) -> None:
        self._connection = connection
        # The connection knows its connector only weakly.
        self._connector = connection.connector
        self._operation_kind = operation_kind
        self._local_descriptors = local_descriptors
        self._native = native
        self._is_disposed = False
        add_user(local_descriptors, self)

    @property
    def connection(self) -> Connection:
        """The connection that carries the operation."""
        return self._connection

    @property
    def operation_kind(self) -> OperationKind:
        """Which way the bytes move, seen from the active side."""
        return self._operation_kind

    @property
    def status(self) -> OperationStatus:
        """How the operation stands. Reading it has no effect on the operation."""
        return OperationStatus(self._native.status)

    @abstractmethod
    async def wait_for_completion(self, *, timeout: float | None = None) -> None:
        """Wait until the operation has ended."""

    def cancel(self) -> None:
        """End the operation as `CANCELLED`, at once; does nothing if it has ended already.

        What is on its way cannot be called back. A read or write sends nothing further, and its memory stays registered
        and alive until what is under way has arrived; until then the destination may still change. The memory of an
        exposure whose metadata was asked for stays registered and alive for the connector's `grace`, since a peer may
        be at work on it. `wait_quiesced` tells when it is free.
        """
        self._native.cancel()

    @property
    def error(self) -> BaseException | None:
        """Why the operation failed, as `wait_for_completion` raises it; None where it did not, or has not ended."""
        return self._native.error

    @property
    def bytes_total(self) -> int:
        """How many bytes the operation moves."""
        return self._native.bytes_total

    @property
    def bytes_done(self) -> int:
        """How many bytes have moved, in whole pieces of some MiB. Always 0 of an exposure: its peer moves them."""
        return self._native.bytes_done

    @property
    def is_quiesced(self) -> bool:
        """Whether the operation has ended and the wire can no longer touch its memory."""
        return self._native.is_quiet

    async def wait_quiesced(self) -> None:
        """Wait until the operation has ended and its memory may be put to another use.

        A read or write is quiesced when NIXL has reported the end of everything that it had begun. An exposure is when
        a peer has completed it, when its metadata was never asked for, or else when `grace` has passed after its end,
        or its peers have said that they are done. One of our own on this host that is known to be at work is waited
        for, also while it is stopped, until it is dead; others are not (docs/guarantees.md).
        `asyncio.timeout` limits the wait and leaves the memory pinned.

        Raises
        ------
        TransferError
            If nobody will ever be able to tell; the memory then stays pinned as long as its agent lives.
        """
        if not self._native.is_quiet:
            await _loop.wait(self._native, _core.QUIET)
        self._native.raise_for_never_quiet()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Cancel the operation if it has not ended, and wait until its memory may be put to another use."""
        self.__exit__(exc_type, exc_value, traceback)
        try:
            await self.wait_quiesced()
        except NixlConnectError:
            # What the block raised is to be seen, and most likely says why.
            if exc_value is None:
                raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None = None,
        exc_value: BaseException | None = None,
        traceback: TracebackType | None = None,
    ) -> None:
        """Cancel the operation if it has not ended. May be called by hand, and repeatedly."""
        self._is_disposed = True
        self._native.cancel()

    async def _finish(self, timeout: float | None) -> None:
        timeout = seconds("timeout", timeout, None)
        if not self._native.has_finished:
            await _loop.wait(self._native, _core.FINISHED, timeout)
        self._native.raise_for_outcome()

    async def _wait_for_completion_(
        self, min_poll_ms: float = 5, max_poll_ms: float = 100, backoff_factor: float = 1.5
    ) -> None:
        """Wait as `wait_for_completion` does: upstream's name, with what its polling takes. Nothing here polls."""
        await self._finish(None)

    async def _wait_until_started(self) -> None:
        """Wait until memory is registered and the peer is loaded; raise if that failed.

        A transfer that fails later raises where its end is awaited.
        """
        try:
            await _loop.wait(self._native, _core.STARTED)
        except BaseException:
            # Nobody will get hold of this operation, though a traceback may keep it alive.
            self.cancel()
            raise
        if not self._native.has_started:
            self._native.raise_for_outcome()


class ActiveOperation(AbstractOperation):
    """An operation that moves the bytes, having the peer's metadata."""

    def __init__(
        self,
        connection: Connection,
        operation_kind: OperationKind,
        local_descriptors: Descriptor | list[Descriptor],
        remote_metadata: dynamo_nixl.RdmaMetadata,
        *,
        timeout: Seconds = DEFAULT,
        verify: bool = False,
    ) -> None:
        _check_connection(connection)
        remote_metadata = check_remote_metadata(remote_metadata)
        local_descriptors = local_descriptors_of(local_descriptors)
        if remote_metadata.operation_kind != operation_kind:
            raise ValueError(f"the peer's memory is not exposed for {operation_kind}")
        if not remote_metadata.notification_key:
            raise ValueError("the peer's metadata has no notification key")
        theirs = remote_ranges(remote_metadata)
        local = as_list(local_descriptors)
        check_fit(local, theirs)
        mine = local_ranges(local, connection, is_destination=operation_kind is OperationKind.READ)
        check_remote(theirs)
        limit = seconds("timeout", timeout, connection.connector._settings.timeout)
        connection._open_blocking()
        native = connection._native.begin(
            _core.READ if operation_kind is OperationKind.READ else _core.WRITE,
            remote_metadata.nixl_metadata,
            remote_metadata.notification_key,
            theirs,
            mine,
            limit,
            bool(verify),
        )
        super().__init__(connection, operation_kind, local, native)
        self._remote_metadata = remote_metadata
        self._remote: Remote | None = None

    @property
    def remote(self) -> Remote:
        """The peer."""
        if self._remote is None:
            self._remote = Remote._of_operation(self._connection, self._native.peer or "")
        return self._remote

    async def wait_for_completion(self, *, timeout: float | None = None) -> None:
        """Wait until all bytes are where they belong: here after a read, at the peer after a write.

        Returns at once if they are, and also if the operation was cancelled (as upstream): `status` tells. Any number
        of tasks, in any number of loops, may wait; cancelling one of them leaves the operation as it is.

        Parameters
        ----------
        timeout
            Seconds to wait at most; None: no limit. It ends the wait only, and leaves the operation as it is.

        Raises
        ------
        NixlConnectError
            If the transfer failed; what is in the destination then is undefined.
        TimeoutError
            If `timeout` passed first.
        """
        await self._finish(timeout)

    @abstractmethod
    def cancel(self) -> None:
        """End the operation as `CANCELLED`, at once; does nothing if it has ended already.

        Nothing further is sent. What is on its way cannot be called back: the memory stays registered and alive until
        it has arrived, and until then the destination may still change.
        """
        super().cancel()

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(operation_kind={self._operation_kind}, "
            f"local_descriptors={_alone(self._local_descriptors)}, "
            f"remote_descriptors={self._remote_metadata.to_descriptors()}, "
            f"notification_key='{self._native.notification_key}', remote='{self._native.peer}', "
            f"status='{self.status}')"
        )


class ReadOperation(ActiveOperation):
    """Copies a peer's memory into local memory. Made by `Connector.begin_read`.

    Parameters
    ----------
    connection
        The connection that carries it. If it is not initialized yet, that happens here and blocks for half a second.
    remote_metadata
        From the peer's `ReadableOperation.metadata`.
    local_descriptors
        Where the bytes go.

    Raises
    ------
    TypeError
        If an argument has the wrong type.
    ValueError
        If the peer's memory is exposed for writing, the descriptors do not fit the peer's, or cannot be written to;
        `MetadataError`, a ValueError, if the metadata is malformed.

    Notes
    -----
    The local memory's contents are undefined until the operation is complete.
    """

    def __init__(
        self,
        connection: Connection,
        remote_metadata: dynamo_nixl.RdmaMetadata,
        local_descriptors: Descriptor | list[Descriptor],
        *,
        timeout: Seconds = DEFAULT,
        verify: bool = False,
    ) -> None:
        super().__init__(
            connection, OperationKind.READ, local_descriptors, remote_metadata, timeout=timeout, verify=verify
        )

    def cancel(self) -> None:
        """As `ActiveOperation.cancel`: the local memory may still change until what is under way has arrived."""
        super().cancel()

    def results(self) -> list[Descriptor]:
        """Get the local descriptors, now filled.

        Raises
        ------
        RuntimeError
            If the operation is not complete.
        """
        status = self.status
        if status is not OperationStatus.COMPLETE:
            raise RuntimeError(f"there are results only once an operation is complete: {status}")
        return list(self._local_descriptors)


class WriteOperation(ActiveOperation):
    """Copies local memory into a peer's memory. Made by `Connector.begin_write`.

    Parameters
    ----------
    connection
        The connection that carries it. If it is not initialized yet, that happens here and blocks for half a second.
    local_descriptors
        What is sent.
    remote_metadata
        From the peer's `WritableOperation.metadata`.

    Raises
    ------
    TypeError
        If an argument has the wrong type.
    ValueError
        If the peer's memory is exposed for reading, or the descriptors do not fit the peer's; `MetadataError`, a
        ValueError, if the metadata is malformed.
    """

    def __init__(
        self,
        connection: Connection,
        local_descriptors: Descriptor | list[Descriptor],
        remote_metadata: dynamo_nixl.RdmaMetadata,
        *,
        timeout: Seconds = DEFAULT,
    ) -> None:
        super().__init__(connection, OperationKind.WRITE, local_descriptors, remote_metadata, timeout=timeout)

    def cancel(self) -> None:
        """As `ActiveOperation.cancel`: the local memory must not be changed until what is under way has arrived."""
        super().cancel()


class PassiveOperation(AbstractOperation):
    """An operation that exposes memory and lets a peer move the bytes."""

    def __init__(
        self,
        connection: Connection,
        operation_kind: OperationKind,
        local_descriptors: Descriptor | list[Descriptor],
        *,
        lease: Seconds = DEFAULT,
        verify: bool = False,
    ) -> None:
        _check_connection(connection)
        local_descriptors = local_descriptors_of(local_descriptors)
        limit = seconds("lease", lease, connection.connector._settings.lease)
        self._is_list = isinstance(local_descriptors, list)
        local = as_list(local_descriptors)
        ranges = local_ranges(local, connection, is_destination=operation_kind is OperationKind.WRITE)
        connection._open_blocking()
        native = connection._native.expose(
            _core.READ if operation_kind is OperationKind.READ else _core.WRITE,
            ranges,
            limit,
            bool(verify),
        )
        super().__init__(connection, operation_kind, local, native)
        # What was exposed, for the metadata: the descriptors may be resized for another operation meanwhile.
        self._exposed = [(str(each.device), each.ptr, each.size) for each in local]
        self._serialized: list[dynamo_nixl.SerializedDescriptor] | None = None

    @abstractmethod
    async def wait_for_completion(self, *, timeout: float | None = None) -> None:
        """Wait until a peer reports that it has moved all bytes.

        Returns at once if one has, and also if the operation was cancelled (as upstream): `status` tells. Any number of
        tasks, in any number of loops, may wait; cancelling one of them leaves the operation as it is. The coroutine
        keeps the operation, and with it the memory, alive from the moment it is made, awaited or not.

        Parameters
        ----------
        timeout
            Seconds to wait at most; None: no limit. It ends the wait only, and leaves the operation as it is.

        Raises
        ------
        NixlConnectError
            If the operation failed.
        TimeoutError
            If `timeout` passed first.
        """
        await self._finish(timeout)

    def renew(self, lease: Seconds = DEFAULT) -> None:
        """Let the operation wait for its peer until `lease` seconds from now; None: for ever.

        By default, as long as the connector lets each.

        Raises
        ------
        TypeError
            If `lease` is no number.
        ValueError
            If `lease` is negative, or the operation has ended.
        """
        self._native.renew(seconds("lease", lease, self._connection.connector._settings.lease))

    def _prepare_metadata(self) -> None:
        """Do what takes long for thousands of descriptors, so that `metadata` need not."""
        self._serialized = self._serialize()
        self._native.metadata(False)

    def _serialize(self) -> list[dynamo_nixl.SerializedDescriptor]:
        from .metadata import SerializedDescriptor

        return [SerializedDescriptor(device=device, ptr=ptr, size=size) for device, ptr, size in self._exposed]

    def metadata(self, hex_encode: bool = False) -> dynamo_nixl.RdmaMetadata:
        """Make what a peer needs in order to carry out this operation.

        Parameters
        ----------
        hex_encode
            Encode NIXL's part as hexadecimal instead of base64, for peers that run Dynamo 0.6 or older.

        Returns
        -------
        RdmaMetadata
            Valid until the operation ends. May be asked for repeatedly.

        Raises
        ------
        NixlConnectError
            If the operation has ended, and its metadata was not asked for before; if the memory could not be
            registered, which can only be of an operation that was not made by a `Connector`.
        """
        from .metadata import RdmaMetadata

        if not self._native.has_started:
            # Only an operation made by its constructor can be asked this early; registration takes microseconds.
            self._native.wait_blocking(_core.STARTED, None)
            if not self._native.has_started:
                self._native.raise_for_outcome()
        return RdmaMetadata(
            descriptors=self._serialized or self._serialize(),
            nixl_metadata=self._native.metadata(hex_encode),
            notification_key=self._native.notification_key,
            operation_kind=int(self._operation_kind),
        )

    def __repr__(self) -> str:
        shown = self._local_descriptors if self._is_list else self._local_descriptors[0]
        return (
            f"{type(self).__name__}(operation_kind={self._operation_kind}, "
            f"local_descriptors={shown}, "
            f"notification_key='{self._native.notification_key}', status='{self.status}')"
        )


class ReadableOperation(PassiveOperation):
    """Lets one peer read local memory, once. Made by `Connector.create_readable`.

    Parameters
    ----------
    connection
        The connection that carries it. If it is not initialized yet, that happens here and blocks for half a second.
    local_descriptors
        What may be read. It must not be changed until the operation has ended.

    Raises
    ------
    TypeError
        If an argument has the wrong type.
    ValueError
        If the list is empty, mixes kinds of devices, or holds a null pointer.
    """

    def __init__(
        self,
        connection: Connection,
        local_descriptors: Descriptor | list[Descriptor],
        *,
        lease: Seconds = DEFAULT,
        verify: bool = False,
    ) -> None:
        super().__init__(connection, OperationKind.READ, local_descriptors, lease=lease, verify=verify)

    async def wait_for_completion(self, *, timeout: float | None = None) -> None:
        """Wait until a peer reports that it has read all of it; as `PassiveOperation.wait_for_completion`."""
        await self._finish(timeout)


class WritableOperation(PassiveOperation):
    """Lets one peer write into local memory, once. Made by `Connector.create_writable`.

    Parameters
    ----------
    connection
        The connection that carries it. If it is not initialized yet, that happens here and blocks for half a second.
    local_descriptors
        Where the peer's bytes go. Its contents are undefined until the operation is complete.

    Raises
    ------
    TypeError
        If an argument has the wrong type.
    ValueError
        If the list is empty, mixes kinds of devices, or holds a null pointer or memory that cannot be written to.
    """

    def __init__(
        self,
        connection: Connection,
        local_descriptors: Descriptor | list[Descriptor],
        *,
        lease: Seconds = DEFAULT,
    ) -> None:
        super().__init__(connection, OperationKind.WRITE, local_descriptors, lease=lease)

    async def wait_for_completion(self, *, timeout: float | None = None) -> None:
        """Wait until a peer reports that it has written all of it; as `PassiveOperation.wait_for_completion`."""
        await self._finish(timeout)


def _alone(descriptors: list[Descriptor]) -> Descriptor | list[Descriptor]:
    """Take the only one out of its list, as upstream shows it."""
    return descriptors[0] if len(descriptors) == 1 else descriptors


def _check_connection(connection: object) -> None:
    if not isinstance(connection, Connection):
        raise TypeError(f"an operation needs a Connection: {type(connection).__name__}")
