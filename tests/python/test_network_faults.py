"""Two workers in network namespaces of their own, and a wire between them that is cut, loses frames or is slow."""

from __future__ import annotations

import time

import pytest

from support import flight, namespaces, roles
from support.aborts import again_where_ucx_aborts
from support.outages import (
    DATAGRAMS,
    LATE,
    MIB,
    PATIENT,
    SAFE,
    SHORT,
    STALL,
    arrived,
    assert_settled,
    both_ways,
    cancel,
    catch,
    eventually_called,
    fails_in_time,
    goes_on,
    is_quiesced,
    is_quiesced_within,
    outlast,
    stays_untouched,
    wait_quiesced,
)
from support.wires import WAYS, case, each_way, each_wire

# What works


def test_the_wires_themselves(relayed, veth, spawn):
    """They carry, lose and cut as they say; without this, the tests below might test nothing."""
    for wire in (veth, relayed):
        sender, receiver = (spawn(prefix=wire.at(end)) for end in (0, 1))
        assert arrived(sender, receiver) == DATAGRAMS
        wire.cut()
        assert arrived(sender, receiver) == 0
        wire.mend()
        assert arrived(sender, receiver) > 0
    relayed.worsen(loss=0.3)
    assert 0.4 < arrived(sender, receiver) / DATAGRAMS < 0.95


@each_wire("veth", "relayed")
def test_transfers_between_two_namespaces(wire, at_ends):
    owner, active = at_ends(wire, SHORT)
    for size in (1000, 5 * MIB, 64 * MIB):
        both_ways(owner, active, size)
        both_ways(active, owner, size)


@each_way(("veth", "read"), ("relayed", "write"))
def test_a_cut_shorter_than_the_stall_timeout(wire, at_ends, way):
    owner, active = at_ends(wire, PATIENT)
    number, begun = catch(wire, owner, active, way)
    time.sleep(1)
    assert active.call(roles.status, begun) == "PROC"
    wire.mend()
    assert active.call(roles.wait, begun) == "DONE"
    assert owner.call(roles.wait, number) == "DONE"
    # Both hold the same pattern then, whichever way it went.
    assert active.call(roles.dispose, begun)
    assert owner.call(roles.dispose, number)
    assert_settled(owner, active)


@pytest.mark.parametrize(
    ("loss", "delay"), [(0.01, 0.0), (0.05, 0.002), (0.0, 0.02)], ids=["lossy", "very-lossy", "slow"]
)
def test_a_bad_wire(relayed, at_ends, loss, delay):
    owner, active = at_ends(relayed, PATIENT)
    relayed.worsen(loss=loss, delay=delay)
    for size in (1000, 2 * MIB):
        both_ways(owner, active, size)
    relayed.mend()
    assert_settled(owner, active)


@pytest.mark.long
def test_connecting_over_a_bad_wire(relayed, spawn):
    relayed.worsen(loss=0.05, delay=0.02)
    owner, active = (spawn(namespaces.TCP | PATIENT, prefix=relayed.at(end)) for end in (0, 1))
    both_ways(owner, active, 100_000)


@pytest.mark.long
@pytest.mark.parametrize("loss", [0.01, 0.03, 0.05])
def test_many_transfers_over_a_bad_wire(relayed, at_ends, loss):
    owner, active = at_ends(relayed, PATIENT)
    relayed.worsen(loss=loss, delay=0.001)
    for size in (1, 4096, 100_000, 5 * MIB, 16 * MIB):
        both_ways(owner, active, size)
        both_ways(active, owner, size)
    relayed.mend()
    assert_settled(owner, active)


# Cut for longer than the active side waits


