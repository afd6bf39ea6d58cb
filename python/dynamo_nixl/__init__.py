"""Asyncio RDMA tensor transfers between workers, on NIXL.

One worker exposes memory, the other reads or writes it, one-sided; the metadata in between travels over any side
channel. The classes are those of Dynamo's `nixl_connect`::

    connector = Connector()
    with await connector.create_readable(Descriptor(tensor)) as operation:
        await send_to_peer(operation.metadata())
        await operation.wait_for_completion()

Importing the package loads neither NIXL, torch, NumPy nor pydantic.
"""

from typing import TYPE_CHECKING, Any

from . import _core
from ._settings import DEFAULT
from .connection import Connection
from .connector import Connector
from .descriptor import Descriptor
from .device import Device
from .errors import (
    CancelledByPeerError,
    ConnectorClosedError,
    ForkedError,
    IntegrityError,
    LeaseExpiredError,
    MetadataError,
    NixlConnectError,
    PeerLostError,
    QuarantineFullError,
    RegistrationError,
    StaleMetadataError,
    TransferError,
    TransferTimeoutError,
)
from .kinds import DeviceKind, OperationKind, OperationStatus
from .operations import (
    AbstractOperation,
    ActiveOperation,
    PassiveOperation,
    ReadableOperation,
    ReadOperation,
    WritableOperation,
    WriteOperation,
)
from .remote import Remote

if TYPE_CHECKING:
    from .metadata import RdmaMetadata, SerializedDescriptor

__version__ = _core.__version__

__all__ = [
    "DEFAULT",
    "AbstractOperation",
    "ActiveOperation",
    "CancelledByPeerError",
    "Connection",
    "Connector",
    "ConnectorClosedError",
    "Descriptor",
    "Device",
    "DeviceKind",
    "ForkedError",
    "IntegrityError",
    "LeaseExpiredError",
    "MetadataError",
    "NixlConnectError",
    "OperationKind",
    "OperationStatus",
    "PassiveOperation",
    "PeerLostError",
    "QuarantineFullError",
    "RdmaMetadata",
    "ReadOperation",
    "ReadableOperation",
    "RegistrationError",
    "Remote",
    "SerializedDescriptor",
    "StaleMetadataError",
    "TransferError",
    "TransferTimeoutError",
    "WritableOperation",
    "WriteOperation",
    "__version__",
]


def __getattr__(name: str) -> Any:
    # The first pydantic model of a process costs 50 to 100 ms of imports, so the models come when they are asked for.
    if name in ("RdmaMetadata", "SerializedDescriptor"):
        from . import metadata

        return getattr(metadata, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
