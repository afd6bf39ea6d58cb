"""Names of connectors, and which arguments operations refuse before NIXL is even looked for."""

import numpy as np
import pytest
from dynamo_nixl import (
    Connection,
    Connector,
    Descriptor,
    MetadataError,
    OperationKind,
    RdmaMetadata,
    ReadableOperation,
    ReadOperation,
    SerializedDescriptor,
    WritableOperation,
    WriteOperation,
)

from support import roles


class TestConnector:
    def test_names(self):
        connector = Connector("worker")
        assert connector.name == str(connector) == "worker"
        assert repr(connector) == f"Connector(worker_id='worker', hostname={connector.hostname})"
        assert len(Connector().name) == 32
        assert int(Connector().name, 16)

    @pytest.mark.parametrize("worker_id", ["", 5, b"worker"])
    def test_bad_names(self, worker_id):
        with pytest.raises(TypeError):
            Connector(worker_id)

    @pytest.mark.parametrize("worker_id", ["x" * 961, "é" * 481, "a\0b", "\0", "\ud800"])
    def test_names_that_no_agent_can_have(self, worker_id):
        with pytest.raises(ValueError, match="at most 960 bytes of UTF-8, without a NUL: '"):
            Connector(worker_id)

    @pytest.mark.nixl
    def test_the_longest_name(self, spawn):
        """With the suffixes of its agents a peer still takes it."""
        owner, reader = spawn(), spawn()
        owner.call(take_the_longest_name)
        number, metadata = owner.call(roles.expose_readable, [8])
        assert reader.call(roles.read, metadata) == ("DONE", True)
        assert owner.call(roles.wait, number) == "DONE"

    def test_equality(self):
        assert Connector("a") == Connector("a")
        assert Connector("a") != Connector("b")
        assert Connector("a") != "a"
        assert len({Connector("a"), Connector("a"), Connector("b")}) == 2

    async def test_initialize_does_nothing(self):
        connector = Connector()
        await connector.initialize()
        assert connector._shared_connection is None

    def test_connections(self):
        connector = Connector("worker")
        connection = Connection(connector, 2)
        assert connection.name == str(connection) == "worker-2"
        assert connection.connector is connector
        assert repr(connection) == "Connection(is_initialized=False, name='worker-2')"
        with pytest.raises(TypeError):
            Connection("worker", 1)
        with pytest.raises(TypeError):
            Connection(connector, 1.0)
        with pytest.raises(ValueError, match="positive"):
            Connection(connector, 0)

    def test_a_connection_does_not_keep_its_connector(self):
        connection = Connection(Connector("gone"), 1)
        with pytest.raises(RuntimeError, match="gone-1"):
            connection.connector  # noqa: B018


def take_the_longest_name(here):
    here.connector = Connector("é" * 480)


def metadata(kind=OperationKind.READ, sizes=(8,), device="cpu", key="key", ptr=4096):
    return RdmaMetadata(
        descriptors=[SerializedDescriptor(device=device, ptr=ptr, size=size) for size in sizes],
        nixl_metadata="b64:",
        notification_key=key,
        operation_kind=kind,
    )


