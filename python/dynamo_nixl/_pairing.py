"""Which descriptors an operation accepts, and which ones fit each other."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from .descriptor import ADDRESS_END, Descriptor
from .device import Device, parse
from .errors import MetadataError
from .kinds import DeviceKind

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from ._core import LocalRange, RemoteRange
    from .connection import Connection
    from .metadata import RdmaMetadata


def check_remote_metadata(metadata: Any) -> RdmaMetadata:
    """Return the metadata, made ours if it is upstream's. Raises TypeError for anything else."""
    model = _model()
    if isinstance(metadata, model):
        return metadata
    if _is_upstreams(metadata, "RdmaMetadata"):
        return model.model_validate(metadata.model_dump())
    hint = ""
    if isinstance(metadata, Descriptor | list):
        hint = "; the order is begin_read(metadata, descriptors) and begin_write(descriptors, metadata)"
    elif isinstance(metadata, str | bytes):
        hint = "; make it with RdmaMetadata.model_validate_json"
    elif isinstance(metadata, dict):
        hint = "; make it with RdmaMetadata.model_validate"
    raise TypeError(f"expected the RdmaMetadata of a peer, got {type(metadata).__name__}{hint}")


@cache
def _model() -> type[RdmaMetadata]:
    # Loads pydantic, which must not be part of importing the package; whoever has metadata has it loaded.
    from .metadata import RdmaMetadata

    return RdmaMetadata


def local_descriptors_of(descriptors: Any) -> Descriptor | list[Descriptor]:
    """Return a `Descriptor` or a list of them, with upstream's made ours.

    Raises
    ------
    TypeError
        For anything else; a tuple is refused, as upstream.
    """
    if isinstance(descriptors, Descriptor):
        return descriptors
    if not isinstance(descriptors, list):
        return _ours(descriptors, "expected a Descriptor or a list of them, got")
    return [
        item if isinstance(item, Descriptor) else _ours(item, f"expected a list of Descriptor, item {index} is")
        for index, item in enumerate(descriptors)
    ]


def _ours(descriptor: Any, complaint: str) -> Descriptor:
    if not _is_upstreams(descriptor, "Descriptor"):
        hint = "; wrap each tensor in Descriptor(...), or all with Descriptor.from_tensors([...])"
        raise TypeError(f"{complaint} {type(descriptor).__name__}{hint}")
    stated = descriptor.device
    made = Descriptor((descriptor.ptr, descriptor.size, Device((DeviceKind(stated.kind), stated.id)), descriptor))
    made._take_over_reference(descriptor._data_ref)
    return made


def _is_upstreams(instance: object, name: str) -> bool:
    """Whether it is an instance of a class of upstream's, which a process may use beside ours."""
    return any(each.__module__ == "dynamo.nixl_connect" and each.__name__ == name for each in type(instance).__mro__)


def as_list(descriptors: Descriptor | list[Descriptor]) -> list[Descriptor]:
    """Make a list of our own."""
    return [descriptors] if isinstance(descriptors, Descriptor) else list(descriptors)


def check_fit(local: list[Descriptor], remote: list[RemoteRange]) -> None:
    """Raise ValueError unless both sides have the same shape: alone or in a list, as many, each as large.

    A list of one counts as alone.
    """
    if not local:
        raise ValueError("there is no local descriptor")
    if len(local) != len(remote):
        if len(local) == 1 or len(remote) == 1:
            complaint = "one side has a single descriptor, the other a list"
        else:
            complaint = "both sides must have as many descriptors"
        raise ValueError(f"{complaint}: {len(local)} local, {len(remote)} at the peer")
    for index, (mine, (_, _, _, size)) in enumerate(zip(local, remote, strict=True)):
        if mine.size != size:
            raise ValueError(f"the sizes of descriptor {index} differ: {mine.size} local, {size} at the peer")


def local_ranges(
    descriptors: Sequence[Descriptor], connection: Connection, *, is_destination: bool
) -> list[LocalRange]:
    """Say what the native side needs of our side.

    Raises
    ------
    ValueError
        For what cannot play its role.
    RuntimeError
        For a descriptor that is registered with another connection.
    """
    if not descriptors:
        raise ValueError("there is no local descriptor")
    _check_one_kind([descriptor.device.kind for descriptor in descriptors], "local")
    for descriptor in descriptors:
        descriptor._check_connection(connection)
    return [descriptor._local_range(is_destination=is_destination) for descriptor in descriptors]


def remote_ranges(metadata: RdmaMetadata) -> list[RemoteRange]:
    """Say what the metadata exposes, as the native side needs it. See `check_remote`.

    Raises
    ------
    ValueError
        If that is nothing, or a device's ordinal is not an integer.
    """
    if not metadata.descriptors:
        raise ValueError("the metadata holds no descriptor")
    # By way of no Descriptor: this is done for each transfer, however small.
    return [(*parse(each.device), each.ptr, each.size) for each in metadata.descriptors]


def check_remote(ranges: list[RemoteRange]) -> None:
    """Raise ValueError unless all are on devices of one kind, and MetadataError for what no peer can have."""
    _check_one_kind([kind for kind, _, _, _ in ranges], "the peer's")
    for kind, ordinal, ptr, size in ranges:
        # The model takes any integer, as upstream's; the native side has 64 bits.
        if ptr <= 0 or ptr + size > ADDRESS_END or not 0 <= ordinal < ADDRESS_END:
            shown = Descriptor((ptr, size, Device((DeviceKind(kind), ordinal)), None))
            raise MetadataError(f"no memory can have this range: {shown}")


def _check_one_kind(kinds: Sequence[int], side: str) -> None:
    kind = kinds[0]
    if kind == DeviceKind.UNSPECIFIED:
        raise ValueError(f"{side} descriptor has no device")
    for other in kinds:
        if other != kind:
            raise ValueError(
                f"{side} descriptors are on different kinds of devices: {DeviceKind(kind)}, {DeviceKind(other)}"
            )
