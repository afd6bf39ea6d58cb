"""Naming a device: `"cuda:1"`, `"cpu"` or a pair of kind and ordinal."""

from functools import lru_cache
from typing import Final

from .kinds import DeviceKind

# Tested in this order, by prefix only, as upstream does: "GPUfoo:4" is the fifth CUDA device.
_PREFIXES: Final = (
    ("cuda", DeviceKind.CUDA),
    ("gpu", DeviceKind.CUDA),
    ("xpu", DeviceKind.XPU),
    ("cpu", DeviceKind.HOST),
    ("host", DeviceKind.HOST),
)


class Device:
    """A device that holds memory.

    Parameters
    ----------
    metadata
        A name such as `"cpu"`, `"cuda"`, `"gpu:0"` or `"xpu:1"` (case and surrounding blanks do not matter; without an
        ordinal it is 0; the host's is always 0), or a pair of a `DeviceKind` and an ordinal.

    Raises
    ------
    ValueError
        If `metadata` is None, names no known device, or its ordinal is not an integer.
    TypeError
        If `metadata` is neither a string nor such a pair.

    Notes
    -----
    Devices compare by identity, as upstream; compare `kind` and `id` instead.
    """

    __slots__ = ("_id", "_kind")

    def __init__(self, metadata: str | tuple[DeviceKind, int]) -> None:
        # For a type checker there is nothing to check here; at run time anything may come.
        given: object = metadata
        match given:
            case None:
                raise ValueError("a device needs a name or a (DeviceKind, int) pair: None")
            case str():
                self._kind, self._id = parse(given)
            case (DeviceKind() as kind, int() as ordinal) if isinstance(given, tuple):
                self._kind, self._id = kind, ordinal
            case _:
                raise TypeError(f"a device is named by a str or a (DeviceKind, int) tuple: {given!r}")

    @property
    def id(self) -> int:
        """The device's ordinal in this process."""
        return self._id

    @property
    def kind(self) -> DeviceKind:
        """What kind of device it is."""
        return self._kind

    def __str__(self) -> str:
        has_ordinal = self._kind in (DeviceKind.CUDA, DeviceKind.XPU)
        return f"{self._kind}:{self._id}" if has_ordinal else str(self._kind)

    def __repr__(self) -> str:
        return f"Device(kind={self._kind}, id={self._id})"


@lru_cache(maxsize=64)
def parse(name: str) -> tuple[DeviceKind, int]:
    """Read a device's name. Raises ValueError where it names none."""
    text = name.strip().lower()
    for prefix, kind in _PREFIXES:
        if text.startswith(prefix):
            fields = text.split(":")
            if kind is DeviceKind.HOST or len(fields) == 1:
                return kind, 0
            try:
                return kind, int(fields[1])
            except ValueError:
                raise ValueError(f"a device's ordinal must be an integer: {name!r}") from None
    raise ValueError(f"unknown device, expected cpu, cuda:N or xpu:N: {name!r}")
