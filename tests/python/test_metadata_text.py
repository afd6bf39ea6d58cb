"""The text of `nixl_metadata`: its size, both encodings as upstream decodes them, and texts that are refused."""

from __future__ import annotations

import base64
import json
import random
import zlib

import pytest
from dynamo_nixl import Connector, Descriptor, MetadataError, RdmaMetadata

from support import foreign, roles
from support.here import settle, stats
from support.memory import blank, pattern

pytestmark = pytest.mark.nixl

BUDGET = 170
"""Characters that our metadata may be longer than upstream's for one region."""


@pytest.mark.parametrize("count", [1, 1_000, 10_000])
def test_the_size_does_not_grow_with_registrations(pair, count):
    few, many = pair.owner.call(lengths_with_registrations, count)
    assert many <= few + 8  # compression sees other addresses


def test_each_exposed_region_is_listed_and_no_other(pair):
    assert pair.owner.call(listed_in_exposures) == [[True, False, False], [True, True, False]]


@pytest.mark.interop
def test_the_size_stays_near_upstreams(spawn, transport):
    ours, alien = spawn(transport), spawn(transport | foreign.ENVIRONMENT)
    alien.call(foreign.start)
    theirs = alien.call(foreign.blob_of_one_region, 4096)
    assert ours.call(text_length, hexadecimal=False) <= len(theirs) + BUDGET


def test_upstreams_decoder_reads_both_encodings(pair):
    number, metadata = pair.owner.call(roles.expose_readable, [4096])
    hexadecimal = pair.owner.call(hex_text, number)
    text = metadata["nixl_metadata"]
    assert text.startswith("b64:")
    assert hexadecimal == hexadecimal.lower()
    blob = foreign.decode(text)
    assert blob == foreign.decode(hexadecimal)
    assert blob.startswith(b"nixlSerDes|Agent")
    # zlib's own header for level 6, as upstream's.
    assert base64.b64decode(text[4:])[:2] == b"\x78\x9c"
    assert list(metadata) == ["descriptors", "nixl_metadata", "notification_key", "operation_kind"]
    assert json.loads(json.dumps(metadata)) == metadata


@pytest.mark.parametrize("rewrite", ["upper", "lines", "level 9", "no trailer"])
def test_other_spellings_are_understood(pair, rewrite):
    number, metadata = pair.owner.call(roles.expose_readable, [4096])
    text = metadata["nixl_metadata"]
    stream = base64.b64decode(text[4:])
    metadata["nixl_metadata"] = {
        "upper": lambda: stream.hex().upper(),
        "lines": lambda: "b64:" + base64.encodebytes(stream).decode(),
        "level 9": lambda: "b64:" + base64.b64encode(zlib.compress(zlib.decompress(stream), 9)).decode(),
        "no trailer": lambda: foreign.encode(foreign.decode(text)),
    }[rewrite]()
    assert pair.reader.call(roles.read, metadata) == ("DONE", True)
    assert pair.owner.call(roles.wait, number) == "DONE"


def test_what_a_later_version_adds_is_ignored_and_counted(pair):
    number, metadata = pair.owner.call(roles.expose_readable, [4096])
    stream = base64.b64decode(metadata["nixl_metadata"][4:])
    inflating = zlib.decompressobj()
    inflating.decompress(stream)
    trailer = inflating.unused_data
    # docs/protocol.md: magic, major, minor, length of all of it; fields of kind, size, value; crc32.
    fields = trailer[8:-4] + bytes([200, 2, 1, 2])
    body = trailer[:5] + bytes([9]) + (len(fields) + 12).to_bytes(2, "little") + fields
    later = stream[: -len(trailer)] + body + zlib.crc32(body).to_bytes(4, "little")
    metadata["nixl_metadata"] = "b64:" + base64.b64encode(later).decode()
    before = pair.reader.call(unknown_fields)
    assert pair.reader.call(roles.read, metadata) == ("DONE", True)
    assert pair.owner.call(roles.wait, number) == "DONE"
    assert pair.reader.call(unknown_fields) == before + 1


