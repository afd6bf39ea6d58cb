"""The memory behind an object that speaks DLPack, read without any tensor library.

The structures are those of DLPack's C header; `docs: https://dmlc.github.io/dlpack/latest/c_api.html`.
"""

import ctypes
from typing import Any, Final, NamedTuple

from .kinds import DeviceKind

_KINDS: Final = {
    1: DeviceKind.HOST,  # kDLCPU
    2: DeviceKind.CUDA,  # kDLCUDA
    3: DeviceKind.HOST,  # kDLCUDAHost, pinned
    13: DeviceKind.CUDA,  # kDLCUDAManaged
    14: DeviceKind.XPU,  # kDLOneAPI
}
_READ_ONLY: Final = 1
"""`DLPACK_FLAG_BITMASK_READ_ONLY`."""


class Exported(NamedTuple):
    """What a capsule describes. The memory lives as long as the capsule."""

    capsule: object
    ptr: int
    size: int
    kind: DeviceKind
    ordinal: int
    is_read_only: bool
    shape: list[int]
    strides: list[int] | None
    """In elements; None: one behind the other."""


class _Tensor(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    ]


class _Managed(ctypes.Structure):
    _fields_ = [("tensor", _Tensor), ("manager", ctypes.c_void_p), ("deleter", ctypes.c_void_p)]


class _ManagedVersioned(ctypes.Structure):
    _fields_ = [
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("manager", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
        ("flags", ctypes.c_uint64),
        ("tensor", _Tensor),
    ]


def export(data: Any) -> Exported:
    """Ask an object with `__dlpack__` for its memory.

    Raises
    ------
    ValueError
        If the object refuses, the memory is on a device that NIXL does not know, or the version is unknown.
    """
    try:
        try:
            capsule = data.__dlpack__(max_version=(1, 0))
        except TypeError:
            # From before versions were negotiated.
            capsule = data.__dlpack__()
    except BufferError as error:
        raise ValueError(f"{type(data).__name__} does not export its memory through DLPack: {error}") from error
    managed: _Managed | _ManagedVersioned
    if _is_named(capsule, b"dltensor_versioned"):
        managed = _ManagedVersioned.from_address(_pointer(capsule, b"dltensor_versioned"))
        if managed.major != 1:
            raise ValueError(f"this version of DLPack is not understood: {managed.major}.{managed.minor}")
        is_read_only = bool(managed.flags & _READ_ONLY)
    else:
        managed = _Managed.from_address(_pointer(capsule, b"dltensor"))
        is_read_only = False
    tensor = managed.tensor
    kind = _KINDS.get(tensor.device_type)
    if kind is None:
        raise ValueError(f"memory on this device cannot be transferred (DLPack's DLDeviceType): {tensor.device_type}")
    shape = tensor.shape[: tensor.ndim]
    elements = 1
    for extent in shape:
        elements *= extent
    return Exported(
        capsule=capsule,
        ptr=(tensor.data or 0) + tensor.byte_offset,
        size=(elements * tensor.bits * tensor.lanes + 7) // 8,
        kind=kind,
        ordinal=0 if kind is DeviceKind.HOST else tensor.device_id,
        is_read_only=is_read_only,
        shape=shape,
        strides=tensor.strides[: tensor.ndim] if tensor.strides else None,
    )


def _is_named(capsule: object, name: bytes) -> bool:
    is_valid = ctypes.pythonapi.PyCapsule_IsValid
    is_valid.argtypes, is_valid.restype = [ctypes.py_object, ctypes.c_char_p], ctypes.c_int
    return bool(is_valid(capsule, name))


def _pointer(capsule: object, name: bytes) -> int:
    # The name stays as it is: the capsule was not consumed, so its destructor lets go of the memory.
    get = ctypes.pythonapi.PyCapsule_GetPointer
    get.argtypes, get.restype = [ctypes.py_object, ctypes.c_char_p], ctypes.c_void_p
    return int(get(capsule, name) or 0)
