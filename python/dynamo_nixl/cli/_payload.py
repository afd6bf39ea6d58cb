"""Tensors for the demo: torch's if torch is installed, NumPy's arrays otherwise."""

from __future__ import annotations

import ctypes
import hashlib
import math
import warnings
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dynamo_nixl import Descriptor


class Tensors:
    """Makes tensors with whichever library there is.

    Raises
    ------
    ImportError
        If there is neither torch nor NumPy.
    """

    def __init__(self) -> None:
        self._torch: Any = None
        self._numpy: Any = None
        with warnings.catch_warnings():
            # torch warns where NumPy is missing, which does not matter here.
            warnings.simplefilter("ignore")
            try:
                import torch

                self._torch = torch
                self.library = f"torch {torch.__version__}"
            except (ImportError, OSError):
                # OSError: torch is there, but one of its libraries is not.
                try:
                    import numpy
                except ImportError:
                    raise ImportError("the demo needs torch or numpy: pip install numpy") from None
                self._numpy = numpy
                self.library = f"numpy {numpy.__version__}"

    def random(self, size: int) -> Any:
        """Make a tensor of `size` bytes with random contents."""
        shape, is_float = shape_of(size)
        if self._torch is not None:
            if is_float:
                return self._torch.randn(shape, dtype=self._torch.float32)
            return self._torch.randint(0, 256, shape, dtype=self._torch.uint8)
        generator = self._numpy.random.default_rng()
        if is_float:
            return generator.standard_normal(shape, dtype=self._numpy.float32)
        return generator.integers(0, 256, shape, dtype=self._numpy.uint8)

    def zeros(self, size: int) -> Any:
        """Make a tensor of `size` bytes, all zero."""
        shape, is_float = shape_of(size)
        library = self._torch if self._torch is not None else self._numpy
        return library.zeros(shape, dtype=library.float32 if is_float else library.uint8)


def shape_of(size: int) -> tuple[tuple[int, ...], bool]:
    """Choose a shape of `size` bytes: a nearly square matrix of floats where that divides, else a row of bytes."""
    if size % 4:
        return (size,), False
    elements = size // 4
    columns = math.gcd(elements, 1 << (math.isqrt(elements).bit_length() - 1))
    return (elements // columns, columns), True


def describe(tensor: Any) -> str:
    """Shape and element type, for people."""
    dtype = str(tensor.dtype).removeprefix("torch.")
    return f"{dtype}[{' x '.join(str(extent) for extent in tensor.shape)}]"


def checksum(descriptor: Descriptor) -> str:
    """Hash every byte of a descriptor's host memory, which is independent of what made it."""
    memory = (ctypes.c_ubyte * descriptor.size).from_address(descriptor.ptr)
    return hashlib.blake2b(memory, digest_size=16).hexdigest()


def clear(descriptor: Descriptor) -> None:
    """Zero a descriptor's host memory, so that nothing left from before can pass for what was transferred."""
    ctypes.memset(descriptor.ptr, 0, descriptor.size)
