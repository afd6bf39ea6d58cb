"""Peers whose processes are out of sight: they are asked whether they are there, and missed when they are not.

Real NIXL over TCP, between workers in pid namespaces of their own, which have no other sight of each other.
"""

from __future__ import annotations

import asyncio
import time

import pytest
from dynamo_nixl import Connector
from dynamo_nixl import testing as nixl_faults

from support import flight, namespaces, roles
from support.aborts import again_where_ucx_aborts
from support.here import eventually, stats
from support.outages import (
    MENDED,
    PATIENT,
    SAFE,
    assert_settled,
    both_ways,
    catch,
    fails_in_time,
    goes_on,
    is_quiesced,
    wait_quiesced,
)
from support.wires import case, each_way

KEEPALIVE = 1.0
ASKING = PATIENT | {"DYNAMO_NIXL_KEEPALIVE": str(KEEPALIVE)}
OFTEN = PATIENT | {"DYNAMO_NIXL_KEEPALIVE": "0.2"}
LOST = 4 * KEEPALIVE
"""Within so many seconds an owner misses its peer."""
BOTH = ("owner", "active")
# TCP gives a silent connection up after some three seconds.
IMPATIENT = {"UCX_TCP_KEEPIDLE": "1s", "UCX_TCP_KEEPINTVL": "1s", "UCX_TCP_KEEPCNT": "2"}

# What is asked


def test_nobody_is_asked_who_is_not_at_work(apart):
    """Connectors that know each other, with exposures open, exchange nothing at all."""
    owner, active = apart(OFTEN)
    both_ways(owner, active, 5 << 20)
    owner.call(roles.expose_readable, [1000])
    before = [messages(each) for each in (owner, active)]
    time.sleep(4)
    assert [messages(each) for each in (owner, active)] == before
    both_ways(owner, active, 5 << 20)
    assert_settled(owner, active)


def test_whoever_is_at_work_answers(apart):
    """A transfer may stand still for as long as it is allowed to, and outlasts the lease."""
    owner, active = apart(OFTEN | {"DYNAMO_NIXL_LEASE": "2"})
    active.call(use_faults, "stall")
    number, metadata = owner.call(roles.expose_readable, [flight.BIG], seed=3)
    begun = active.call(roles.begin_read, metadata)
    owner.call(await_messages, 12)
    assert owner.call(roles.status, number) == "INIT"
    active.call(release)
    assert active.call(roles.wait, begun) == owner.call(roles.wait, number) == "DONE"
    assert_settled(owner, active)


def test_nobody_is_asked_without_a_keepalive(apart):
    owner, active = apart(PATIENT | {"DYNAMO_NIXL_KEEPALIVE": "none"})
    active.call(use_faults, "stall")
    number, metadata = owner.call(roles.expose_readable, [flight.BIG])
    begun = active.call(roles.begin_read, metadata)
    owner.call(await_messages, 1)
    before = messages(owner), messages(active)
    time.sleep(2)
    assert (messages(owner), messages(active)) == before
    active.call(release)
    assert active.call(roles.wait, begun) == owner.call(roles.wait, number) == "DONE"
    assert_settled(owner, active)


def test_an_owner_that_lives_is_not_said_to_be_lost(apart):
    """The transfer fails, and the owner answers over a new connection."""
    owner, active = apart(ASKING)
    active.call(use_faults, "fail")
    number, metadata = owner.call(roles.expose_readable, [flight.BIG])
    begun = active.call(roles.begin_read, metadata)
    assert active.call(roles.fail_to_wait, begun) == ("TransferError", "ERR")
    assert owner.call(roles.fail_to_wait, number) == ("TransferError", "ERR")
    active.call(wait_quiesced, begun)
    active.call(release)
    both_ways(owner, active, 5 << 20)
    assert_settled(owner, active)


# The active side


@pytest.mark.parametrize("state", [case("cut", short=True), case("whole", short=True)])
@each_way(("veth", "write"))
@again_where_ucx_aborts
def test_an_active_side_killed(wire, at_ends, spawn, way, state):
    owner, active = at_ends(wire, ASKING | SAFE, foreign_pids=BOTH)
    number, _ = catch(wire, owner, active, way)
    active.kill()
    if state == "whole":
        wire.mend()
    fails_in_time(owner, number, "PeerLostError", limit=LOST)
    # Silence is no proof: the memory is held for the grace.
    assert not owner.call(is_quiesced, number)
    if state == "cut":
        wire.mend()
    goes_on(owner, spawn(namespaces.TCP | ASKING, prefix=wire.at(1, own_pids=True)))
    owner.call(flight.forget, number)


