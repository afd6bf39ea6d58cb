"""`warmup`, and the end of a connector: `close`, `aclose`, `async with`."""

from __future__ import annotations

import asyncio
import os
import threading

import pytest
from dynamo_nixl import (
    Connection,
    Connector,
    ConnectorClosedError,
    Descriptor,
    OperationStatus,
    RdmaMetadata,
    ReadableOperation,
    Remote,
    TransferError,
)

from support import endings, roles, scripts
from support.endings import CLOSED, KINDS
from support.here import eventually
from support.memory import blank, pattern
from support.scripts import Ended

pytestmark = pytest.mark.nixl


def test_warmup(spawn):
    spawn().call(warm_up)


@pytest.mark.parametrize("ending", ["close", "aclose", "async with"])
def test_all_is_given_back(spawn, ending):
    spawn().call(open_and_close, ending)


def test_what_is_unfinished_fails_and_what_is_complete_stays(spawn, transport):
    owner, reader = spawn(transport), spawn(transport)
    number, metadata = owner.call(roles.expose_readable, [5000])
    assert reader.call(roles.read, metadata) == ("DONE", True)
    assert owner.call(roles.wait, number) == "DONE"
    owner.call(close_with_an_exposure, number)


def test_a_transfer_under_way_ends_before_its_agent(spawn):
    """Its memory must not be let go while bytes arrive: what was begun is either complete or reported."""
    owner, reader = spawn({"UCX_TLS": "tcp"}), spawn({"UCX_TLS": "tcp"})
    _, metadata = owner.call(roles.expose_readable, [64 << 20])
    reader.call(close_in_mid_read, metadata)


def test_the_owner_hears_of_a_transfer_of_no_bytes(spawn, transport):
    """Nothing but a notification is sent, which waits for its connection, and no request tells when it has left."""
    for _ in range(3):
        owner, reader = spawn(transport), spawn(transport)
        number, metadata = owner.call(roles.expose_readable, [0])
        assert reader.call(read_and_close, metadata) == "DONE"
        assert owner.call(roles.wait, number) == "DONE"


def test_closing_from_everywhere_at_once(spawn):
    spawn().call(close_from_threads)


def test_closing_what_was_never_opened():
    connector = Connector()
    connector.close()
    connector.close()
    asyncio.run(connector.aclose())
    with pytest.raises(ConnectorClosedError, match="closed"):
        asyncio.run(connector.create_readable(Descriptor(b"data")))


@pytest.mark.parametrize("made", ["before", "after"])
@pytest.mark.parametrize("is_gone", [False, True], ids=["closed", "closed and gone"])
def test_a_closed_connector_opens_no_connection(spawn, made, is_gone):
    spawn().call(use_after_closing, made, is_gone)


def test_a_closed_connector_does_not_look_for_nixl(tmp_path):
    source = """
        import asyncio
        import dynamo_nixl as connect

        connector = connect.Connector()
        connector.close()
        connection = connect.Connection(connector, 9)
        for use in (
            lambda: asyncio.run(connection.initialize()),
            lambda: connect.ReadableOperation(connection, connect.Descriptor(b"data")),
        ):
            try:
                use()
            except connect.ConnectorClosedError:
                pass
            else:
                raise AssertionError("a closed connector took it")
    """
    missing = {"DYNAMO_NIXL_LIBRARY": str(tmp_path / "libnixl_capi.so")}
    assert scripts.run(source, tmp_path, missing) == Ended(0, "", "")


async def use_after_closing(here, made, is_gone):
    """No way leads to an agent: nothing would close that one any more."""
    connector = Connector()
    connections = [Connection(connector, 9)] if made == "before" else []
    connector.close()
    if made == "after":
        connections.append(Connection(connector, 9))
    (connection,) = connections
    if is_gone:
        del connector
    threads = resources()[0]
    with pytest.raises(ConnectorClosedError):
        await connection.initialize()
    if not is_gone:
        # It keeps its connector, and so cannot do without.
        with pytest.raises(ConnectorClosedError):
            ReadableOperation(connection, Descriptor(b"data"))
    for use in (
        lambda: Descriptor(b"data").register_with_connector(connection),
        lambda: Remote(connection, b"some agent's"),
        lambda: connection.metadata,
    ):
        with pytest.raises(ConnectorClosedError):
            use()
    assert connection._native.is_open is False
    await eventually(lambda: resources()[0] <= threads + 1)


