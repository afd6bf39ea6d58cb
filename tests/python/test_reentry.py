"""Finalisers run wherever Python does, also in the middle of what holds a lock. No NIXL.

What stands for a finaliser here is called from within, by a container that the code under test uses.
"""

from __future__ import annotations

import dynamo_nixl.connector
import pytest
from dynamo_nixl import Connection, Connector, ConnectorClosedError, Remote

# Where a lock cannot be taken again there is no end.
pytestmark = pytest.mark.timeout(30)


class Interrupted(dict):
    """Calls `interrupt` once, each time it is armed, as soon as something is looked up."""

    interrupt = None

    def get(self, *args):
        found = super().get(*args)
        interrupt, self.interrupt = self.interrupt, None
        if interrupt is not None:
            interrupt()
        return found


class InterruptedSet(set):
    """The same, for one that is gone through."""

    interrupt = None

    def __iter__(self):
        interrupt, self.interrupt = self.interrupt, None
        if interrupt is not None:
            interrupt()
        return super().__iter__()


@pytest.fixture
def connector():
    return Connector("worker")


@pytest.fixture
def connection(connector):
    connection = Connection(connector, 1)
    connection._remote_refs = Interrupted()
    return connection


class TestRemoteReferences:
    def test_a_remote_finalised_while_one_is_counted(self, connection):
        remotes = [Remote._of_operation(connection, "peer") for _ in range(2)]
        connection._remote_refs.interrupt = remotes.pop
        connection.acquire_remote_ref("peer")
        assert not remotes[1:]
        assert connection._remote_refs == {"peer": 2}

    def test_the_last_one_finalised_while_one_is_counted(self, connection):
        remotes = [Remote._of_operation(connection, "peer")]
        connection._remote_refs.interrupt = remotes.clear
        connection.acquire_remote_ref("peer")
        assert connection._remote_refs == {"peer": 1}
        assert connection.release_remote_ref("peer") is True
        assert connection._remote_refs == {}

    def test_two_released_at_once(self, connection):
        """Only one of them is the last."""
        outcomes = []
        for _ in range(2):
            connection.acquire_remote_ref("peer")
        connection._remote_refs.interrupt = lambda: outcomes.append(connection.release_remote_ref("peer"))
        outcomes.append(connection.release_remote_ref("peer"))
        assert outcomes == [False, True]
        assert connection.release_remote_ref("peer") is False

    def test_one_acquired_while_the_last_is_released(self, connection):
        connection.acquire_remote_ref("peer")
        connection._remote_refs.interrupt = lambda: connection.acquire_remote_ref("peer")
        assert connection.release_remote_ref("peer") is False
        assert connection._remote_refs == {"peer": 1}


class TestConnector:
    @staticmethod
    def interrupt_making(monkeypatch, interrupt):
        """Have something called while a connector makes its connection, once."""
        interrupts = [interrupt]

        def make(*args):
            if interrupts:
                interrupts.pop()()
            return Connection(*args)

        monkeypatch.setattr(dynamo_nixl.connector, "Connection", make)

    def test_closed_while_its_connection_is_made(self, connector, monkeypatch):
        self.interrupt_making(monkeypatch, connector.close)
        with pytest.raises(ConnectorClosedError):
            connector._own_connection()
        assert connector._shared_connection is None

    def test_its_connection_made_while_it_is_made(self, connector, monkeypatch):
        inner = []
        self.interrupt_making(monkeypatch, lambda: inner.append(connector._own_connection()))
        assert connector._own_connection() is inner[0]
        assert connector._own_connection() is inner[0]
        # No name is used twice.
        assert inner[0].name == "worker-2"

    def test_a_connection_made_while_it_is_closed(self, connector, connection):
        late = []
        connector._connections = InterruptedSet(connector._connections)
        connector._connections.interrupt = lambda: late.append(Connection(connector, 2))
        connector.close()
        for each in (connection, *late):
            with pytest.raises(ConnectorClosedError):
                each._native.open_blocking()
        assert late

    def test_it_forgets_connections_that_are_gone(self, connector):
        kept = Connection(connector, 1)
        for number in range(2, 9):
            Connection(connector, number)
        assert [each() for each in connector._connections] == [kept]
