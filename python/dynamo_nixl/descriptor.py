"""A range of local memory, as the caller names it."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final
from weakref import ref

import dynamo_nixl

from .device import Device
from .kinds import DeviceKind
from .tensors import Memory, is_scattered, memory_of, memory_on, named

if TYPE_CHECKING:
    from ._core import LocalRange, Region
    from .connection import Connection
    from .operations import AbstractOperation


ADDRESS_END: Final = 1 << 64
_NOWHERE: Final = 0x1000
"""Stands for the address of nothing; it is never followed."""

_users_lock = threading.RLock()
"""For all descriptors: two operations that begin in two threads must not forget each other."""


def _renew_lock() -> None:
    """In a forked child."""
    global _users_lock
    _users_lock = threading.RLock()


os.register_at_fork(after_in_child=_renew_lock)


class Descriptor:
    """A range of memory that a peer may read, or that a peer's bytes go to.

    Parameters
    ----------
    data
        One of

        - a `torch.Tensor` on the CPU, on CUDA or XPU;
        - a NumPy or CuPy array, or any object with `__cuda_array_interface__`, alone or as a pair `(array, device)`; a
          stated device is trusted;
        - `bytes`, `bytearray`, `memoryview` or any other object with the buffer protocol;
        - an object with `__dlpack__`, whose memory must be contiguous;
        - a tuple `(address, bytes[, device[, owner]])`: nothing is checked, the device is the host unless stated, and
          the memory must stay valid until the operations that use it have ended, which holding `owner` can ensure.

    Raises
    ------
    TypeError
        If `data` is none of these, or consists of references to Python objects.
    ValueError
        If `data` is None, or names an unknown device.

    Notes
    -----
    Nothing is imported, registered or pinned by making a descriptor. The object behind it is kept alive, and a
    `bytearray` cannot be resized meanwhile.

    Non-contiguous tensors and arrays are copied once, when the descriptor is made: they can be sent (as they were
    then), but an operation that would receive into them is refused with `ValueError`, and so is one that would receive
    into read-only memory. Descriptors compare by identity (as upstream).
    """

    def __init__(self, data: Any) -> None:
        self._data_ptr: int
        # Workers assign to this in order to move only the beginning of a pooled buffer, and restore it afterwards.
        self._data_size: int
        self._data_device: Device
        # Workers slice this when it is a tensor.
        self._data_ref: object
        self._owner: object
        self._refusal: str | None = None
        # Replaced and never changed, and no WeakSet: of thousands of descriptors each would have one of its own.
        self._users: tuple[ref[AbstractOperation], ...] = ()
        self._registration: tuple[Connection, Region] | None = None

        if data is None:
            raise ValueError("a descriptor needs an object that holds memory: None")
        if isinstance(data, tuple):
            self._extent = self._init_from_tuple(data)
            return
        memory = memory_of(data)
        if memory is None:
            raise TypeError(f"not an object whose memory can be described: {type(data).__name__}")
        self._extent = self._init_from_memory(memory)

    def _init_from_memory(self, memory: Memory) -> int:
        """Return the size that must not be exceeded."""
        self._data_ptr, self._data_size, self._data_device, self._owner, self._data_ref, self._refusal = memory
        if self._data_ptr == 0 and self._data_size == 0:
            # Where nothing is, some libraries say 0, which is no address on the wire.
            self._data_ptr = _NOWHERE
        return memory.size

    def _init_from_tuple(self, data: tuple[Any, ...]) -> int | None:
        """Return the size that must not be exceeded; None where only the caller knows."""
        if len(data) == 2 and isinstance(data[1], (Device, str)) and not isinstance(data[0], int):
            memory = memory_on(data[0], _device(data[1]))
            if memory is not None:
                return self._init_from_memory(memory)
        if len(data) >= 2 and isinstance(data[0], int) and isinstance(data[1], int):
            self._data_ptr, self._data_size = data[:2]
            self._data_device = _device(data[2]) if len(data) > 2 else Device((DeviceKind.HOST, 0))
            self._owner = self._data_ref = data[3] if len(data) > 3 else None
            return None
        raise TypeError(
            "a tuple must be (array, device) or (address, bytes[, device[, owner]]): "
            f"({', '.join(type(item).__name__ for item in data)})"
        )

    def _take_over_reference(self, reference: object) -> None:
        """Heed what is known of an object that may be the one at this address, besides the owner.

        Address, size and device stay as they were stated.

        Raises
        ------
        ValueError
            If it is an array at this address that is not contiguous.
        """
        self._data_ref = reference
        if reference is None:
            return
        if is_scattered(reference, self._data_ptr):
            raise ValueError("an array that is not contiguous cannot be transferred as the range where it begins")
        try:
            memory = memory_of(reference)
        except (TypeError, ValueError):
            return
        if memory is not None and memory.ptr == self._data_ptr:
            self._refusal = memory.refusal
            # The second keeps the bytes where they are, which the object alone need not.
            self._owner = (self._owner, memory.owner)

    @staticmethod
    def from_serialized(serialized: dynamo_nixl.SerializedDescriptor) -> Descriptor:
        """Describe a peer's range, as read from its metadata.

        Raises
        ------
        TypeError
            If `serialized` is not a `SerializedDescriptor`.
        """
        from .metadata import SerializedDescriptor

        if not isinstance(serialized, SerializedDescriptor):
            raise TypeError(f"expected a SerializedDescriptor: {type(serialized).__name__}")
        return serialized.to_descriptor()

    @staticmethod
    def from_tensors(tensors: Sequence[Any] | Mapping[Any, Any]) -> list[Descriptor]:
        """Describe a sequence or a mapping of tensors, in its order.

        Parameters
        ----------
        tensors
            Anything that `Descriptor` accepts, in a list or tuple, or as the values of a mapping such as a state dict.

        Returns
        -------
        list[Descriptor]
            One for each tensor. A peer pairs them by position: both sides must have the same order.

        Raises
        ------
        TypeError, ValueError
            If `tensors` is neither, or as `Descriptor`, naming the index or key.
        """
        descriptors = []
        for name, tensor in named(tensors):
            try:
                descriptors.append(Descriptor(tensor))
            except TypeError as error:
                raise TypeError(f"tensor {name!r}: {error}") from error
            except ValueError as error:
                raise ValueError(f"tensor {name!r}: {error}") from error
        return descriptors

    @property
    def device(self) -> Device:
        """The device that holds the memory."""
        return self._data_device

    @property
    def ptr(self) -> int:
        """The address of the first byte."""
        return self._data_ptr

    @property
    def size(self) -> int:
        """How many bytes an operation moves."""
        return self._data_size

    @property
    def is_registered(self) -> bool:
        """Whether an operation holds this memory registered with NIXL.

        True from the beginning of an operation until it is disposed of (as upstream): its `with` block ended, or its
        last reference is gone. And as long as it is registered by `register_with_connector`, which no operation ends.
        """
        return self._standing_registration() is not None or self._is_used(None)

    def _is_used(self, connection: Connection | None) -> bool:
        """Whether an operation, of that connection or of any, holds the memory."""
        users = [user for each in self._users if (user := each()) is not None and _is_in_use(user)]
        return any(connection in (None, user._connection) for user in users)

    def register_with_connector(self, connection: dynamo_nixl.Connection) -> None:
        """Register the memory once, for all operations that use it or the beginning of it.

        It stays registered until `deregister_with_connector`, or as long as this object lives. Whoever is shown the
        beginning of it (as set by `_data_size`) can reach all of it.

        Parameters
        ----------
        connection
            Of the connector whose operations are meant. It is opened if need be, which blocks for half a second.

        Raises
        ------
        TypeError
            If `connection` is not a `Connection`.
        ValueError
            If the descriptor holds a null pointer.
        RuntimeError
            If it is registered with another connection.
        NixlConnectError
            If NIXL refuses.
        """
        _check_connection(connection)
        self._check_connection(connection)
        if self._registration is not None:
            return
        kind, ordinal, ptr, size, owner = self._local_range(is_destination=False)
        whole = size if self._extent is None else self._extent
        connection._open_blocking()
        (region,) = connection._native.register([(kind, ordinal, ptr, whole, owner)])
        self._registration = (connection, region)

    def deregister_with_connector(self, connection: dynamo_nixl.Connection) -> None:
        """End what `register_with_connector` began. Operations keep the memory registered for themselves.

        Does nothing where it was an operation of that connection that registered the memory.

        Raises
        ------
        TypeError
            If `connection` is not a `Connection`.
        RuntimeError
            If the descriptor is not registered with it.
        """
        _check_connection(connection)
        self._check_connection(connection)
        if self._registration is not None:
            _, region = self._registration
            self._registration = None
            region.release()
        elif not self._is_used(connection):
            raise RuntimeError("the descriptor is not registered with this connection")

    def register_memory(self, connector: dynamo_nixl.Connector) -> None:
        """Register with a connector's own connection: the name that upstream's documentation still uses.

        Raises
        ------
        TypeError
            If `connector` is not a `Connector`.
        NixlConnectError
            As `register_with_connector`.
        """
        from .connector import Connector

        if not isinstance(connector, Connector):
            raise TypeError(f"memory is registered with a Connector: {type(connector).__name__}")
        self.register_with_connector(connector._own_connection())

    def _check_connection(self, connection: Connection) -> None:
        """Raise RuntimeError if the memory is registered with another connection."""
        registration = self._standing_registration()
        if registration is not None and registration[0] is not connection:
            raise RuntimeError(
                f"the descriptor is registered with another connection, {registration[0]}; "
                "use deregister_with_connector with that one first"
            )

    def _standing_registration(self) -> tuple[Connection, Region] | None:
        """Get the registration, unless it went with its connection."""
        if self._registration is not None and not self._registration[1].is_registered:
            self._registration = None
        return self._registration

    @property
    def metadata(self) -> dynamo_nixl.SerializedDescriptor:
        """The range as plain data. Says nothing about access: that is what `PassiveOperation.metadata` is for."""
        from .metadata import SerializedDescriptor

        return SerializedDescriptor(device=str(self._data_device), ptr=self._data_ptr, size=self._data_size)

    def __str__(self) -> str:
        return f"ptr={self._data_ptr:#x}, size={self._data_size}, device={self._data_device}"

    def __repr__(self) -> str:
        return f"Descriptor({self})"

    def _local_range(self, *, is_destination: bool) -> LocalRange:
        """Say what the native side needs, checked for the role the memory is to play.

        Raises
        ------
        ValueError
            If the memory cannot play it.
        """
        if is_destination and self._refusal is not None:
            raise ValueError(f"cannot receive into {self!r}: {self._refusal}")
        if self._data_ptr <= 0:
            raise ValueError(f"the address of a descriptor must be positive: {self._data_ptr}")
        if self._data_size < 0:
            raise ValueError(f"the size of a descriptor cannot be negative: {self._data_size}")
        if self._extent is not None and self._data_size > self._extent:
            raise ValueError(f"the size of a descriptor exceeds its memory of {self._extent} bytes: {self._data_size}")
        device = self._data_device
        if self._data_ptr + self._data_size > ADDRESS_END or not 0 <= device.id < ADDRESS_END:
            raise ValueError(f"no memory can have this range: {self}")
        return int(device.kind), device.id, self._data_ptr, self._data_size, self._owner


def _is_in_use(user: AbstractOperation | None) -> bool:
    return user is not None and not user._is_disposed


def add_user(descriptors: list[Descriptor], operation: AbstractOperation) -> None:
    """Have them know of an operation that uses them."""
    # One for all of them: thousands of new objects would set off the garbage collector.
    alone = (ref(operation),)
    with _users_lock:
        for descriptor in descriptors:
            living = [each for each in descriptor._users if _is_in_use(each())] if descriptor._users else None
            descriptor._users = (*living, *alone) if living else alone


def _check_connection(connection: object) -> None:
    from .connection import Connection

    if not isinstance(connection, Connection):
        hint = "; use register_memory(connector)" if hasattr(connection, "_create_connection") else ""
        raise TypeError(f"memory is registered with a Connection, got {type(connection).__name__}{hint}")


def _device(value: object) -> Device:
    if isinstance(value, Device):
        return value
    if isinstance(value, str):
        return Device(value)
    raise TypeError(f"a device is given as a Device or a str: {type(value).__name__}")