@each_way(("veth", "write"), ("relayed", "read"))
def test_a_cut_in_the_middle(wire, at_ends, way):
    owner, active = at_ends(wire, SHORT | SAFE)
    number, begun = catch(wire, owner, active, way)
    fails_in_time(active, begun, "TransferTimeoutError")
    # What is on its way cannot be called back: its memory stays pinned.
    assert not active.call(is_quiesced, begun)
    counters = active.call(roles.counters)
    assert (counters["transfers"], counters["regions"]) == (1, 1)
    # Nobody could tell the owner.
    assert owner.call(roles.status, number) in ("INIT", "PROC")
    wire.mend()
    assert owner.call(roles.fail_to_wait, number) == ("TransferError", "ERR")
    # The side that is written to watches its memory, be it the reader or the owner.
    target, kept = (active, begun) if way == "read" else (owner, number)
    untouched = target.start(stays_untouched, kept)
    goes_on(owner, active)
    assert untouched.result()
    active.call(wait_quiesced, begun)
    assert_settled(owner, active)


@each_wire()
def test_new_transfers_while_the_wire_is_cut(wire, at_ends):
    owner, active = at_ends(wire, SHORT)
    exposed = [owner.call(roles.expose_readable, [size]) for size in (1000, 5 * MIB)]
    wire.cut()
    for _, metadata in exposed:
        begun = time.monotonic()
        assert active.call(roles.fail_to_read, metadata) in ("TransferTimeoutError", "TransferError")
        assert time.monotonic() - begun < STALL + LATE
    wire.mend()
    goes_on(owner, active)
    for number, _ in exposed:
        owner.call(roles.dispose, number)
    assert_settled(owner, active)


@each_wire()
def test_a_peer_that_cannot_be_reached_at_first(wire, spawn):
    """They meet for the first time while the wire is cut."""
    owner, active = (spawn(namespaces.TCP | SHORT, prefix=wire.at(end), loses_peers=True) for end in (0, 1))
    number, metadata = owner.call(roles.expose_readable, [70_000])
    active.call(roles.expose_readable, [1])
    wire.cut()
    begun = time.monotonic()
    assert active.call(roles.fail_to_read, metadata) in ("TransferTimeoutError", "TransferError")
    assert time.monotonic() - begun < STALL + LATE
    wire.mend()
    goes_on(owner, active)
    owner.call(roles.dispose, number)
    assert_settled(owner, active)


@each_wire()
def test_a_lease_ends_while_the_wire_is_cut(wire, at_ends):
    """The owner hears of nobody, lets the exposure go, and says so in the word once it can be asked."""
    owner, active = at_ends(wire, SHORT | {"DYNAMO_NIXL_LEASE": "2"})
    number, metadata = owner.call(roles.expose_readable, [5 * MIB])
    wire.cut()
    assert owner.call(roles.fail_to_wait, number) == ("LeaseExpiredError", "ERR")
    owner.call(wait_quiesced, number)
    wire.mend()
    assert eventually_called(lambda: active.call(roles.fail_to_read, metadata), "LeaseExpiredError")
    goes_on(owner, active)


@each_way()
def test_cancelled_while_the_wire_is_cut(wire, at_ends, way):
    owner, active = at_ends(wire, PATIENT | SAFE)
    number, begun = catch(wire, owner, active, way)
    active.call(cancel, begun)
    assert active.call(roles.wait, begun) == "STOP"
    assert not active.call(is_quiesced, begun)
    wire.mend()
    assert owner.call(roles.fail_to_wait, number) == ("CancelledByPeerError", "STOP")
    target, kept = (active, begun) if way == "read" else (owner, number)
    assert target.call(stays_untouched, kept)
    goes_on(owner, active)
    assert_settled(owner, active)


@pytest.mark.timeout(200)
@each_way()
def test_a_cut_that_outlasts_the_connection(wire, at_ends, way):
    """The stack gives the connection up on one side at least; nothing is left of it on either."""
    impatient = {"UCX_TCP_KEEPIDLE": "1s", "UCX_TCP_KEEPINTVL": "1s", "UCX_TCP_KEEPCNT": "2"}
    owner, active = at_ends(wire, SHORT | impatient)
    number, begun = catch(wire, owner, active, way)
    fails_in_time(active, begun, "TransferTimeoutError", "TransferError")
    # Where the active side's stack gives up, its memory is free while the owner's still holds what it has not sent.
    freed = active.call(is_quiesced_within, begun, 20.0)
    untouched = active.start(stays_untouched, begun, 10.0) if freed and way == "read" else None
    active.call(roles.nothing)
    wire.mend()
    goes_on(owner, active)
    active.call(wait_quiesced, begun)
    assert untouched is None or untouched.result(), "bytes have landed in memory that was said to be free"
    active.call(flight.forget, begun)
    owner.call(flight.forget, number)
    assert_settled(owner, active)


