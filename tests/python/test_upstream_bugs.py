"""Weaknesses of operations in Dynamo's own module, one test for each. Those of memory: test_upstream_memory.py."""

from __future__ import annotations

import asyncio

import pytest
from dynamo_nixl import Connector, Descriptor, RdmaMetadata, RegistrationError, TransferError

from support import flight, foreign, roles
from support.flight import TCP
from support.here import eventually, settle, stats
from support.loops import factories, in_threads
from support.memory import blank, is_pattern, pattern

pytestmark = pytest.mark.nixl

MIB = 1 << 20
FLOOD = 11_000
ROUND = 1_000
LONG = 4096
"""Bytes of a long notification. Kept, a flood of them would be 40 MiB."""


def test_begin_starts_the_transfer(pair):
    """Upstream posts when the status is first asked for; here nobody asks."""
    for size in (1, 4096, 64 * MIB):
        number, metadata = pair.owner.call(roles.expose_readable, [size])
        kept = pair.reader.call(roles.begin_read, metadata)
        assert pair.owner.call(roles.wait, number) == "DONE"
        assert pair.reader.call(roles.dispose, kept)
        number, metadata = pair.owner.call(roles.expose_writable, [size])
        pair.reader.call(flight.begin_write, metadata)
        assert pair.owner.call(roles.wait, number) == "DONE"
        assert pair.owner.call(roles.dispose, number)


def test_cancel_after_the_end_keeps_complete_and_the_results(pair):
    number, metadata = pair.owner.call(roles.expose_readable, [4096])
    assert pair.reader.call(cancel_when_done, metadata) == "DONE"
    assert pair.owner.call(roles.wait, number) == "DONE"
    assert pair.owner.call(cancel, number) == "DONE"


@pytest.mark.interop
def test_a_poison_notification_harms_no_passive_operation(spawn, transport):
    """One that is not UTF-8 breaks every operation of an upstream agent, for ever."""
    ours, alien = spawn(transport), spawn(transport | foreign.ENVIRONMENT)
    alien.call(foreign.start)
    number, metadata = ours.call(roles.expose_readable, [4096])
    other, writable = ours.call(roles.expose_writable, [5000])
    key = metadata["notification_key"].encode()
    # Neighbours of the key must not end the operation either.
    text = [b"unknown", key + b"\0", key[:-1], key.upper() if key.upper() != key else b"no", b" " + key]
    noise = [b"\xff\xfe\xfd", key + b"\xff", b"\x80" * 100]
    alien.call(foreign.notify, metadata["nixl_metadata"], text + noise)
    ours.call(wait_for_noise, len(text), len(noise))
    assert ours.call(roles.status, number) == ours.call(roles.status, other) == "INIT"
    assert alien.call(foreign.read, metadata) == ("DONE", True)
    assert alien.call(foreign.write, writable, seed=3) == "DONE"
    assert ours.call(roles.wait, number) == ours.call(roles.wait, other) == "DONE"
    assert ours.call(roles.dispose, other, seed=3)
    # The same key again: nobody waits for it any more.
    alien.call(foreign.notify, metadata["nixl_metadata"], [key])
    ours.call(wait_for_noise, len(text) + 1, len(noise))
    ours.call(roles.dispose, number)

    # Made after the poison had come.
    number, metadata = ours.call(roles.expose_readable, [4096], seed=1)
    assert alien.call(foreign.read, metadata, seed=1) == ("DONE", True)
    assert ours.call(roles.wait, number) == "DONE"


