"""From an object that holds memory to the bytes it stands for.

torch, NumPy and CuPy are looked up in `sys.modules` and never imported: an object of theirs can only arrive in a
process that has imported them already.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any, NamedTuple

from .device import Device
from .kinds import DeviceKind


class Memory(NamedTuple):
    """A range of memory and what is known about the object behind it."""

    ptr: int
    size: int
    device: Device
    owner: object
    """Keeps the bytes where they are for as long as it lives; None if nothing is known of an owner."""
    reference: object
    """What stands for the data in Python: the caller's object, or the contiguous copy of it."""
    refusal: str | None
    """Why a peer's bytes must not be put here, with the remedy; None if they may."""


_COPIED = "its memory is not contiguous, so that data would land in a hidden copy; pass a contiguous object"
_READ_ONLY = "its memory is read-only; pass a bytearray, a writable array or a tensor"


def memory_of(data: object) -> Memory | None:
    """Find the memory behind a tensor, an array or an object with the buffer protocol; None for any other object.

    What is not contiguous is copied once, here: the copy can be sent, but nothing can be received into it.

    Raises
    ------
    TypeError
        If the elements are references to Python objects.
    ValueError
        If the device of a tensor is none that NIXL knows, or an object refuses to export its memory through DLPack.
    """
    torch = sys.modules.get("torch")
    # A module that is just being imported by another thread may lack its attributes still.
    if torch is not None and isinstance(data, getattr(torch, "Tensor", ())):
        return _tensor(torch, data)
    numpy = sys.modules.get("numpy")
    if numpy is not None and isinstance(data, getattr(numpy, "ndarray", ())):
        return _numpy_array(numpy, data)
    cupy = sys.modules.get("cupy")
    if cupy is not None and isinstance(data, getattr(cupy, "ndarray", ())):
        return _cupy_array(cupy, data)
    if _has_cuda_interface(data):
        return _cuda_array(data, None)
    try:
        view = memoryview(data)  # type: ignore[arg-type]  # whether it has the buffer protocol is the question
    except TypeError:
        return _dlpack(data) if hasattr(data, "__dlpack__") and not isinstance(data, type) else None
    return _buffer(data, view)


def memory_on(data: object, device: Device) -> Memory | None:
    """As `memory_of`, for an array whose device the caller states and is trusted with; None for any other object.

    Raises
    ------
    ValueError
        If the array is not contiguous.
    """
    for name in ("numpy", "cupy"):
        module = sys.modules.get(name)
        if module is not None and isinstance(data, getattr(module, "ndarray", ())):
            memory = memory_of(data)
            assert memory is not None  # an array always has memory
            break
    else:
        if not _has_cuda_interface(data):
            return None
        memory = _cuda_array(data, device)
    if memory.reference is not data:
        raise ValueError("a non-contiguous array cannot be paired with a device: the copy would be somewhere else")
    return memory._replace(device=device)


def is_scattered(data: object, ptr: int) -> bool:
    """Whether this is an array that begins at `ptr` and whose elements do not follow each other from there."""
    numpy = sys.modules.get("numpy")
    if numpy is not None and isinstance(data, getattr(numpy, "ndarray", ())):
        array: Any = data
        return not array.flags.c_contiguous and array.__array_interface__["data"][0] == ptr
    cupy = sys.modules.get("cupy")
    if cupy is not None and isinstance(data, getattr(cupy, "ndarray", ())):
        array = data
        return not array.flags.c_contiguous and array.data.ptr == ptr
    return False


def named(tensors: object) -> Iterator[tuple[object, object]]:
    """Go through a sequence or a mapping of tensors, in its order: (index or key, tensor).

    Raises
    ------
    TypeError
        If `tensors` is neither.
    """
    if isinstance(tensors, Mapping):
        yield from tensors.items()
    elif isinstance(tensors, Sequence) and not isinstance(tensors, str | bytes | bytearray | memoryview):
        yield from enumerate(tensors)
    else:
        raise TypeError(f"expected a sequence or a mapping of tensors, such as a list, got {type(tensors).__name__}")


