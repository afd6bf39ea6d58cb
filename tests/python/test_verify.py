"""`verify=True`: what has arrived is compared with a checksum of what was exposed."""

from __future__ import annotations

import pytest
from dynamo_nixl import Descriptor, NixlConnectError, RdmaMetadata

from support import endings, foreign, roles
from support.endings import DONE, FAILED
from support.memory import blank, is_pattern, pattern

pytestmark = pytest.mark.nixl

SIZES = [[1], [4096], [70_001], [(5 << 20) + 3], [1, 4096, 3], [100, 5 << 20, 1], [1] * 200]
BIG = 256 << 20


async def expose(here, sizes, *, verify=True):
    arrays = [pattern(size, seed) for seed, size in enumerate(sizes)]
    operation = await here.connector.create_readable(roles.descriptors(arrays), verify=verify)
    return here.keep((operation, arrays)), operation.metadata().model_dump()


async def read(here, metadata, *, verify=True):
    """Returns what the read has ended with, and whether the patterns have arrived."""
    remote = RdmaMetadata.model_validate(metadata)
    arrays = [blank(descriptor.size) for descriptor in remote.descriptors]
    operation = await here.connector.begin_read(remote, roles.descriptors(arrays), verify=verify)
    try:
        await operation.wait_for_completion()
        end = "none", str(operation.status)
    except NixlConnectError as error:
        end = type(error).__name__, str(operation.status)
        with pytest.raises(RuntimeError):
            operation.results()
    await operation.wait_quiesced()
    return *end, all(is_pattern(array, seed) for seed, array in enumerate(arrays))


async def change(here, number, index, offset):
    """Change one bit of what is exposed."""
    here.kept[number][1][index][offset] ^= 1


@pytest.mark.parametrize("sizes", SIZES, ids=lambda sizes: f"{len(sizes)}x{max(sizes)}")
def test_equal(pair, sizes):
    number, metadata = pair.owner.call(expose, sizes)
    assert pair.reader.call(read, metadata) == ("none", "DONE", True)
    assert pair.owner.call(endings.ended, number) == DONE


@pytest.mark.parametrize("sizes", SIZES, ids=lambda sizes: f"{len(sizes)}x{max(sizes)}")
def test_changed_after_it_was_exposed(pair, sizes):
    number, metadata = pair.owner.call(expose, sizes)
    pair.owner.call(change, number, len(sizes) - 1, sizes[-1] - 1)
    assert pair.reader.call(read, metadata) == ("IntegrityError", "ERR", False)
    assert pair.owner.call(endings.ended, number) == FAILED
    assert "checksum" in pair.owner.call(endings.error_text, number)


@pytest.mark.parametrize(("index", "offset"), [(0, 0), (1, 4 << 20), (2, 0)])
def test_one_bit_of_a_list(pair, index, offset):
    number, metadata = pair.owner.call(expose, [1, 5 << 20, 3])
    pair.owner.call(change, number, index, offset)
    assert pair.reader.call(read, metadata) == ("IntegrityError", "ERR", False)
    # Nobody has to look: it is read as ever.
    number, metadata = pair.owner.call(expose, [1, 5 << 20, 3])
    pair.owner.call(change, number, index, offset)
    assert pair.reader.call(read, metadata, verify=False) == ("none", "DONE", False)
    assert pair.owner.call(endings.ended, number) == DONE


def test_a_big_one_and_others_meanwhile(pair):
    number, metadata = pair.owner.call(expose, [BIG])
    reading = pair.reader.start(read, metadata)
    for _ in range(10):
        pair.reader.call(endings.is_well)
        small, exposed = pair.owner.call(expose, [5000])
        assert pair.reader.call(read, exposed) == ("none", "DONE", True)
        assert pair.owner.call(endings.ended, small) == DONE
    assert reading.result() == ("none", "DONE", True)
    assert pair.owner.call(endings.ended, number) == DONE


def test_an_owner_that_sends_no_checksum(pair):
    number, metadata = pair.owner.call(expose, [4096], verify=False)
    assert pair.reader.call(refuse, metadata).startswith("ValueError: ")
    # Nothing has come of it at the owner.
    assert pair.owner.call(endings.status, number) == "INIT"
    assert pair.reader.call(read, metadata, verify=False) == ("none", "DONE", True)
    assert pair.owner.call(endings.ended, number) == DONE


async def refuse(here, metadata):
    remote = RdmaMetadata.model_validate(metadata)
    with pytest.raises(ValueError, match="checksum") as raised:
        await here.connector.begin_read(remote, Descriptor(blank(remote.descriptors[0].size)), verify=True)
    return f"{type(raised.value).__name__}: {raised.value}"


@pytest.mark.interop
def test_a_foreign_owner(spawn, transport):
    alien, ours = spawn(transport | foreign.ENVIRONMENT), spawn(transport)
    alien.call(foreign.start)
    metadata = alien.call(foreign.expose_readable, 4096)
    assert ours.call(refuse, metadata).startswith("ValueError: ")
    assert ours.call(read, metadata, verify=False) == ("none", "DONE", True)
    # The key of the one read that there was.
    assert alien.call(foreign.receive, 1) == [metadata["notification_key"].encode()]
    ours.finish()
    assert alien.call(foreign.receive_nothing_more) == []


@pytest.mark.interop
def test_a_foreign_reader_of_what_has_a_checksum(spawn, transport):
    alien, ours = spawn(transport | foreign.ENVIRONMENT), spawn(transport)
    alien.call(foreign.start)
    number, metadata = ours.call(expose, [70_000])
    assert alien.call(foreign.read, metadata) == ("DONE", True)
    assert ours.call(endings.ended, number) == DONE