def spoilt(text: str) -> dict[str, str]:
    """Texts made of a good one that must be refused."""
    stream = base64.b64decode(text[4:])
    blob = zlib.decompress(stream)
    chance = random.Random(4)

    def packed(content: bytes) -> str:
        return "b64:" + base64.b64encode(content).decode()

    texts = {
        "empty": "",
        "only the prefix": "b64:",
        "no encoding": "hello, world",
        "odd hex": stream.hex()[:-1],
        "no padding": text.rstrip("=") if text.endswith("=") else text[:-1],
        "not zlib": packed(b"nothing that zlib made"),
        "raw deflate": packed(zlib.compress(blob)[2:-4]),
        "empty blob": foreign.encode(b""),
        "only the magic": foreign.encode(b"nixlSerDes|"),
        "bytes behind the sections": foreign.encode(blob + b"|"),
        "zlib bomb": foreign.encode(b"nixlSerDes|" + bytes(300 << 20)),
        "enormous": "b64:" + "A" * (20 << 20),
        "cut trailer": packed(stream[:-3]),
        "spoilt trailer": packed(stream[:-3] + bytes([stream[-3] ^ 1]) + stream[-2:]),
    }
    for cut in (1, 5, 11, len(blob) // 3, len(blob) // 2, len(blob) - 1):
        texts[f"blob cut at {cut}"] = foreign.encode(blob[:cut])
    for cut in (3, len(text) // 2):
        texts[f"text cut at {cut}"] = text[:cut]
    # Lengths and counts are little-endian numbers: a flipped high bit makes them enormous.
    for tag in (b"Agent", b"Conns", b"nixlSecElms", b"bknd"):
        position = blob.index(tag) + len(tag) + 7
        texts[f"length of {tag.decode()}"] = foreign.encode(
            blob[:position] + bytes([blob[position] ^ 0x80]) + blob[position + 1 :]
        )
    for turn in range(20):
        # Not in the trailer: without its magic it is that of a foreign peer.
        position = chance.randrange(len(stream) - 80)
        texts[f"flipped bit {turn}"] = packed(
            stream[:position] + bytes([stream[position] ^ (1 << chance.randrange(8))]) + stream[position + 1 :]
        )
    return texts


def test_what_is_malformed_is_refused_and_harms_nothing(pair):
    number, metadata = pair.owner.call(roles.expose_readable, [70_000])
    for name, text in spoilt(metadata["nixl_metadata"]).items():
        assert pair.reader.call(refused_read, metadata | {"nixl_metadata": text}) == "MetadataError", name
    assert pair.reader.call(roles.read, metadata) == ("DONE", True)
    assert pair.owner.call(roles.wait, number) == "DONE"


@pytest.mark.parametrize(("shift", "growth"), [(-1, 0), (1, 0), (1 << 40, 0), (0, 1), (-5, 10), (70_000, 0)])
def test_a_range_outside_of_what_is_exposed_is_refused(pair, shift, growth):
    number, metadata = pair.owner.call(roles.expose_readable, [70_000])
    (descriptor,) = metadata["descriptors"]
    moved = {"ptr": descriptor["ptr"] + shift, "size": descriptor["size"] + growth}
    outside = metadata | {"descriptors": [descriptor | moved]}
    assert pair.reader.call(refused_read, outside) == "MetadataError"
    assert pair.reader.call(roles.read, metadata) == ("DONE", True)
    assert pair.owner.call(roles.wait, number) == "DONE"


@pytest.mark.parametrize("pointer", [-5, 1 << 64, (1 << 64) - 10])
def test_an_address_that_no_memory_has_is_refused(pair, pointer):
    number, metadata = pair.owner.call(roles.expose_readable, [70_000])
    (descriptor,) = metadata["descriptors"]
    impossible = metadata | {"descriptors": [descriptor | {"ptr": pointer}]}
    assert pair.reader.call(refused_read, impossible) == "MetadataError"
    assert pair.reader.call(roles.read, metadata) == ("DONE", True)
    assert pair.owner.call(roles.wait, number) == "DONE"


def test_own_metadata_is_refused(pair):
    number, metadata = pair.owner.call(roles.expose_readable, [70_000])
    assert pair.owner.call(refused_read, metadata) == "MetadataError"
    assert pair.reader.call(roles.read, metadata) == ("DONE", True)
    assert pair.owner.call(roles.wait, number) == "DONE"


def test_two_connectors_of_one_process_can_talk(pair):
    assert pair.owner.call(read_within_the_process)


async def lengths_with_registrations(here, count):
    async def length():
        with await here.connector.create_readable(Descriptor(bytes(5000))) as operation:
            return len(operation.metadata().nixl_metadata)

    few = await length()
    await settle(here.connector)
    arrays = [pattern(4096) for _ in range(count)]
    native = here.connector._shared_connection._native
    held = native.register([(1, 0, array.ctypes.data, array.nbytes, array) for array in arrays])
    assert native.stats()["regions"] == count
    many = await length()
    del held
    return few, many


async def listed_in_exposures(here):
    """Which of three registered arrays' addresses the metadata shows, of one exposed and of two exposed."""
    arrays = [pattern(size) for size in (4096, 5000, 6000)]
    exposed = [
        await here.connector.create_readable([Descriptor(array) for array in arrays[:count]]) for count in (1, 2, 3)
    ]
    blobs = [foreign.decode(operation.metadata().nixl_metadata) for operation in exposed[:2]]
    return [[array.ctypes.data.to_bytes(8, "little") in blob for array in arrays] for blob in blobs]


async def text_length(here, hexadecimal):
    with await here.connector.create_readable(Descriptor(bytes(4096))) as operation:
        return len(operation.metadata(hex_encode=hexadecimal).nixl_metadata)


async def hex_text(here, number):
    operation, _ = here.kept[number]
    return operation.metadata(True).nixl_metadata


async def unknown_fields(here):
    return stats(here.connector).get("trailer_fields_unknown", 0)


async def refused_read(here, metadata):
    remote = RdmaMetadata.model_validate(metadata)
    try:
        await here.connector.begin_read(remote, Descriptor(blank(remote.descriptors[0].size)))
    except MetadataError as error:
        assert isinstance(error, ValueError)
        assert isinstance(error, RuntimeError)
        return type(error).__name__
    return "accepted"


async def read_within_the_process(here):
    other = Connector()
    array = blank(70_000)
    exposed = await here.connector.create_readable(Descriptor(pattern(70_000)))
    with exposed, await other.begin_read(exposed.metadata(), Descriptor(array)) as operation:
        await operation.wait_for_completion()
        await exposed.wait_for_completion()
        return bool((array == pattern(70_000)).all())