@pytest.mark.interop
def test_notifications_are_dropped_once_consumed(spawn):
    """Upstream keeps all, and searches all of them whenever a status is read."""
    ours, alien = spawn(), spawn(foreign.ENVIRONMENT)
    alien.call(foreign.start)
    number, metadata = ours.call(roles.expose_readable, [4096])
    alien.call(flood, metadata["nixl_metadata"], ROUND)
    ours.call(wait_for_noise, ROUND, 0)
    before = ours.resident
    for round_ in range(2, FLOOD // ROUND + 1):
        # Not all at once: UCX keeps what arrives faster than it is taken, and that is not what this is about.
        alien.call(flood, metadata["nixl_metadata"], ROUND)
        ours.call(wait_for_noise, round_ * ROUND, 0)
    # Far from the 40 MiB that were sent, and far above what an allocator keeps for itself.
    assert ours.resident - before < 16 * MIB
    assert alien.call(foreign.read, metadata) == ("DONE", True)
    assert ours.call(roles.wait, number) == "DONE"
    ours.call(roles.settled)


@pytest.mark.parametrize("count", [2, 6])
def test_threads_with_a_loop_each_open_and_use_one_connector(pair, count):
    """Upstream's lock belongs to the first loop that waits for it. Here all wait at once, and go on at once."""
    for seed in range(2):
        exposed = [pair.owner.call(roles.expose_readable, [300_000], seed=seed) for _ in range(4 * count)]
        metadata = [metadata for _, metadata in exposed]
        assert pair.reader.call(use_in_threads, metadata, count, seed) == [(4, 4)] * count
        for number, _ in exposed:
            assert pair.owner.call(roles.wait, number) == "DONE"


def test_a_lost_peer_is_a_runtime_error_and_frees_all(spawn):
    """Upstream lets NIXL's own exceptions out, which are none, and its `__exit__` raises again and releases nothing."""
    reader, owner = spawn(TCP, loses_peers=True), spawn(TCP)
    _, begun = flight.catch_read(owner, reader)
    owner.kill()
    reader.call(fail_within_a_block, begun)
    reader.call(roles.settled)


def test_a_refused_registration_is_a_runtime_error(spawn):
    """Senders of device tensors fall back to the host's memory on any exception. Only NIXL itself would log a line."""
    owner, reader = spawn({"NIXL_LOG_LEVEL": "FATAL"}), spawn()
    number, metadata = owner.call(expose_or_fall_back)
    assert reader.call(roles.read, metadata) == ("DONE", True)
    assert owner.call(roles.wait, number) == "DONE"
    owner.call(roles.settled)


@pytest.mark.interop
def test_metadata_is_encoded_as_asked_each_time(pair):
    """Upstream keeps the first form for ever."""
    exposed = [pair.owner.call(expose_in_three_forms) for _ in range(3)]
    for form, (number, forms) in enumerate(exposed):
        base64, hexadecimal, again = forms
        assert base64["nixl_metadata"].startswith("b64:")
        assert bytes.fromhex(hexadecimal["nixl_metadata"])
        assert again == base64
        assert foreign.decode(hexadecimal["nixl_metadata"]) == foreign.decode(base64["nixl_metadata"])
        assert pair.reader.call(roles.read, forms[form]) == ("DONE", True)
        assert pair.owner.call(roles.wait, number) == "DONE"


async def cancel(here, number):
    operation, _ = here.kept[number]
    operation.cancel()
    return str(operation.status)


async def cancel_when_done(here, metadata):
    descriptor = Descriptor(blank(4096))
    operation = await here.connector.begin_read(RdmaMetadata.model_validate(metadata), descriptor)
    await operation.wait_for_completion()
    operation.cancel()
    operation.__exit__(None, None, None)
    assert operation.results() == [descriptor]
    return str(operation.status)


async def wait_for_noise(here, unknown, malformed):
    def counted():
        counters = stats(here.connector)
        return counters["notifications_unknown"] == unknown and counters["notifications_malformed"] == malformed

    await eventually(counted)


def flood(here, nixl_metadata, count):
    foreign.notify(here, nixl_metadata, [b"%08d" % number + b"x" * LONG for number in range(count)])


def use_in_threads(here, exposed, count, seed):
    # Fresh, so that all need it opened, at the same time.
    connector = Connector()

    async def read(metadata):
        array = blank(300_000)
        with await connector.begin_read(RdmaMetadata.model_validate(metadata), Descriptor(array)) as operation:
            await operation.wait_for_completion()
        return is_pattern(array, seed)

    async def expose():
        with await connector.create_readable(Descriptor(bytearray(5000))) as operation:
            return operation.metadata().notification_key

    async def use(index):
        mine = exposed[index::count]
        read_well = await asyncio.gather(*(read(metadata) for metadata in mine))
        keys = await asyncio.gather(*(expose() for _ in mine))
        return sum(read_well), len(set(keys))

    def run(index):
        with asyncio.Runner(loop_factory=factories()[index % 2]) as runner:
            return runner.run(use(index))

    results = in_threads(count, run)
    asyncio.run(settle(connector))
    return results


async def fail_within_a_block(here, number):
    operation, _ = here.kept[number]
    (descriptor,) = operation._local_descriptors

    async def block():
        with operation:
            with pytest.raises(TransferError) as failure:
                await operation.wait_for_completion()
            assert isinstance(failure.value, RuntimeError)
            assert isinstance(failure.value, ConnectionError)
            assert failure.value.phase == "move bytes"
            del failure  # a traceback keeps frames, and they what they hold
            assert str(operation.status) == "ERR"
            raise KeyError("of the body")

    with pytest.raises(KeyError, match="of the body"):
        await block()
    operation.__exit__(None, None, None)
    assert str(operation.status) == "ERR"
    assert not descriptor.is_registered


async def expose_or_fall_back(here):
    array = pattern(4096)
    # Host memory that is said to be a device's: refused with or without one.
    with pytest.raises(RegistrationError) as failure:
        await here.connector.create_readable(Descriptor((array, "cuda:0")))
    assert isinstance(failure.value, RuntimeError)
    assert (failure.value.phase, failure.value.status) == ("register memory", "NIXL_CAPI_ERROR_BACKEND")
    del failure  # a traceback keeps frames, and they what they hold
    await settle(here.connector)
    operation = await here.connector.create_readable(Descriptor(array.copy()))
    return here.keep((operation, [])), operation.metadata().model_dump()


async def expose_in_three_forms(here):
    operation = await here.connector.create_readable(Descriptor(pattern(123)))
    forms = [operation.metadata(hex_encode=hexadecimal).model_dump() for hexadecimal in (False, True, False)]
    return here.keep((operation, [])), forms