async def warm_up(here):
    connector = Connector()
    await asyncio.gather(*(connector.warmup() for _ in range(3)))
    connection = connector._shared_connection
    await connector.warmup()
    assert connector._shared_connection is connection
    assert repr(connection) == f"Connection(is_initialized=True, name='{connector.name}-1')"


def resources():
    return len(os.listdir("/proc/self/task")), len(os.listdir("/proc/self/fd"))


async def open_and_close(here, ending):
    async def once():
        connector = Connector()
        # A worker's own connection is closed as well.
        other = Connection(connector, 7)
        await asyncio.gather(connector.warmup(), other.initialize())
        if ending == "async with":
            async with connector as entered:
                assert entered is connector
        elif ending == "aclose":
            await connector.aclose()
            await connector.aclose()
        else:
            connector.close()
            connector.close()
        with pytest.raises(ConnectorClosedError):
            await connector.create_readable(Descriptor(b"data"))
        with pytest.raises(ConnectorClosedError):
            await connector.warmup()

    # The first one also loads NIXL and starts the threads that stay.
    await once()
    await eventually(lambda: resources()[0] <= 3 or ending == "close")
    before = resources()
    for _ in range(3):
        await once()
    await eventually(lambda: resources() <= before)


async def close_with_an_exposure(here, finished):
    connector = here.connector
    done, _ = here.kept[finished]
    open_one = await connector.create_writable(Descriptor(blank(4096)))
    waiting = asyncio.create_task(open_one.wait_for_completion())
    await asyncio.sleep(0)
    connector.close()
    with pytest.raises(ConnectorClosedError):
        await waiting
    assert open_one.status is OperationStatus.ERRORED
    assert done.status is OperationStatus.COMPLETE
    await done.wait_for_completion()
    with open_one, done:
        pass
    assert done.status is OperationStatus.COMPLETE
    await connector.aclose()


async def close_in_mid_read(here, metadata):
    target = blank(64 << 20)
    operation = await here.connector.begin_read(RdmaMetadata.model_validate(metadata), Descriptor(target))
    await here.connector.aclose(deadline=30)
    if operation.status is OperationStatus.COMPLETE:
        assert (target == pattern(target.size)).all()
        return
    assert operation.status is OperationStatus.ERRORED
    with pytest.raises(ConnectorClosedError):
        await operation.wait_for_completion()
    # Nothing arrives any more.
    target[:] = 0x55
    await asyncio.sleep(0.2)
    assert (target == 0x55).all()


async def read_and_close(here, metadata):
    async with here.connector as connector:
        operation = await connector.begin_read(RdmaMetadata.model_validate(metadata), Descriptor(bytearray()))
        await operation.wait_for_completion()
    return str(operation.status)


def close_from_threads(here):
    connector = Connector()
    asyncio.run(connector.warmup())
    start = threading.Barrier(8)
    failures = []

    def close(number):
        start.wait()
        try:
            if number % 2:
                connector.close()
            else:
                asyncio.run(connector.aclose())
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=close, args=[number]) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


@pytest.mark.parametrize("kind", KINDS)
def test_closing_while_a_peer_of_this_host_is_at_work(spawn, transport, kind):
    """It may write without asking anybody, as soon as it goes on: the memory stays, and who waits for it is told."""
    owner, active = spawn(transport), spawn(transport)
    number, _ = endings.catch(owner, active, kind)
    owner.call(endings.close, 0.2)
    assert owner.call(endings.ended, number) == CLOSED
    assert "stays pinned" in owner.call(why_it_is_never_quiet, number)
    assert not owner.call(endings.is_quiesced, number)
    active.resume()
    endings.serve(spawn(transport), active)


async def why_it_is_never_quiet(here, number):
    operation, _ = here.kept[number]
    with pytest.raises(TransferError) as raised:
        await operation.wait_quiesced()
    return str(raised.value)
