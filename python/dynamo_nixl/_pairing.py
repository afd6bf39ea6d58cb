"""Which descriptors an operation accepts, and which ones fit each other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from .descriptor import Descriptor
from .errors import MetadataError
from .kinds import DeviceKind

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ._core import LocalRange, RemoteRange

_ADDRESS_END: Final = 1 << 64


def check_local_descriptors(descriptors: object) -> None:
    """Raise TypeError unless this is a `Descriptor` or a list of them; a tuple is refused, as upstream."""
    if isinstance(descriptors, Descriptor):
        return
    if not isinstance(descriptors, list):
        raise TypeError(f"expected a Descriptor or a list of them: {type(descriptors).__name__}")
    for index, item in enumerate(descriptors):
        if not isinstance(item, Descriptor):
            raise TypeError(f"expected a list of Descriptor, item {index} is: {type(item).__name__}")


def as_list(descriptors: Descriptor | list[Descriptor]) -> list[Descriptor]:
    """Make a list of our own."""
    return [descriptors] if isinstance(descriptors, Descriptor) else list(descriptors)


def check_fit(local: Descriptor | list[Descriptor], remote: Descriptor | list[Descriptor]) -> None:
    """Raise ValueError unless both sides have the same shape: alone or in a list, as many, each as large.

    A list of one counts as alone.
    """
    local_list, remote_list = as_list(local), as_list(remote)
    if not local_list:
        raise ValueError("there is no local descriptor")
    if (len(local_list) == 1) != (len(remote_list) == 1):
        raise ValueError(
            "one side has a single descriptor, the other a list: "
            f"{len(local_list)} local, {len(remote_list)} at the peer"
        )
    if len(local_list) != len(remote_list):
        raise ValueError(
            f"both sides must have as many descriptors: {len(local_list)} local, {len(remote_list)} at the peer"
        )
    for index, (mine, theirs) in enumerate(zip(local_list, remote_list, strict=True)):
        if mine.size != theirs.size:
            raise ValueError(f"the sizes of descriptor {index} differ: {mine.size} local, {theirs.size} at the peer")


def local_ranges(descriptors: Sequence[Descriptor], *, is_destination: bool) -> list[LocalRange]:
    """Say what the native side needs of our side. Raises ValueError for what cannot play its role."""
    if not descriptors:
        raise ValueError("there is no local descriptor")
    _check_one_kind(descriptors, "local")
    return [descriptor._local_range(is_destination=is_destination) for descriptor in descriptors]


def remote_ranges(descriptors: Sequence[Descriptor]) -> list[RemoteRange]:
    """Say what the native side needs of the peer's side. Raises MetadataError for what no peer can have."""
    _check_one_kind(descriptors, "the peer's")
    ranges = []
    for descriptor in descriptors:
        device, ptr, size = descriptor.device, descriptor.ptr, descriptor.size
        # The model takes any integer, as upstream's; the native side has 64 bits.
        if ptr <= 0 or ptr + size > _ADDRESS_END or device.id < 0:
            raise MetadataError(f"no memory can have this range: {descriptor}")
        ranges.append((int(device.kind), device.id, ptr, size))
    return ranges


def _check_one_kind(descriptors: Sequence[Descriptor], side: str) -> None:
    kind = descriptors[0].device.kind
    if kind is DeviceKind.UNSPECIFIED:
        raise ValueError(f"{side} descriptor has no device")
    for descriptor in descriptors:
        if descriptor.device.kind is not kind:
            raise ValueError(f"{side} descriptors are on different kinds of devices: {kind}, {descriptor.device.kind}")