@pytest.mark.timeout(280)
@each_wire()
def test_a_wire_that_is_cut_again_and_again(wire, at_ends):
    owner, active = at_ends(wire, SHORT)
    for turn in range(10):
        way = WAYS[turn % 2]
        number, begun = catch(wire, owner, active, way)
        if turn % 3 == 2:
            fails_in_time(active, begun, "TransferTimeoutError")
        wire.mend()
        active.call(outlast, begun)
        active.call(wait_quiesced, begun)
        for worker, kept in ((active, begun), (owner, number)):
            worker.call(flight.forget, kept)
        goes_on(owner, active)
        assert_settled(owner, active)


# Death behind a cut


@each_way(("relayed", "read"))
def test_an_owner_killed_behind_a_cut(wire, at_ends, spawn, way):
    """They share a kernel and its pids, so that the death is noticed without the network."""
    owner, active = at_ends(wire, PATIENT)
    _, begun = catch(wire, owner, active, way)
    owner.kill()
    fails_in_time(active, begun, "PeerLostError")
    # The owner is dead, but what its kernel still holds arrives when the wire is back.
    assert not active.call(is_quiesced_within, begun, 1.0)
    wire.mend()
    active.call(wait_quiesced, begun)
    assert way == "write" or active.call(stays_untouched, begun)
    active.call(roles.settled)
    goes_on(spawn(namespaces.TCP | SHORT, prefix=wire.at(0)), active)


# Reads are not in `make test`: now and then UCX aborts an owner whose reader is killed ("unexpected error: Endpoint
# timeout"), with a cut and without one; see test_peers.py.
@each_way()
@again_where_ucx_aborts
def test_an_active_side_killed_behind_a_cut(wire, at_ends, spawn, way):
    owner, active = at_ends(wire, PATIENT)
    number, _ = catch(wire, owner, active, way)
    active.kill()
    fails_in_time(owner, number, "PeerLostError")
    wire.mend()
    goes_on(owner, spawn(namespaces.TCP | SHORT, prefix=wire.at(1)))
    owner.call(flight.forget, number)


@each_way(("veth", "read"))
def test_an_unknown_owner_killed_behind_a_cut(wire, at_ends, spawn, way):
    """Its pid means nothing here, so that only silence tells."""
    owner, active = at_ends(wire, SHORT, foreign_pids=("owner",))
    _, begun = catch(wire, owner, active, way)
    owner.kill()
    fails_in_time(active, begun, "TransferTimeoutError", "TransferError")
    wire.mend()
    # Its kernel answers for it now.
    active.call(wait_quiesced, begun)
    assert way == "write" or active.call(stays_untouched, begun)
    active.call(roles.settled)
    goes_on(spawn(namespaces.TCP | SHORT, prefix=wire.at(0)), active)


@pytest.mark.parametrize("state", [case("cut", short=True), case("whole", short=False)])
@each_way(("veth", "write"))
@again_where_ucx_aborts
def test_an_unknown_active_side_killed(wire, at_ends, spawn, way, state):
    """Nobody watches it and it does not answer, so that the exposure ends with its lease.

    Nobody can tell that it is dead either: the memory stays, as far as the limit allows.
    """
    owner, active = at_ends(
        wire, SHORT | {"DYNAMO_NIXL_LEASE": "3", "DYNAMO_NIXL_KEEPALIVE": "1"}, foreign_pids=("active",)
    )
    number, _ = catch(wire, owner, active, way)
    active.kill()
    if state == "whole":
        wire.mend()
    fails_in_time(owner, number, "LeaseExpiredError", limit=3)
    time.sleep(2 * float(SHORT["DYNAMO_NIXL_GRACE"]))
    assert not owner.call(is_quiesced, number)
    if state == "cut":
        wire.mend()
    goes_on(owner, spawn(namespaces.TCP | SHORT, prefix=wire.at(1)))
    owner.call(flight.forget, number)
