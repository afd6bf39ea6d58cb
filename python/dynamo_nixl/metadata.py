"""What travels from the passive side to the active side, as pydantic models with upstream's schema."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, field_validator

from .descriptor import Descriptor
from .kinds import OperationKind


class SerializedDescriptor(BaseModel):
    """A range of a peer's memory: plain data, immutable, hashable.

    Attributes
    ----------
    device
        `cpu`, `cuda:N` or `xpu:N`, N being the ordinal at the peer.
    ptr
        Address in the peer's address space. Not 0 when given; may exceed 2**53.
    size
        Bytes, not negative.

    Notes
    -----
    Unknown fields are refused, as upstream refuses them.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    device: str = "cpu"
    ptr: int = 0
    size: int = 0

    def to_descriptor(self) -> Descriptor:
        """Make a `Descriptor` of the same range, without any hold on its memory.

        Raises
        ------
        ValueError
            If the device's ordinal is not an integer.
        """
        return Descriptor((self.ptr, self.size, self.device, None))

    @field_validator("device")
    @classmethod
    def _check_device(cls, device: str) -> str:
        device = device.strip().lower()
        if device != "cpu" and not device.startswith(("cuda", "xpu")):
            raise ValueError("expected cpu, cuda:N or xpu:N")
        return device

    @field_validator("ptr")
    @classmethod
    def _check_ptr(cls, ptr: int) -> int:
        if ptr == 0:
            raise ValueError("an address cannot be 0")
        return ptr

    @field_validator("size")
    @classmethod
    def _check_size(cls, size: int) -> int:
        if size < 0:
            raise ValueError("a size cannot be negative")
        return size


class RdmaMetadata(BaseModel):
    """All that a peer needs in order to read from, or write to, an exposed operation.

    Carry it over any side channel (`model_dump_json`, `model_validate_json`) and hand it to `Connector.begin_read` or
    `Connector.begin_write` there. Whoever holds it can reach the exposed memory, and within a host or over TCP nothing
    revokes that: not even the operation's end.

    Attributes
    ----------
    descriptors
        The exposed ranges; their order is the order of pairing.
    nixl_metadata
        NIXL's metadata, compressed: base64 with the prefix `b64:`, or hexadecimal.
    notification_key
        What the active side sends to the passive side when all bytes have arrived.
    operation_kind
        A number of `OperationKind`: 1 = to be read, 2 = to be written.

    Notes
    -----
    Immutable; unknown fields are refused. An `operation_kind` outside 1 to 3 is a `TypeError`, not a
    `ValidationError` (as upstream).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    descriptors: list[SerializedDescriptor] = []
    nixl_metadata: str = ""
    notification_key: str = ""
    operation_kind: int = 0

    def to_descriptors(self) -> Descriptor | list[Descriptor]:
        """Describe the exposed ranges: a single `Descriptor` if there is one, else a list.

        Raises
        ------
        ValueError
            If there is none, or a device's ordinal is not an integer.
        """
        if not self.descriptors:
            raise ValueError("the metadata holds no descriptor")
        if len(self.descriptors) == 1:
            return self.descriptors[0].to_descriptor()
        return [descriptor.to_descriptor() for descriptor in self.descriptors]

    @field_validator("operation_kind")
    @classmethod
    def _check_operation_kind(cls, kind: int) -> int:
        # 3 names no kind, but upstream lets it through here and refuses it when an operation begins.
        if not OperationKind.READ <= kind <= 3:
            raise TypeError(f"an operation kind is 1 (read) or 2 (write): {kind}")
        return int(kind)
