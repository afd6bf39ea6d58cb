"""Peers that are not ours: a raw NIXL agent on the other side, used as upstream uses it."""

from __future__ import annotations

import pytest

from support import foreign, roles

pytestmark = [pytest.mark.nixl, pytest.mark.interop]

SIZES = [1, 4096, 64 * 1024 + 3, (16 << 20) + 1]


@pytest.fixture
def alien(spawn, transport):
    """A worker with a raw agent: default configuration, progress thread on."""
    worker = spawn(transport | foreign.ENVIRONMENT)
    worker.call(foreign.start)
    return worker


@pytest.fixture
def ours(spawn, transport):
    return spawn(transport)


def test_we_read_from_a_foreign_owner(alien, ours):
    for seed, size in enumerate(SIZES):
        metadata = alien.call(foreign.expose_readable, size, seed=seed)
        assert ours.call(roles.read, metadata, seed=seed) == ("DONE", True)
        # Exactly the key, exactly once, nothing else: upstream keeps whatever it does not know for ever.
        assert alien.call(foreign.receive, 1) == [metadata["notification_key"].encode()]
    ours.call(roles.settled)
    ours.finish()
    assert alien.call(foreign.receive_nothing_more) == []


def test_we_write_to_a_foreign_owner(alien, ours):
    for seed, size in enumerate(SIZES):
        metadata = alien.call(foreign.expose_writable, size)
        assert ours.call(roles.write, metadata, seed=seed) == "DONE"
        assert alien.call(foreign.receive, 1) == [metadata["notification_key"].encode()]
        assert alien.call(foreign.holds_pattern, seed=seed)
    ours.call(roles.settled)
    ours.finish()
    assert alien.call(foreign.receive_nothing_more) == []


@pytest.mark.parametrize("in_hex", [False, True], ids=["base64", "hex"])
def test_lists(alien, ours, in_hex):
    """Several ranges in one operation, in all four roles, in both encodings of the owner's metadata."""
    sizes = [1, 4096, (1 << 20) + 3, 64 << 20]
    metadata = alien.call(foreign.expose_readable, *sizes, seed=1, in_hex=in_hex)
    assert ours.call(roles.read, metadata, seed=1) == ("DONE", True)
    assert alien.call(foreign.receive, 1) == [metadata["notification_key"].encode()]
    metadata = alien.call(foreign.expose_writable, *sizes, in_hex=in_hex)
    assert ours.call(roles.write, metadata, seed=2) == "DONE"
    assert alien.call(foreign.receive, 1) == [metadata["notification_key"].encode()]
    assert alien.call(foreign.holds_pattern, seed=2, count=len(sizes))

    number, metadata = ours.call(roles.expose_readable, sizes, seed=3, hex_encode=in_hex)
    assert alien.call(foreign.read, metadata, seed=3) == ("DONE", True)
    assert ours.call(roles.wait, number) == "DONE"
    number, metadata = ours.call(roles.expose_writable, sizes, hex_encode=in_hex)
    assert metadata["nixl_metadata"].startswith("b64:") is not in_hex
    assert alien.call(foreign.write, metadata, seed=4) == "DONE"
    assert ours.call(roles.wait, number) == "DONE"
    assert ours.call(roles.dispose, number, seed=4)


@pytest.mark.parametrize("key", ["sglang-grpc-7", "k", "schlüssel-✓", "x" * 500])
def test_any_text_can_be_the_key(alien, ours, key):
    metadata = alien.call(foreign.expose_readable, 4096, key=key)
    assert ours.call(roles.read, metadata) == ("DONE", True)
    assert alien.call(foreign.receive, 1) == [key.encode()]


def test_a_foreign_owner_that_polls_itself(spawn, transport, ours):
    """Without a progress thread: the owner moves only while it asks for notifications."""
    alien = spawn(transport | foreign.ENVIRONMENT)
    alien.call(foreign.start, progress_thread=False)
    metadata = alien.call(foreign.expose_readable, 5 << 20)
    reading = ours.start(roles.read, metadata)
    assert alien.call(foreign.receive, 1) == [metadata["notification_key"].encode()]
    assert reading.result() == ("DONE", True)


def test_a_foreign_peer_reads_from_us(alien, ours):
    for seed, size in enumerate(SIZES):
        number, metadata = ours.call(roles.expose_readable, [size], seed=seed)
        assert alien.call(foreign.read, metadata, seed=seed) == ("DONE", True)
        assert ours.call(roles.wait, number) == "DONE"
        assert ours.call(roles.dispose, number, seed=seed)
    ours.call(roles.settled)


def test_a_foreign_peer_writes_to_us(alien, ours):
    for seed, size in enumerate(SIZES):
        number, metadata = ours.call(roles.expose_writable, [size])
        assert alien.call(foreign.write, metadata, seed=seed) == "DONE"
        assert ours.call(roles.wait, number) == "DONE"
        assert ours.call(roles.dispose, number, seed=seed)
    ours.call(roles.settled)


def test_we_serve_and_read_both_kinds_at_once(alien, ours, spawn, transport):
    other = spawn(transport)
    theirs = alien.call(foreign.expose_readable, 20 << 20, seed=1)
    number, kin = other.call(roles.expose_readable, [20 << 20], seed=2)
    mine, exposed = ours.call(roles.expose_readable, [20 << 20], seed=3)
    calls = [ours.start(roles.read, theirs, seed=1), ours.start(roles.read, kin, seed=2)]
    calls.append(alien.start(foreign.read, exposed, seed=3))
    assert [call.result() for call in calls] == [("DONE", True)] * 3
    assert other.call(roles.wait, number) == ours.call(roles.wait, mine) == "DONE"
    assert alien.call(foreign.receive, 1) == [theirs["notification_key"].encode()]


def test_the_hang_trap(spawn):
    """A reader with `MM_ERROR_HANDLING` never finishes with an owner without it; ours therefore uses a plain agent."""
    owner, trapped, ours = spawn(foreign.ENVIRONMENT), spawn(foreign.ENVIRONMENT), spawn()
    owner.call(foreign.start)
    metadata = owner.call(foreign.expose_readable, 4096)
    trapped.call(foreign.start, engine_config="MM_ERROR_HANDLING=y")
    # Mostly it waits for ever; now and then NIXL reports a failure. It never completes.
    assert trapped.call(foreign.try_to_read, metadata, 5.0) in ("PROC", "ERR")
    # The owner first: it crashes when such a reader disappears.
    owner.kill()
    trapped.kill()

    owner = spawn(foreign.ENVIRONMENT)
    owner.call(foreign.start)
    metadata = owner.call(foreign.expose_readable, 4096, seed=1)
    assert ours.call(roles.read, metadata, seed=1) == ("DONE", True)
    assert owner.call(foreign.receive, 1) == [metadata["notification_key"].encode()]


def test_a_peer_with_an_impossible_name_spoils_nothing(spawn, transport, alien, ours):
    """NIXL's C API names senders by C strings: what an agent with a NUL in its name sends cannot be asked for."""
    hostile = spawn(transport | foreign.ENVIRONMENT)
    hostile.call(foreign.start, suffix="\0evil")
    number, metadata = ours.call(roles.expose_readable, [4096])
    hostile.call(foreign.notify, metadata["nixl_metadata"], [b"hello", metadata["notification_key"].encode()])
    assert alien.call(foreign.read, metadata) == ("DONE", True)
    assert ours.call(roles.wait, number) == "DONE"