@each_way(("relayed", "read"))
def test_an_active_side_cut_off(wire, at_ends, way):
    owner, active = at_ends(wire, ASKING | SAFE, foreign_pids=BOTH)
    number, begun = catch(wire, owner, active, way)
    fails_in_time(owner, number, "PeerLostError", limit=LOST)
    assert not owner.call(is_quiesced, number)
    assert active.call(roles.status, begun) == "PROC"
    wire.mend()
    # It is told, or finds out when it asks.
    fails_in_time(active, begun, "TransferError", "StaleMetadataError", limit=MENDED)
    active.call(wait_quiesced, begun)
    goes_on(owner, active)
    for worker, kept in ((active, begun), (owner, number)):
        worker.call(flight.forget, kept)
    assert_settled(owner, active)


@each_way(("veth", "read"), ("relayed", "write"))
def test_a_cut_that_is_borne(wire, at_ends, way):
    owner, active = at_ends(wire, PATIENT | {"DYNAMO_NIXL_KEEPALIVE": "5"}, foreign_pids=BOTH)
    number, begun = catch(wire, owner, active, way)
    # A ping is lost meanwhile.
    time.sleep(5.5)
    wire.mend()
    assert active.call(roles.wait, begun) == "DONE"
    assert owner.call(roles.wait, number) == "DONE"
    for worker, kept in ((active, begun), (owner, number)):
        assert worker.call(roles.dispose, kept)
    assert_settled(owner, active)


def test_a_bad_wire(relayed, at_ends):
    owner, active = at_ends(relayed, ASKING, foreign_pids=BOTH)
    relayed.worsen(loss=0.03, delay=0.005)
    for size in (1000, 4 << 20):
        both_ways(owner, active, size)
    relayed.mend()
    assert_settled(owner, active)


@each_way(("veth", "write"))
def test_an_active_side_that_is_stopped(wire, at_ends, way):
    """The same as one that is cut off, as far as its owner can tell."""
    owner, active = at_ends(wire, ASKING | SAFE, foreign_pids=("owner",))
    number, begun = catch(wire, owner, active, way)
    active.pause()
    wire.mend()
    fails_in_time(owner, number, "PeerLostError", limit=LOST)
    assert not owner.call(is_quiesced, number)
    active.resume()
    fails_in_time(active, begun, "TransferError", "StaleMetadataError", limit=MENDED)
    active.call(wait_quiesced, begun)
    goes_on(owner, active)
    for worker, kept in ((active, begun), (owner, number)):
        worker.call(flight.forget, kept)
    assert_settled(owner, active)


# The owner


@each_way(("veth", "read"), ("relayed", "write"))
def test_an_owner_killed(wire, at_ends, spawn, way):
    """Its host says that nobody is there any more, also when asked anew."""
    owner, active = at_ends(wire, ASKING, foreign_pids=BOTH)
    _, begun = catch(wire, owner, active, way)
    owner.kill()
    wire.mend()
    fails_in_time(active, begun, "PeerLostError", limit=MENDED)
    active.call(wait_quiesced, begun)
    active.call(flight.forget, begun)
    goes_on(spawn(namespaces.TCP | ASKING, prefix=wire.at(0, own_pids=True)), active)


@each_way(("veth", "read"), ("relayed", "read"))
def test_an_owner_killed_behind_a_cut(wire, at_ends, spawn, way):
    """TCP gives up on a silent owner; a new connection is not answered either. One that is written to takes longer."""
    owner, active = at_ends(wire, ASKING | IMPATIENT, foreign_pids=BOTH)
    _, begun = catch(wire, owner, active, way)
    owner.kill()
    fails_in_time(active, begun, "PeerLostError", "TransferTimeoutError", limit=40)
    wire.mend()
    active.call(wait_quiesced, begun)
    active.call(flight.forget, begun)
    goes_on(spawn(namespaces.TCP | ASKING, prefix=wire.at(0, own_pids=True)), active)


@each_way(("veth", "read"))
def test_an_owner_that_is_stopped(wire, at_ends, way):
    """It is not lost: its host keeps the connection, and it may go on."""
    settings = ASKING | IMPATIENT | {"DYNAMO_NIXL_STALL_TIMEOUT": "8"}
    owner, active = at_ends(wire, settings, foreign_pids=("active",))
    number, begun = catch(wire, owner, active, way)
    owner.pause()
    wire.mend()
    fails_in_time(active, begun, "TransferTimeoutError", limit=8)
    owner.resume()
    fails_in_time(owner, number, "TransferError", "PeerLostError", limit=MENDED)
    active.call(wait_quiesced, begun)
    goes_on(owner, active)
    for worker, kept in ((active, begun), (owner, number)):
        worker.call(flight.forget, kept)
    assert_settled(owner, active)


# What workers do


def messages(worker):
    return worker.call(roles.counters)["messages_received"]


async def await_messages(here, count):
    await eventually(lambda: stats(here.connector)["messages_received"] >= count)


async def use_faults(here, name):
    faults = nixl_faults.Faults(seed=1)
    here.connector = faults.attach(Connector())
    here.kept["faults"] = faults
    getattr(faults, name)()


async def release(here):
    here.kept["faults"].release()
    here.kept.pop("faults").clear()
    await asyncio.sleep(0)
