"""A peer's agent, as a connection knows it."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from . import _core
from .connection import Connection


class Remote:
    """A peer that a connection has loaded.

    Operations bring theirs, `ActiveOperation.remote`; there is seldom a reason to make one, except to connect to a peer
    before its first transfer.

    Parameters
    ----------
    connection
        Whose peer it is.
    nixl_metadata
        What the peer says of itself: the text in `RdmaMetadata.nixl_metadata`, or NIXL's own bytes.

    Raises
    ------
    TypeError
        If an argument has the wrong type.
    ValueError
        If `nixl_metadata` is empty; `MetadataError`, a ValueError, if it is malformed or the connection's own.
    ImportError
        If NIXL is missing, too old or too new.
    NixlConnectError
        If the peer cannot be reached.

    Notes
    -----
    Loading a peer for the first time connects to it, which takes milliseconds and blocks the calling thread (as
    upstream). NIXL's own bytes do not say whether the peer is a dynamo_nixl, so it is treated as a foreign one.

    References to a peer are counted, and released at the end of a `with` block or with the object. Unlike upstream's,
    a peer without references stays loaded, so that the next transfer need not connect again; it is dropped when it has
    failed, or to make room.
    """

    _is_released = True
    """Until there is something to release: an object whose constructor failed holds nothing."""

    def __init__(self, connection: Connection, nixl_metadata: bytes | str) -> None:
        if not isinstance(connection, Connection):
            raise TypeError(f"a remote belongs to a Connection: {type(connection).__name__}")
        _check_metadata(nixl_metadata)
        connection._open_blocking()
        native = connection._native.connect(nixl_metadata)
        native.wait_blocking(_core.FINISHED, None)
        native.raise_for_outcome()
        self._hold(connection, native.peer or "")

    @classmethod
    def _of_operation(cls, connection: Connection, name: str) -> Remote:
        """Stand for a peer that an operation deals with, without loading it."""
        remote = cls.__new__(cls)
        remote._hold(connection, name)
        return remote

    def _hold(self, connection: Connection, name: str) -> None:
        self._connection = connection
        self._name = name
        connection.acquire_remote_ref(name)
        self._is_released = False

    @staticmethod
    def decode_metadata(nixl_metadata: bytes | str) -> bytes:
        """Get NIXL's own bytes out of the text that travels; bytes are returned as they are. Loads nothing.

        Raises
        ------
        TypeError
            If `nixl_metadata` is neither bytes nor text.
        ValueError
            If it is empty; `MetadataError`, a ValueError, if the text is malformed or too long.
        """
        _check_metadata(nixl_metadata)
        return nixl_metadata if isinstance(nixl_metadata, bytes) else _core.decode_metadata(nixl_metadata)

    @property
    def connection(self) -> Connection:
        """Whose peer it is."""
        return self._connection

    @property
    def name(self) -> str:
        """The name of the peer's NIXL agent."""
        return self._name

    # Persistent connectors of older workers replace this method, and keep all peers by that.
    def _release(self) -> None:
        """Release the reference, once."""
        if not self._is_released:
            self._is_released = True
            self._connection.release_remote_ref(self._name)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None = None,
        exc_value: BaseException | None = None,
        traceback: TracebackType | None = None,
    ) -> None:
        self._release()

    def __del__(self) -> None:
        self._release()

    def __str__(self) -> str:
        return self._name

    def __repr__(self) -> str:
        return f"Remote(name={self._name}, connection={self._connection})"


def _check_metadata(nixl_metadata: object) -> None:
    if not isinstance(nixl_metadata, bytes | str):
        raise TypeError(f"a peer's metadata is text or bytes: {type(nixl_metadata).__name__}")
    if not nixl_metadata:
        raise ValueError("the peer's metadata is empty")
