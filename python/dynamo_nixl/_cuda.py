"""What the CUDA driver knows. It is asked directly, so that neither torch nor CuPy need be imported for it."""

import ctypes
from typing import Final

_DEVICE_ORDINAL: Final = 9
"""`CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL`."""


def is_available() -> bool:
    """Whether there is a driver and at least one device that this process may use."""
    driver = _driver()
    if driver is None:
        return False
    count = ctypes.c_int(0)
    return driver.cuDeviceGetCount(ctypes.byref(count)) == 0 and count.value > 0


def ordinal_of(address: int) -> int | None:
    """The ordinal of the device that holds the memory at `address`; None where no driver knows it."""
    driver = _driver()
    if driver is None:
        return None
    ordinal = ctypes.c_int(-1)
    status = driver.cuPointerGetAttribute(ctypes.byref(ordinal), _DEVICE_ORDINAL, ctypes.c_uint64(address))
    return ordinal.value if status == 0 and ordinal.value >= 0 else None


def _driver() -> ctypes.CDLL | None:
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    return driver if driver.cuInit(0) == 0 else None
