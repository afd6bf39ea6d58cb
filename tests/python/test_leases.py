"""Leases: how long an exposure waits for its peer, and what comes of one that is late."""

from __future__ import annotations

import pytest
from dynamo_nixl import Descriptor, OperationStatus

from support import endings
from support.endings import DONE, KINDS, LEASE_EXPIRED
from support.memory import is_pattern, pattern

pytestmark = pytest.mark.nixl

LEASE = 0.1
LARGE = 5 << 20
"""Bytes that a lane moves, in more than one piece."""


@pytest.mark.parametrize("size", [1, 4096, LARGE])
@pytest.mark.parametrize("kind", KINDS)
def test_nobody_comes(pair, kind, size):
    number, metadata = pair.owner.call(endings.expose, kind, size, seed=1, lease=LEASE)
    waiting = [pair.owner.start(endings.ended, number) for _ in range(2)]
    assert [each.result() for each in waiting] == [LEASE_EXPIRED] * 2
    # Later waits tell the same.
    assert pair.owner.call(endings.ended, number) == LEASE_EXPIRED
    assert "lease" in pair.owner.call(endings.error_text, number)
    # So does a peer that comes too late, as often as it comes; within the grace and after it.
    assert pair.reader.call(endings.attempt, metadata, seed=1) == LEASE_EXPIRED
    assert pair.owner.call(endings.wait_quiesced, number)
    assert pair.reader.call(endings.attempt, metadata, seed=1) == LEASE_EXPIRED
    assert pair.owner.call(holds, number, kind)


async def holds(here, number, kind):
    """Whether the memory is as it was: what nobody has written is blank."""
    _, (array,) = here.kept[number]
    return is_pattern(array, 1) if kind == "read" else bool((array == 0xEE).all())


def test_what_a_late_reader_is_told_names_the_owner_and_leaves_its_memory_alone(pair):
    number, metadata = pair.owner.call(endings.expose, "read", LARGE, seed=1, lease=LEASE)
    assert pair.owner.call(endings.ended, number) == LEASE_EXPIRED
    begun = pair.reader.call(endings.begin, metadata)
    assert pair.reader.call(endings.ended, begun) == LEASE_EXPIRED
    assert pair.reader.call(names_its_peer, begun)
    assert pair.reader.call(endings.wait_quiesced, begun)
    assert pair.reader.call(is_untouched, begun)


async def names_its_peer(here, number):
    error = here.kept[number][0].error
    return error.peer is not None and error.peer in str(error) and error.bytes_done == 0


async def is_untouched(here, number):
    _, (array,) = here.kept[number]
    return not array.any()


def test_renewed_for_longer(pair):
    number, metadata = pair.owner.call(endings.expose, "read", 4096, seed=1, lease=30.0)
    pair.owner.call(endings.renew, number, LEASE)
    pair.owner.call(endings.renew, number, None)
    pair.owner.call(endings.still, 3 * LEASE)
    assert pair.owner.call(endings.status, number) == "INIT"
    assert pair.reader.call(endings.attempt, metadata) == DONE
    assert pair.owner.call(endings.ended, number) == DONE


def test_renewed_again_and_again(pair):
    number, metadata = pair.owner.call(endings.expose, "write", 4096, lease=30.0)
    pair.owner.call(keep_alive, number)
    assert pair.reader.call(endings.attempt, metadata) == DONE
    assert pair.owner.call(endings.ended, number) == DONE


async def keep_alive(here, number):
    operation, _ = here.kept[number]
    for _ in range(20):
        operation.renew(30.0)
        operation.renew(20)
        await endings.still(here, 0.01)
    assert operation.status is OperationStatus.INITIALIZED


@pytest.mark.parametrize("lease", [LEASE, 0, 0.0])
def test_renewed_for_shorter(pair, lease):
    number, metadata = pair.owner.call(endings.expose, "read", 4096, lease=None)
    waiting = pair.owner.start(endings.ended, number)
    pair.owner.call(endings.renew, number, lease)
    assert waiting.result() == LEASE_EXPIRED
    assert pair.reader.call(endings.attempt, metadata) == LEASE_EXPIRED


def test_what_cannot_be_renewed(pair):
    assert pair.owner.call(refusals) == {
        "negative": "ValueError",
        "not a number": "ValueError",
        "text": "TypeError",
        "bool": "TypeError",
        "cancelled": "ValueError",
        "expired": "ValueError",
    }


async def refusals(here):
    operation = await here.connector.create_readable(Descriptor(pattern(100)))
    expired = await here.connector.create_readable(Descriptor(pattern(100)), lease=0)
    with pytest.raises(Exception, match="lease"):
        await expired.wait_for_completion()
    cancelled = await here.connector.create_readable(Descriptor(pattern(100)))
    cancelled.cancel()
    tried = {
        "negative": (operation, -1),
        "not a number": (operation, float("nan")),
        "text": (operation, "1"),
        "bool": (operation, True),
        "cancelled": (cancelled, 1),
        "expired": (expired, 1),
    }
    raised = {}
    for name, (each, lease) in tried.items():
        try:
            each.renew(lease)
        except (TypeError, ValueError) as error:
            raised[name] = type(error).__name__
    assert operation.status is OperationStatus.INITIALIZED
    return raised


def test_the_lease_is_the_connectors_unless_it_is_given(pair):
    assert pair.owner.call(leases_of_a_connector) == ["ERR", "INIT", "INIT"]


async def leases_of_a_connector(here):
    from dynamo_nixl import Connector, LeaseExpiredError

    async with Connector(lease=LEASE) as connector:
        operations = [
            await connector.create_writable(Descriptor(bytearray(100)), **options)
            for options in ({}, {"lease": None}, {"lease": 600})
        ]
        with pytest.raises(LeaseExpiredError):
            await operations[0].wait_for_completion()
        await endings.still(here, LEASE)
        return [str(each.status) for each in operations]


@pytest.mark.parametrize("kind", KINDS)
def test_a_transfer_under_way_holds_its_lease_open(pair, kind):
    number, begun = endings.catch(pair.owner, pair.reader, kind)
    waiting = pair.owner.start(endings.ended, number)
    pair.reader.resume()
    # It ends now, with most of the bytes still to come.
    pair.owner.call(endings.renew, number, 0)
    assert pair.reader.call(endings.ended, begun) == DONE
    assert waiting.result() == DONE


@pytest.mark.parametrize("kind", KINDS)
def test_a_transfer_that_stands_still_does_not(pair, kind):
    """Its process is stopped, and may be for ever."""
    number, begun = endings.catch(pair.owner, pair.reader, kind)
    pair.owner.call(endings.renew, number, LEASE)
    assert pair.owner.call(endings.ended, number) == LEASE_EXPIRED
    pair.reader.resume()
    assert pair.reader.call(endings.ended, begun) == LEASE_EXPIRED
    assert pair.reader.call(endings.wait_quiesced, begun)
    assert pair.owner.call(endings.wait_quiesced, number)
    endings.serve(pair.owner, pair.reader)