def _tensor(torch: ModuleType, tensor: Any) -> Memory:
    kind_name = tensor.device.type
    if kind_name == "cpu":
        device = Device((DeviceKind.HOST, 0))
    elif kind_name in ("cuda", "xpu"):
        kind = DeviceKind.CUDA if kind_name == "cuda" else DeviceKind.XPU
        device = Device((kind, tensor.get_device()))
    else:
        raise ValueError(f"tensors on this device cannot be transferred, only cpu, cuda and xpu: {tensor.device}")
    if tensor.layout is not torch.strided:
        raise ValueError(f"only dense (strided) tensors can be transferred: {tensor.layout}")
    # A lazily conjugated or negated tensor stores other bytes than the values it shows.
    copied = tensor.is_conj() or tensor.is_neg() or not tensor.is_contiguous()
    source = tensor.detach().resolve_conj().resolve_neg().contiguous() if copied else tensor
    return Memory(
        ptr=source.data_ptr(),
        size=source.numel() * source.element_size(),
        device=device,
        # Not the tensor itself: assigning to `tensor.data` would let its memory go while a transfer is writing there.
        owner=source.untyped_storage(),
        reference=source,
        refusal=_COPIED if copied else None,
    )


def _numpy_array(numpy: ModuleType, array: Any) -> Memory:
    if array.dtype.hasobject:
        raise TypeError(f"arrays of Python objects cannot be transferred: dtype {array.dtype}")
    refusal = None
    if not array.flags.c_contiguous:
        array = numpy.ascontiguousarray(array)
        refusal = _COPIED
    elif not array.flags.writeable:
        refusal = _READ_ONLY
    ptr = array.__array_interface__["data"][0]
    return Memory(ptr, array.nbytes, Device((DeviceKind.HOST, 0)), array, array, refusal)


def _cupy_array(cupy: ModuleType, array: Any) -> Memory:
    refusal = None
    if not array.flags.c_contiguous:
        array = cupy.ascontiguousarray(array)
        refusal = _COPIED
    return Memory(array.data.ptr, array.nbytes, Device((DeviceKind.CUDA, array.device.id)), array, array, refusal)


def _has_cuda_interface(data: object) -> bool:
    # Not of the class itself, which has the property but no memory.
    return not isinstance(data, type) and hasattr(data, "__cuda_array_interface__")


def _cuda_array(data: Any, device: Device | None) -> Memory:
    # https://numba.readthedocs.io/en/stable/cuda/cuda_array_interface.html
    interface = data.__cuda_array_interface__
    ptr, is_read_only = interface["data"]
    shape = tuple(interface["shape"])
    item = int(interface["typestr"][2:])
    size = item
    for extent in shape:
        size *= extent
    strides = interface.get("strides")
    if strides is not None and size > 0 and not is_row_major(shape, strides, item):
        raise ValueError("memory given by __cuda_array_interface__ must be contiguous (row-major)")
    if device is None:
        from . import _cuda

        ordinal = _cuda.ordinal_of(ptr) if size > 0 else 0
        if ordinal is None:
            raise ValueError(
                "no CUDA driver knows where this array's memory is; state its device: Descriptor((array, 'cuda:0'))"
            )
        device = Device((DeviceKind.CUDA, ordinal))
    return Memory(ptr, size, device, data, data, _READ_ONLY if is_read_only else None)


def is_row_major(shape: Sequence[int], strides: Sequence[int], item: int) -> bool:
    """Whether elements, each `item` away from the next in the unit of the strides, lie one behind the other."""
    expected = item
    for extent, stride in zip(reversed(shape), reversed(strides), strict=True):
        if extent != 1 and stride != expected:
            return False
        expected *= extent
    return True


def _dlpack(data: object) -> Memory:
    # Loads ctypes, as below.
    from . import _dlpack as dlpack

    exported = dlpack.export(data)
    if exported.strides is not None and exported.size > 0 and not is_row_major(exported.shape, exported.strides, 1):
        raise ValueError("memory given by DLPack must be contiguous (row-major)")
    return Memory(
        ptr=exported.ptr,
        size=exported.size,
        device=Device((exported.kind, exported.ordinal)),
        owner=exported.capsule,
        reference=data,
        refusal=_READ_ONLY if exported.is_read_only else None,
    )


def _buffer(data: object, view: memoryview) -> Memory:
    # Every second part is the name of a field.
    if "O" in "".join(view.format.split(":")[::2]):
        raise TypeError(f"buffers of Python objects cannot be transferred: format {view.format!r}")
    reference = data
    refusal = None
    if not view.c_contiguous:
        reference = view.tobytes()
        view = memoryview(reference)
        refusal = _COPIED
    elif view.readonly:
        refusal = _READ_ONLY
    # Loads ctypes, which who sends tensors need not wait for.
    from ._pybuffer import address

    # The view is the owner: while an export exists a bytearray cannot be resized nor a mapping closed.
    return Memory(address(view), view.nbytes, Device((DeviceKind.HOST, 0)), view, reference, refusal)
