"""Constructors that fail, in every way: silently, and with nothing left behind.

Upstream's finalisers then miss attributes, which Python prints, and what was registered before the failure stays so.
"""

from __future__ import annotations

import gc
import sys
import weakref

import numpy as np
import pytest
from dynamo_nixl import (
    Connection,
    Connector,
    Descriptor,
    Device,
    DeviceKind,
    RdmaMetadata,
    ReadableOperation,
    ReadOperation,
    Remote,
    WritableOperation,
    WriteOperation,
)

from support import roles, scripts
from support.here import eventually, settle
from support.memory import blank
from support.scripts import Ended

pytestmark = pytest.mark.nixl

SIZE = 64
WAYS = ["plain", "descriptors", "remotes", "active", "passive"]


@pytest.mark.parametrize("way", WAYS)
def test_failing_constructors(pair, way):
    _, readable = pair.owner.call(roles.expose_readable, [SIZE])
    _, writable = pair.owner.call(roles.expose_writable, [SIZE])
    assert pair.reader.call(fail_in_every_way, way, readable, writable)


@pytest.mark.parametrize("kind", [Remote, ReadOperation, WriteOperation, ReadableOperation, WritableOperation])
def test_objects_that_were_never_constructed(pair, kind):
    """Subclasses may forget, or fail before, the constructor of their base."""
    pair.reader.call(make_without_constructor, kind.__name__)


def test_a_registration_that_nixl_refuses(spawn):
    """Host memory that is said to be a device's is refused with or without one. Only NIXL itself would log a line."""
    worker = spawn({"NIXL_LOG_LEVEL": "FATAL"})
    assert worker.call(fail_to_register) == ["RegistrationError"] * 4
    worker.call(roles.settled)


def test_without_nixl(tmp_path):
    source = """
        import gc
        import dynamo_nixl as connect

        connector = connect.Connector()
        connection = connect.Connection(connector, 1)
        data = bytearray(8)
        remote = {"descriptors": [{"ptr": 4096, "size": 8}], "nixl_metadata": "b64:", "notification_key": "key"}
        readable = connect.RdmaMetadata(**remote, operation_kind=1)
        writable = connect.RdmaMetadata(**remote, operation_kind=2)
        for make in (
            lambda: connect.Remote(connection, b"nixl"),
            lambda: connect.ReadableOperation(connection, connect.Descriptor(data)),
            lambda: connect.WritableOperation(connection, connect.Descriptor(data)),
            lambda: connect.ReadOperation(connection, readable, connect.Descriptor(data)),
            lambda: connect.WriteOperation(connection, connect.Descriptor(data), writable),
            lambda: connect.Descriptor(data).register_with_connector(connection),
            lambda: connection.metadata,
        ):
            try:
                make()
            except ImportError:
                pass
            else:
                raise AssertionError("made without NIXL")
            gc.collect()
            # Nothing holds it any more.
            data.append(0)
            data.pop()
    """
    missing = {"DYNAMO_NIXL_LIBRARY": str(tmp_path / "libnixl_capi.so")}
    assert scripts.run(source, tmp_path, missing) == Ended(0, "", "")


