"""The address behind the buffer protocol. A module of its own because ctypes takes milliseconds to import."""

import ctypes
from typing import Final

_SIMPLE: Final = ctypes.c_int(0)
"""`PyBUF_SIMPLE`: plain bytes are asked for, whatever the format and shape."""


class _PyBuffer(ctypes.Structure):
    """`Py_buffer`, whose layout is part of CPython's stable ABI since 3.11."""

    _fields_ = [
        ("buf", ctypes.c_void_p),
        ("obj", ctypes.c_void_p),
        ("len", ctypes.c_ssize_t),
        ("itemsize", ctypes.c_ssize_t),
        ("readonly", ctypes.c_int),
        ("ndim", ctypes.c_int),
        ("format", ctypes.c_void_p),
        ("shape", ctypes.c_void_p),
        ("strides", ctypes.c_void_p),
        ("suboffsets", ctypes.c_void_p),
        ("internal", ctypes.c_void_p),
    ]


def address(view: memoryview) -> int:
    """Where the bytes of a contiguous view begin; valid while the view is alive and not released."""
    # `c_char.from_buffer` would be shorter, but it refuses read-only memory.
    raw = _PyBuffer()
    ctypes.pythonapi.PyObject_GetBuffer(ctypes.py_object(view), ctypes.byref(raw), _SIMPLE)
    try:
        return int(raw.buf or 0)
    finally:
        ctypes.pythonapi.PyBuffer_Release(ctypes.byref(raw))
