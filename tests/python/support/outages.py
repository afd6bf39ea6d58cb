"""What the tests of a bad network have workers do, and insist on while its wire is cut and when it is mended."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time

from dynamo_nixl import NixlConnectError

from support import flight, namespaces, roles
from support.here import eventually
from support.workers import CallFailedError

STALL = 2.0
SHORT = {"DYNAMO_NIXL_STALL_TIMEOUT": str(STALL), "DYNAMO_NIXL_GRACE": "1"}
PATIENT = {"DYNAMO_NIXL_STALL_TIMEOUT": "40", "DYNAMO_NIXL_GRACE": "1"}
SAFE = {"DYNAMO_NIXL_GRACE": "20"}
"""For memory that is written to: longer than a mended wire takes to carry what was under way."""
LATE = 15.0
"""How much later than it should something may happen: the machine may be small and busy."""
MENDED = 45.0
"""Until TCP, which waits twice as long after every try, goes on after a cut."""
MIB = 1 << 20
BIG = 128 * MIB
CERTAIN = 16 * MIB
"""So many bytes left to move mean that a transfer cannot end on what the sockets hold already."""
DATAGRAMS = 100
PORT = 7000


def connect(owner, active):
    number, metadata = owner.call(roles.expose_readable, [1])
    assert active.call(roles.read, metadata) == ("DONE", True)
    owner.call(roles.dispose, number)


def catch(wire, owner, active, way):
    """Have a transfer under way, and the wire cut. Returns both sides' numbers of what is kept."""
    expose, begin = {
        "read": (roles.expose_readable, roles.begin_read),
        "write": (roles.expose_writable, flight.begin_write),
    }[way]
    for _ in range(20):
        number, metadata = owner.call(expose, [BIG])
        begun = active.call(begin, metadata)
        # So that some of it has come, and the owner knows of it.
        active.call(has_moved, begun)
        wire.cut()
        if active.call(flight.left, begun) > CERTAIN:
            return number, begun
        wire.mend()
        active.call(roles.wait, begun)
        active.call(flight.forget, begun)
        owner.call(flight.forget, number)
    raise AssertionError("no transfer could be caught in the middle")


def fails_in_time(worker, kept, *names, limit=STALL):
    begun = time.monotonic()
    error, status = worker.call(roles.fail_to_wait, kept)
    took = time.monotonic() - begun
    assert error in names
    assert status == "ERR"
    assert took < limit + LATE, took


def both_ways(owner, active, size):
    number, metadata = owner.call(roles.expose_readable, [size], seed=size % 97)
    assert active.call(roles.read, metadata, seed=size % 97) == ("DONE", True)
    assert owner.call(roles.wait, number) == "DONE"
    assert owner.call(roles.dispose, number, seed=size % 97)
    number, metadata = owner.call(roles.expose_writable, [size])
    assert active.call(roles.write, metadata, seed=size % 89) == "DONE"
    assert owner.call(roles.wait, number) == "DONE"
    assert owner.call(roles.dispose, number, seed=size % 89)


def goes_on(owner, active):
    """The same connectors work together again, perhaps not at once."""
    deadline = time.monotonic() + MENDED
    while True:
        try:
            both_ways(owner, active, 5 * MIB)
        except CallFailedError as failure:
            # Whatever is not about the transfer is about the test.
            assert "dynamo_nixl.errors." in str(failure), failure
            assert time.monotonic() < deadline, failure
        else:
            return


def eventually_called(ask, expected):
    deadline = time.monotonic() + MENDED
    answers = []
    while not answers or answers[-1] != expected:
        assert time.monotonic() < deadline, answers
        answers.append(ask())
    return True


def assert_settled(*workers):
    for worker in workers:
        worker.call(roles.settled)


def arrived(sender, receiver):
    """How many of the datagrams that are sent come."""
    receiver.call(receive)
    sender.call(send)
    return receiver.call(received)


def receive(here):
    here.kept["socket"] = socket.socket(type=socket.SOCK_DGRAM)
    here.kept["socket"].bind(("", PORT))


def send(here):
    with socket.socket(type=socket.SOCK_DGRAM) as sender:
        for _ in range(DATAGRAMS):
            # A wire that is cut may say so.
            with contextlib.suppress(OSError):
                sender.sendto(b"datagram", (namespaces.ADDRESSES[1], PORT))
            # Address resolution holds back few of them.
            time.sleep(0.001)


def received(here):
    with here.kept.pop("socket") as receiver:
        receiver.settimeout(0.3)
        for count in range(DATAGRAMS):
            try:
                receiver.recv(100)
            except TimeoutError:
                return count
    return DATAGRAMS


async def has_moved(here, number):
    operation, _ = here.kept[number]
    await eventually(lambda: operation._native.bytes_done > 0)


async def is_quiesced(here, number):
    return here.kept[number][0].is_quiesced


async def is_quiesced_within(here, number, limit):
    try:
        await asyncio.wait_for(here.kept[number][0].wait_quiesced(), limit)
    except TimeoutError:
        return False
    return True


async def wait_quiesced(here, number):
    operation, _ = here.kept[number]
    await operation.wait_quiesced()
    assert operation.is_quiesced


async def outlast(here, number):
    """Wait for the end of a kept operation, whatever it is."""
    try:
        await here.kept[number][0].wait_for_completion()
    except NixlConnectError as error:
        return type(error).__name__
    return "DONE"


async def cancel(here, number):
    here.kept[number][0].cancel()


async def stays_untouched(here, number, lasting=2.0):
    """Put memory to another use as soon as it is said to be free, and say whether that was true."""
    operation, (array,) = here.kept[number]
    await operation.wait_quiesced()
    array[:] = 0x5A
    await asyncio.sleep(lasting)
    return bool((array == 0x5A).all())