def ways_of(way, connection, readable, writable):
    """What to call, none of which may succeed; each with a fresh descriptor of fresh memory."""
    connector = connection.connector
    closed = Connection(connector, 99)
    closed._native.begin_close(0.0)

    def good():
        return Descriptor(blank(SIZE))

    def bad():
        return Descriptor(b"x" * SIZE)

    def elsewhere():
        descriptor = good()
        descriptor.register_with_connector(connection)
        return descriptor

    def too_long():
        descriptor = good()
        descriptor._data_size += 1
        return descriptor

    other = Connection(connector, 98)
    if way == "plain":
        return [
            lambda: Connector(""),
            lambda: Connector(5),
            lambda: Connection(None, 1),
            lambda: Connection(connector, 0),
            lambda: Connection(connector, "1"),
            lambda: Device(None),
            lambda: Device("what"),
            lambda: Device((2, 1)),
            lambda: RdmaMetadata(operation_kind=7),
            # Each without any argument.
            *(Connection, Descriptor, Device, Remote),
            *(ReadOperation, WriteOperation, ReadableOperation, WritableOperation),
        ]
    if way == "descriptors":
        wrong = [None, [], (), (1, 2.0), "text", (blank(8), None), (blank(8)[::2], "cuda:0"), (4096, 8, "what")]
        return [lambda data=data: Descriptor(data) for data in wrong] + [
            lambda: Descriptor((0, 8)).register_with_connector(connection),
            lambda: good().register_with_connector(None),
            lambda: good().deregister_with_connector(connection),
            lambda: too_long().register_with_connector(connection),
            lambda: elsewhere().register_with_connector(other),
            lambda: good().register_with_connector(closed),
        ]
    if way == "remotes":
        return [
            lambda: Remote(None, readable.nixl_metadata),
            lambda: Remote(connection, 5),
            lambda: Remote(connection, b""),
            lambda: Remote(connection, ""),
            lambda: Remote(connection, b"garbage"),
            lambda: Remote(connection, "b64:!!"),
            lambda: Remote(connection, "not hexadecimal"),
            lambda: Remote(connection, Remote.decode_metadata(readable.nixl_metadata)[:-40]),
            lambda: Remote(connection, connection.metadata),
            lambda: Remote(closed, readable.nixl_metadata),
        ]
    if way == "passive":
        wrong = [
            lambda: None,
            lambda: (good(),),
            list,
            lambda: [good(), None],
            lambda: Descriptor((0, SIZE)),
            lambda: [good(), Descriptor((0, SIZE))],
            lambda: [good(), Descriptor((-5, SIZE))],
            lambda: [good(), too_long()],
            lambda: [good(), Descriptor((4096, SIZE, "cuda:0"))],
            lambda: [good(), Descriptor((4096, SIZE, Device((DeviceKind.UNSPECIFIED, 0))))],
        ]
        kinds = (ReadableOperation, WritableOperation)
        return [
            *(lambda kind=kind, local=local: kind(connection, local()) for kind in kinds for local in wrong),
            *(lambda kind=kind: kind(None, good()) for kind in kinds),
            *(lambda kind=kind: kind(closed, good()) for kind in kinds),
            *(lambda kind=kind: kind(other, [good(), elsewhere()]) for kind in kinds),
            lambda: WritableOperation(connection, [good(), bad()]),
        ]
    assert way == "active"

    def read(metadata, local, over=connection):
        return lambda: ReadOperation(over, metadata, local())

    def write(metadata, local, over=connection):
        return lambda: WriteOperation(over, local(), metadata)

    made = []
    for begin, right, other_kind in ((read, readable, writable), (write, writable, readable)):
        made += [begin(right, good, over) for over in (None, connector, closed)]
        made += [
            begin(right, local)
            for local in (
                lambda: None,
                list,
                lambda: (good(),),
                lambda: [good(), good()],
                lambda: [good(), None],
                lambda: Descriptor((0, SIZE)),
                lambda: Descriptor(blank(SIZE + 1)),
                too_long,
            )
        ]
        descriptor = right.descriptors[0]
        beyond = descriptor.model_copy(update={"ptr": descriptor.ptr + (1 << 30)})
        made += [
            begin(metadata, good)
            for metadata in (
                None,
                "text",
                other_kind,
                right.model_copy(update={"notification_key": ""}),
                right.model_copy(update={"descriptors": []}),
                right.model_copy(update={"descriptors": [beyond]}),
                right.model_copy(update={"nixl_metadata": ""}),
                right.model_copy(update={"nixl_metadata": "b64:AAAA"}),
                right.model_copy(update={"nixl_metadata": right.nixl_metadata[:-20]}),
            )
        ]
        made.append(begin(right, elsewhere, other))
    two = readable.model_copy(update={"descriptors": readable.descriptors * 2})
    made += [read(readable, bad), read(two, lambda: [good(), bad()]), read(two, lambda: [good(), too_long()])]
    return made


async def fail_in_every_way(here, way, readable, writable):
    connector = here.connector
    connection = await connector._create_connection()
    unraisable = []
    sys.unraisablehook = lambda report: unraisable.append((report.object, report.exc_value))
    try:
        ways = ways_of(way, connection, RdmaMetadata.model_validate(readable), RdmaMetadata.model_validate(writable))
        for number, make in enumerate(ways):
            failed = False
            try:
                make()
            except (TypeError, ValueError, RuntimeError):
                failed = True
            assert failed, f"constructor {number} of {way} succeeded"
            gc.collect()
            await settle(connector)
    finally:
        sys.unraisablehook = sys.__unraisablehook__
    assert unraisable == []
    return len(ways) > 0


async def make_without_constructor(here, name):
    import dynamo_nixl

    kind = getattr(dynamo_nixl, name)
    unraisable = []
    sys.unraisablehook = lambda report: unraisable.append((report.object, report.exc_value))
    try:
        made = kind.__new__(kind)
        del made
        gc.collect()
    finally:
        sys.unraisablehook = sys.__unraisablehook__
    assert unraisable == []


async def fail_to_register(here):
    connector = here.connector
    connection = await connector._create_connection()
    buffers = []
    seen = []

    def claimed():
        array = np.zeros(SIZE)
        buffers.append(weakref.ref(array))
        return Descriptor((array, "cuda:0"))

    async def construct():
        # It is registered on a thread of its own: made first, and refused when it is asked for its metadata.
        ReadableOperation(connection, [claimed(), claimed()]).metadata()

    async def register():
        claimed().register_with_connector(connection)

    for make in (
        lambda: connector.create_readable([claimed(), claimed()]),
        lambda: connector.create_writable(claimed()),
        construct,
        register,
    ):
        try:
            await make()
        except RuntimeError as error:
            seen.append(type(error).__name__)
    await settle(connector)
    await eventually(lambda: not any(buffer() is not None for buffer in buffers))
    return seen