class TestArguments:
    """What is refused before NIXL is even looked for."""

    @pytest.mark.parametrize("wrong", [None, {}, "metadata"])
    async def test_metadata_of_the_wrong_type(self, wrong):
        connector, descriptor = Connector(), Descriptor(bytearray(8))
        with pytest.raises(TypeError):
            await connector.begin_read(wrong, descriptor)
        with pytest.raises(TypeError):
            await connector.begin_write(descriptor, wrong)
        assert connector._shared_connection is None

    @pytest.mark.parametrize("wrong", [None, (), bytearray(8), [bytearray(8)], [Descriptor(b"x"), None]])
    async def test_descriptors_of_the_wrong_type(self, wrong):
        connector = Connector()
        with pytest.raises(TypeError):
            await connector.begin_read(metadata(), wrong)
        with pytest.raises(TypeError):
            await connector.begin_write(wrong, metadata(OperationKind.WRITE))
        with pytest.raises(TypeError):
            await connector.create_readable(wrong)
        with pytest.raises(TypeError):
            await connector.create_writable(wrong)

    @pytest.mark.parametrize("kind", [OperationKind.WRITE, 3])
    async def test_the_wrong_kind_for_reading(self, kind):
        descriptor = Descriptor(bytearray(8))
        connector = Connector()
        with pytest.raises(RuntimeError, match="reading"):
            await connector.begin_read(metadata(kind), descriptor)
        with pytest.raises(ValueError, match="READ"):
            ReadOperation(Connection(connector, 1), metadata(kind), descriptor)

    async def test_the_wrong_kind_for_writing(self):
        descriptor = Descriptor(bytearray(8))
        connector = Connector()
        with pytest.raises(RuntimeError, match="writing"):
            await connector.begin_write(descriptor, metadata())
        with pytest.raises(ValueError, match="WRITE"):
            WriteOperation(Connection(connector, 1), descriptor, metadata())

    @pytest.mark.parametrize(
        ("remote", "local", "message"),
        [
            (metadata(sizes=(8,)), [], "no local descriptor"),
            (metadata(sizes=(8, 8)), [8], "single"),
            (metadata(sizes=(8,)), [8, 8], "single"),
            (metadata(sizes=(8, 8)), [8, 8, 8], "as many"),
            (metadata(sizes=(8, 9)), [8, 8], "descriptor 1 differ: 8 local, 9"),
            (metadata(sizes=(9,)), [8], "descriptor 0 differ"),
            (metadata(sizes=()), [8], "no descriptor"),
            (metadata(key=""), [8], "notification key"),
            (metadata(device="cuda:x"), [8], "ordinal"),
        ],
    )
    def test_shapes(self, remote, local, message):
        connector = Connector()
        with pytest.raises(ValueError, match=message):
            ReadOperation(Connection(connector, 1), remote, [Descriptor(bytearray(size)) for size in local])

    @pytest.mark.parametrize("ptr", [-1, 2**64 - 4, 2**70])
    def test_ranges_that_no_peer_can_have(self, ptr):
        connector = Connector()
        with pytest.raises(MetadataError):
            ReadOperation(Connection(connector, 1), metadata(ptr=ptr), Descriptor(bytearray(8)))

    def test_mixed_kinds_of_devices(self):
        connector = Connector()
        connection = Connection(connector, 1)
        mixed = [Descriptor((4096, 8)), Descriptor((4096, 8, "cuda:0"))]
        with pytest.raises(ValueError, match="different kinds"):
            ReadableOperation(connection, mixed)
        with pytest.raises(ValueError, match="different kinds"):
            ReadOperation(connection, metadata(sizes=(8, 8)), mixed)
        remote = RdmaMetadata(
            descriptors=[each.metadata for each in mixed], notification_key="key", operation_kind=OperationKind.READ
        )
        with pytest.raises(ValueError, match="different kinds"):
            ReadOperation(connection, remote, [Descriptor(bytearray(8)), Descriptor(bytearray(8))])

    def test_destinations_that_cannot_be_written_to(self):
        connector = Connector()
        connection = Connection(connector, 1)
        with pytest.raises(ValueError, match="read-only"):
            ReadOperation(connection, metadata(), Descriptor(b"x" * 8))
        with pytest.raises(ValueError, match="read-only"):
            WritableOperation(connection, Descriptor(b"x" * 8))
        with pytest.raises(ValueError, match="contiguous"):
            WritableOperation(connection, Descriptor(np.zeros((4, 4)).T))

    @pytest.mark.parametrize("operation", [ReadableOperation, WritableOperation])
    def test_exposing_nothing(self, operation):
        connector = Connector()
        connection = Connection(connector, 1)
        with pytest.raises(ValueError, match="no local descriptor"):
            operation(connection, [])
        with pytest.raises(ValueError, match="address"):
            operation(connection, Descriptor((0, 8)))
        with pytest.raises(TypeError, match="Connection"):
            operation(connector, Descriptor(bytearray(8)))
