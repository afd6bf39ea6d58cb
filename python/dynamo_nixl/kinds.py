"""The three enumerations of the API: where memory lives, which way bytes move, how an operation stands."""

from enum import IntEnum
from typing import Final


class DeviceKind(IntEnum):
    """Where a range of memory lives. `str()` gives the name that travels in metadata."""

    UNSPECIFIED = 0
    """No device. Never valid for a transfer."""
    HOST = 1
    """Main memory of the machine."""
    CUDA = 2
    """Memory of an NVIDIA GPU."""
    XPU = 3
    """Memory of an Intel GPU."""

    def __str__(self) -> str:
        return _DEVICE_TEXT[self]

    @property
    def nixl_mem_type(self) -> str:
        """NIXL's name for this kind of memory: `DRAM` for the host, `VRAM` for everything else (as upstream)."""
        return "DRAM" if self is DeviceKind.HOST else "VRAM"


class OperationKind(IntEnum):
    """Which way the bytes of an operation move, seen from its active side."""

    UNSPECIFIED = 0
    """No direction. Never valid for an operation."""
    READ = 1
    """The active side copies remote memory into its own."""
    WRITE = 2
    """The active side copies its own memory into the remote one."""

    def __str__(self) -> str:
        return _OPERATION_TEXT[self]


class OperationStatus(IntEnum):
    """How an operation stands. `COMPLETE`, `CANCELLED` and `ERRORED` are final: a status never leaves them."""

    UNINITIALIZED = 0
    """The operation does not exist yet."""
    INITIALIZED = 1
    """Set up, nothing moved yet."""
    IN_PROGRESS = 2
    """Bytes are moving."""
    COMPLETE = 3
    """All bytes arrived."""
    CANCELLED = 4
    """Ended by a cancel, of either side."""
    ERRORED = 5
    """Ended by a failure."""

    def __str__(self) -> str:
        return _STATUS_TEXT[self]


_DEVICE_TEXT: Final = {
    DeviceKind.UNSPECIFIED: "<invalid>",
    DeviceKind.HOST: "cpu",
    DeviceKind.CUDA: "cuda",
    DeviceKind.XPU: "xpu",
}
_OPERATION_TEXT: Final = {
    OperationKind.UNSPECIFIED: "<invalid>",
    OperationKind.READ: "READ",
    OperationKind.WRITE: "WRITE",
}
_STATUS_TEXT: Final = {
    OperationStatus.UNINITIALIZED: "<invalid>",
    OperationStatus.INITIALIZED: "INIT",
    OperationStatus.IN_PROGRESS: "PROC",
    OperationStatus.COMPLETE: "DONE",
    OperationStatus.CANCELLED: "STOP",
    OperationStatus.ERRORED: "ERR",
}
