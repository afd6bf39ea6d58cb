"""`Remote`: a peer, known and counted."""

from __future__ import annotations

import gc

import pytest
from dynamo_nixl import Connector, Descriptor, MetadataError, RdmaMetadata, Remote

from support import foreign, roles
from support.memory import blank

pytestmark = pytest.mark.nixl


def test_a_peer_is_loaded_before_its_first_transfer(pair):
    number, metadata = pair.owner.call(roles.expose_readable, [4096])
    name = pair.owner.call(own_name)
    assert pair.reader.call(load, metadata["nixl_metadata"]) == name
    assert pair.reader.call(roles.read, metadata) == ("DONE", True)
    assert pair.owner.call(roles.wait, number) == "DONE"


def test_nixls_own_bytes_are_those_of_a_foreign_peer(pair):
    """What carries no trailer is treated as upstream's, with an agent that such a peer does not hang."""
    number, metadata = pair.owner.call(roles.expose_readable, [4096])
    blob = foreign.decode(metadata["nixl_metadata"])
    assert pair.reader.call(load, blob) == pair.owner.call(own_name)
    assert pair.reader.call(roles.read, metadata) == ("DONE", True)
    assert pair.owner.call(roles.wait, number) == "DONE"


@pytest.mark.interop
def test_a_foreign_agent(spawn, transport):
    alien, ours = spawn(transport | foreign.ENVIRONMENT), spawn(transport)
    alien.call(foreign.start)
    text = alien.call(foreign.blob_of_one_region, 4096)
    assert ours.call(load, text).startswith("foreign")


def test_references_are_counted(pair):
    number, metadata = pair.owner.call(roles.expose_readable, [4096])
    pair.reader.call(count_references, metadata)
    assert pair.owner.call(roles.wait, number) == "DONE"


def test_decode_metadata(pair):
    number, metadata = pair.owner.call(roles.expose_readable, [4096])
    text = metadata["nixl_metadata"]
    assert Remote.decode_metadata(text) == foreign.decode(text)
    assert Remote.decode_metadata(b"as it is") == b"as it is"
    pair.owner.call(roles.dispose, number)


@pytest.mark.parametrize("text", ["no hex", "b64:?", "b64:AAAA", "00"])
def test_decode_malformed_metadata(text):
    with pytest.raises(MetadataError):
        Remote.decode_metadata(text)


@pytest.mark.parametrize(("value", "error"), [("", ValueError), (b"", ValueError), (None, TypeError), (5, TypeError)])
def test_arguments(value, error):
    connector = Connector()
    with pytest.raises(error):
        Remote.decode_metadata(value)
    with pytest.raises(error):
        Remote(connector._own_connection(), value)
    with pytest.raises(TypeError):
        Remote(connector, "b64:")
    gc.collect()


def test_own_metadata_is_refused(pair):
    number, metadata = pair.owner.call(roles.expose_readable, [4096])
    assert pair.owner.call(refused, metadata["nixl_metadata"]) == "MetadataError"
    pair.owner.call(roles.dispose, number)


def test_an_agents_full_metadata(pair):
    assert pair.owner.call(full_metadata)


async def own_name(here):
    return (await here.connector._create_connection()).name


def load(here, nixl_metadata):
    """In a thread without a loop, as workers' helpers are."""
    connection = here.connector._own_connection()
    with Remote(connection, nixl_metadata) as remote:
        assert remote.connection is connection
        assert str(remote) == remote.name
        assert repr(remote) == f"Remote(name={remote.name}, connection={connection.name})"
        assert remote.name in connection._native.peers()
    return remote.name


async def count_references(here, metadata):
    connection = await here.connector._create_connection()
    remote_metadata = RdmaMetadata.model_validate(metadata)
    operation = await here.connector.begin_read(remote_metadata, Descriptor(blank(4096)))
    name = operation.remote.name
    assert operation.remote is operation.remote
    assert operation.remote.connection is connection
    await operation.wait_for_completion()
    connection.acquire_remote_ref(name)
    del operation
    gc.collect()
    assert connection.release_remote_ref(name) is True
    assert connection.release_remote_ref(name) is False
    assert connection.release_remote_ref("nobody") is False
    # Unlike upstream: the next transfer need not connect again.
    assert name in connection._native.peers()


async def refused(here, nixl_metadata):
    connection = await here.connector._create_connection()
    try:
        Remote(connection, nixl_metadata)
    except MetadataError as error:
        return type(error).__name__
    return "accepted"


async def full_metadata(here):
    connection = await here.connector._create_connection()
    array = blank(4096)
    descriptor = Descriptor(array)
    descriptor.register_with_connector(connection)
    blob = connection.metadata
    assert isinstance(blob, bytes)
    return connection.name.encode() in blob and array.ctypes.data.to_bytes(8, "little") in blob
