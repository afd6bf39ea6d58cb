"""Endings by the thousand: restarts, random cancels, deadlines and leases, on many threads; nothing is left over."""

from __future__ import annotations

import asyncio
import base64
import gc
import itertools
import json
import mmap
import random
import resource
import struct
import threading
import warnings
import zlib
from collections import Counter
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from dynamo_nixl import Descriptor, NixlConnectError, RdmaMetadata

from support import endings, roles
from support.endings import DONE, LEASE_EXPIRED
from support.held import grown, held_now, settled_and_held
from support.here import PATIENCE, eventually
from support.loops import factories, in_threads
from support.memory import blank, is_pattern, pattern

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from support.held import Held

pytestmark = pytest.mark.nixl

long = pytest.mark.long
BATCH = 200


def check_flat(
    before: list[tuple[Held, int]], after: list[tuple[Held, int]], growth: int, *, besides: tuple[str, ...] = ()
) -> None:
    """Where no peer has died: only then can something be left that is never known to be quiet."""
    for (held_before, resident_before), (held_after, resident_after) in zip(before, after, strict=True):
        assert not grown(held_before, held_after, besides=("peers", *besides))
        assert held_after.unquiet_regions == 0
        assert resident_after - resident_before < growth


# A server that is started again and again


@pytest.mark.parametrize("restarts", [4, pytest.param(50, marks=long)])
def test_restarts_of_a_server_under_load(spawn, tmp_path, transport, restarts):
    """Each second one ends in order, the others are killed; all have the same name, and the client never lets up."""
    client = spawn(transport, loses_peers=True)
    client.call(start_load, str(tmp_path), 8)
    seen = []
    for number in range(restarts):
        server = spawn(transport, loses_peers=True)
        server.call(roles.use_connector, "the-server")
        server.call(start_server, str(tmp_path / f"{number}"))
        client.call(turn_to, number)
        client.call(moves, 40)
        assert server.is_alive
        agents = client.agents
        seen.append((client.open_files - FILES_OF_AN_AGENT * agents, client.threads, client.resident, agents))
        if number % 2 == 0:
            server.kill()
        else:
            server.call(stop_server)
            server.finish()
    ends = client.call(stop_load)
    assert ends.pop("right") >= 40 * restarts
    # Whatever happens in the middle is an error of ours, and each operation has ended.
    assert set(ends) <= ENDS_AT_RESTARTS, ends
    client.call(roles.settled)
    half = len(seen) // 2
    first, second = ([*zip(*part, strict=True)] for part in (seen[:half], seen[half:]))
    # Some files are open, and some memory is in use, while connections are made and transfers are under way: what is
    # left behind for good shows in the least of each. After 25 deaths it was nothing, over TCP as well.
    files, _, resident, _ = ((min(before), min(after)) for before, after in zip(first, second, strict=True))
    assert files[1] - files[0] < 5, seen
    assert resident[1] - resident[0] < 48 << 20, seen
    threads, agents = max(second[1]) - max(first[1]), [max(part[3]) for part in (first, second)]
    # Where an agent could not load a name again, a spare one took over.
    assert threads <= max(0, agents[1] - agents[0]) + 1, seen
    assert max(agents) <= 4, seen
    endings.serve(spawn(transport), client)


FILES_OF_AN_AGENT = 10
"""With what NIXL and UCX open for it, whatever its peers are."""
ENDS_AT_RESTARTS = {"PeerLostError", "TransferError", "StaleMetadataError", "CancelledByPeerError", "no server"}


async def start_server(here, path):
    """Expose something to whoever asks at the socket, for reading and for writing."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            kind, size, seed = json.loads(await reader.readline())
            array = pattern(size, seed) if kind == "read" else blank(size)
            create = here.connector.create_readable if kind == "read" else here.connector.create_writable
            with await create(Descriptor(array)) as operation:
                writer.write(json.dumps(operation.metadata().model_dump()).encode() + b"\n")
                await operation.wait_for_completion()
                writer.write(json.dumps(is_pattern(array, seed)).encode() + b"\n")
        except NixlConnectError:
            # The client knows more.
            pass
        finally:
            writer.close()
            await writer.wait_closed()

    def on_client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        here.answers.append(asyncio.create_task(answer(reader, writer)))

    # An end in the middle leaves a connection unclosed that asyncio was just accepting, or whose task had not begun.
    warnings.simplefilter("ignore", ResourceWarning)
    here.answers = []
    here.server = await asyncio.start_unix_server(on_client, path)


async def stop_server(here):
    """Stop in the middle of whatever is under way."""
    here.server.close()
    for task in here.answers:
        task.cancel()
    await asyncio.gather(*here.answers, return_exceptions=True)


async def start_load(here, folder, tasks):
    here.server = None
    here.seen = Counter()
    here.load = [asyncio.create_task(load(here, folder, number)) for number in range(tasks)]


async def turn_to(here, server):
    here.server = server


async def moves(here, count):
    """Wait until so many more transfers were right."""
    wanted = here.seen["right"] + count
    await eventually(lambda: here.seen["right"] >= wanted or any(task.done() for task in here.load))


async def stop_load(here):
    for task in here.load:
        task.cancel()
    for outcome in await asyncio.gather(*here.load, return_exceptions=True):
        if not isinstance(outcome, asyncio.CancelledError):
            raise outcome
    return dict(here.seen)


async def load(here, folder, number):
    """Read and write by turns, small and large, for ever."""
    for seed in itertools.count(number * 1000):
        kind = endings.KINDS[seed % 2]
        size = (5 << 20) if seed % 5 == 0 else 1 + seed * 7919 % 20_000
        try:
            reader, writer = await asyncio.open_unix_connection(f"{folder}/{here.server}")
        except OSError:
            here.seen["no server"] += 1
            await asyncio.sleep(0.02)
            continue
        try:
            writer.write(json.dumps([kind, size, seed]).encode() + b"\n")
            metadata = json.loads(await reader.readline() or "null")
            if metadata is None:
                here.seen["no server"] += 1
                continue
            remote = RdmaMetadata.model_validate(metadata)
            array = blank(size) if kind == "read" else pattern(size, seed)
            if kind == "read":
                operation = await here.connector.begin_read(remote, Descriptor(array))
            else:
                operation = await here.connector.begin_write(Descriptor(array), remote)
            with operation:
                await operation.wait_for_completion()
            arrived = json.loads(await reader.readline() or "null")
            assert is_pattern(array, seed)
            # A server that was killed has told nothing.
            assert arrived in (True, None)
            here.seen["right"] += 1
        except NixlConnectError as error:
            here.seen[type(error).__name__] += 1
        except ConnectionError:
            here.seen["no server"] += 1
        finally:
            writer.close()


# Random ends


@pytest.mark.parametrize("count", [600, pytest.param(10_000, marks=long)])
def test_random_ends(spawn, transport, count):
    """Cancels, deadlines, drops and gathers at random, on both sides."""
    owner, active = spawn(transport), spawn(transport)
    workers = [owner, active]
    endings.serve(owner, active)
    ends: Counter[str] = Counter()
    before = None
    for batch in range(count // BATCH):
        exposed = owner.call(expose_at_random, batch)
        left = owner.start(end_exposed_at_random, batch)
        ends.update(active.call(end_at_random, exposed, batch))
        left.result()
        for worker in workers:
            worker.call(roles.settled)
        if batch == min(count // BATCH // 2, 10):
            before = [settled_and_held(worker) for worker in workers]
    # All of them happened.
    assert min(ends[end] for end in ("DONE", "STOP", "dropped")) > count // 60, ends
    assert set(ends) <= {"DONE", "STOP", "dropped", *ENDS_AT_RANDOM}, ends
    endings.serve(owner, active)
    assert before is not None
    # The allocator keeps what a dozen of the large arrays took; the memory of one operation in a hundred would be more.
    check_flat(before, held_now(before, workers, besides=("peers",)), growth=128 << 20)


ENDS_AT_RANDOM = {"CancelledByPeerError", "LeaseExpiredError", "StaleMetadataError", "TransferTimeoutError"}


def a_size(randomly: random.Random) -> int:
    """Mostly what ends on the spot, sometimes what takes a lane and several pieces."""
    return randomly.choice([1, 4096, 60_000, 300_000, 2 << 20, 9 << 20, 9 << 20])


async def expose_at_random(here, seed):
    randomly = random.Random(seed)
    here.exposed = []
    for number in range(BATCH):
        kind, size = randomly.choice(endings.KINDS), a_size(randomly)
        array = pattern(size, number) if kind == "read" else blank(size)
        create = here.connector.create_readable if kind == "read" else here.connector.create_writable
        here.exposed.append((await create(Descriptor(array)), array))
    made = [operation.metadata().model_dump() for operation, _ in here.exposed]
    for operation, _ in here.exposed:
        if randomly.random() < 0.1:
            operation.renew(randomly.uniform(0.001, 0.2))
    return made


async def end_exposed_at_random(here, seed):
    """What the owner does meanwhile: most of it waits."""
    randomly = random.Random(~seed)
    exposed, here.exposed = here.exposed, []

    async def one(operation: Any, array: np.ndarray, how: float, pause: float) -> None:
        # After the end of the batch nobody comes any more.
        limit = 5.0
        await asyncio.sleep(pause)
        if how < 0.08:
            operation.cancel()
        elif how < 0.12:
            # Dropped here, since nobody else refers to it.
            return
        with suppress(NixlConnectError, TimeoutError), operation:
            await operation.wait_for_completion(timeout=limit)
            if str(operation.status) == "DONE":
                assert not (array[:8] == 0xEE).all() or array.size < 8

    tasks = []
    while exposed:
        tasks.append(asyncio.create_task(one(*exposed.pop(), randomly.random(), randomly.uniform(0, 0.1))))
    await asyncio.gather(*tasks)


async def end_at_random(here, exposed, seed):
    randomly = random.Random(seed * 31 + 7)
    tasks = []
    for number, metadata in enumerate(exposed):
        tasks.append(asyncio.create_task(one_at_random(here, metadata, number, random.Random(randomly.random()))))
        if len(tasks) == 10 or number == len(exposed) - 1:
            here.ends = getattr(here, "ends", Counter())
            here.ends.update(await asyncio.gather(*tasks))
            tasks.clear()
    ends, here.ends = here.ends, Counter()
    return dict(ends)


async def one_at_random(here, metadata, seed, randomly):
    """One transfer that ends in one of many ways. Returns how it did."""
    remote = RdmaMetadata.model_validate(metadata)
    size = remote.descriptors[0].size
    is_read = remote.operation_kind == 1
    array = blank(size) if is_read else pattern(size, seed)
    how = randomly.random()
    options = {"timeout": randomly.uniform(0, 0.01)} if how < 0.15 else {}
    pause = randomly.choice([0, 0, randomly.uniform(0, 0.003)])
    try:
        if is_read:
            operation = await here.connector.begin_read(remote, Descriptor(array), **options)
        else:
            operation = await here.connector.begin_write(Descriptor(array), remote, **options)
    except NixlConnectError as error:
        return type(error).__name__
    try:
        if 0.15 <= how < 0.3:
            if pause:
                await asyncio.sleep(pause)
            operation.cancel()
        elif 0.3 <= how < 0.4:
            await asyncio.sleep(pause)
            del operation
            return "dropped"
        elif 0.4 <= how < 0.5:
            async with operation:
                await asyncio.sleep(pause)
            assert operation.is_quiesced
        elif 0.5 <= how < 0.6:
            # Two wait, and one of them is cancelled, which leaves the operation as it is.
            waiting = asyncio.create_task(operation.wait_for_completion())
            other = asyncio.gather(waiting, operation.wait_quiesced())
            await asyncio.sleep(pause)
            other.cancel()
            with suppress(asyncio.CancelledError, NixlConnectError):
                await other
        elif 0.6 <= how < 0.7:
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await operation.wait_for_completion()
        await operation.wait_for_completion()
    except NixlConnectError as error:
        assert str(operation.status) in ("ERR", "STOP")
        return type(error).__name__
    if str(operation.status) == "DONE" and is_read:
        assert is_pattern(array, seed)
    return str(operation.status)


# Many threads


@pytest.mark.parametrize(
    ("threads", "count"), [(8, 20), pytest.param(16, 300, marks=long)], ids=["8 threads", "16 threads"]
)
def test_threads_on_two_loops(spawn, transport, threads, count):
    """Each thread begins on one of two loops, waits on the other, and cancels from itself."""
    owner, active = spawn(transport), spawn(transport)
    endings.serve(owner, active)
    for seed in range(2):
        exposed = owner.call(expose_for_threads, threads * count)
        ends = active.call(end_in_threads, exposed, threads, seed, limit=600)
        assert set(ends) <= {"DONE", "STOP"}, ends
        assert min(ends.values()) > threads, ends
        theirs = owner.call(ends_of_exposed)
        assert set(theirs) == {"DONE", "CancelledByPeerError"}, theirs
        assert sum(theirs.values()) == sum(ends.values())
        # What is cancelled between its last byte and the moment at which that is known is complete to its owner.
        assert theirs["DONE"] >= ends["DONE"], (theirs, ends)
        for worker in (owner, active):
            worker.call(roles.settled)
    endings.serve(owner, active)


async def expose_for_threads(here, count):
    here.exposed = []
    for number in range(count):
        size = (3 << 20) if number % 3 else 4096
        here.exposed.append(await here.connector.create_readable(Descriptor(pattern(size, number))))
    return [operation.metadata().model_dump() for operation in here.exposed]


async def ends_of_exposed(here):
    exposed, here.exposed = here.exposed, []
    ends: Counter[str] = Counter()
    for operation in exposed:
        try:
            await operation.wait_for_completion(timeout=PATIENCE)
        except NixlConnectError as error:
            ends[type(error).__name__] += 1
        else:
            ends[str(operation.status)] += 1
    return dict(ends)


def end_in_threads(here, exposed, threads, seed):
    """Carry out transfers, or cancel them, in threads."""
    loops = [make() for make in factories()]
    running = [threading.Thread(target=loop.run_forever) for loop in loops]
    for thread in running:
        thread.start()

    def on(loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, loop).result(PATIENCE * 2)

    def work(index: int) -> Counter[str]:
        randomly = random.Random(seed * 1000 + index)
        ends: Counter[str] = Counter()
        for number in range(index, len(exposed), threads):
            remote = RdmaMetadata.model_validate(exposed[number])
            array = blank(remote.descriptors[0].size)
            operation = on(loops[number % 2], here.connector.begin_read(remote, Descriptor(array)))
            how = randomly.random()
            if how < 0.3:
                operation.cancel()
            elif how < 0.6:
                # It is waited for on one loop while it is cancelled on the other.
                waiting = asyncio.run_coroutine_threadsafe(operation.wait_for_completion(), loops[number % 2])
                loops[1 - number % 2].call_soon_threadsafe(operation.cancel)
                waiting.result(PATIENCE * 2)
            on(loops[1 - number % 2], operation.wait_for_completion())
            if str(operation.status) == "DONE":
                assert is_pattern(array, number)
            on(loops[number % 2], operation.wait_quiesced())
            ends[str(operation.status)] += 1
        return ends

    try:
        found = in_threads(threads, caught(work))
    finally:
        for loop, thread in zip(loops, running, strict=True):
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            loop.close()
    total: Counter[str] = Counter()
    for ends in found:
        if isinstance(ends, BaseException):
            raise ends
        total.update(ends)
    return dict(total)


def caught(function: Callable[[int], Any]) -> Callable[[int], Any]:
    """Return what is raised in a thread."""

    def call(index: int) -> Any:
        try:
            return function(index)
        except BaseException as error:
            return error

    return call


# Metadata that changes


@pytest.mark.parametrize("lanes", ["0", ""], ids=["alone", "with copy lanes"])
@pytest.mark.parametrize("rounds", [30, pytest.param(1000, marks=long)])
def test_metadata_that_changes_during_a_transfer(spawn, transport, rounds, lanes):
    """By turns the range of a loaded region comes with another key, and another agent under the name of the loaded one.

    Both come while a large read is under way with what is loaded, which has to be dropped for them, and not before.
    """
    owners, active = [spawn(transport), spawn(transport)], spawn(transport | {"DYNAMO_NIXL_COPY_LANES": lanes})
    for owner in owners:
        owner.call(roles.use_connector, "the-owner")
        owner.call(make_room)
    active.call(make_room)
    for worker in (*owners, active):
        worker.call(allow_open_files)
    workers = [*owners, active]
    _, metadata = owners[0].call(expose_room, SMALL)
    active.call(read_room, metadata)
    before, caught, loaded, current = None, 0, active.call(reloads), 0
    halfway = loaded
    for number in range(rounds):
        exposed, large = owners[current].call(expose_room, LARGE)
        following = current if number % 2 == 0 else 1 - current
        _, small = owners[following].call(expose_room, SMALL)
        caught += active.call(read_against, large, small if number % 2 else with_another_key(small))
        assert owners[current].call(endings.ended, exposed) == DONE
        current = following
        for owner in owners:
            owner.call(roles.settled)
        if number == rounds // 2:
            before, halfway = [settled_and_held(worker) for worker in workers], active.call(reloads)
    # Each was a conflict, also where the first read was nearly over.
    # It is one for the copy lanes as well, as far as they had a part in the large ones.
    most = rounds if lanes == "0" else rounds * active.agents
    assert rounds <= active.call(reloads) - loaded <= most
    assert caught > rounds // 2
    assert before is not None
    # A loaded peer that is dropped leaves some 80 KB behind in UCX, or two sockets over TCP, one on the other side.
    left_behind = active.call(reloads) - halfway
    after = held_now(before, workers, besides=("peers",))
    check_flat(before, after, growth=(8 << 20) + left_behind * (128 << 10), besides=("open_files",))
    for (held_before, _), (held_after, _), sockets in zip(before, after, (1, 1, 2), strict=True):
        assert held_after.open_files - held_before.open_files <= (sockets * left_behind + 4 if transport else 0)


async def reloads(here) -> int:
    """How often any of its agents has dropped a peer to load it anew."""
    return (await roles.counters(here))["reloads"]


SMALL, LARGE = 1 << 20, 64 << 20


async def make_room(here):
    here.room = pattern(LARGE)
    here.targets = {size: blank(size) for size in (SMALL, LARGE)}


async def allow_open_files(here):
    """As many as the system lets it have."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


async def expose_room(here, size):
    """So much of the same memory each time."""
    operation = await here.connector.create_readable(Descriptor(here.room[:size]))
    return here.keep((operation, [])), operation.metadata().model_dump()


def with_another_key(metadata: dict[str, Any]) -> dict[str, Any]:
    """What a back end might list whose keys tell registrations apart.

    UCX gives equal keys to whatever private memory is registered again, over shared memory as over TCP. It is not told
    how long a key is, so that another byte behind it makes another key of the same meaning.
    """
    (descriptor,) = metadata["descriptors"]
    inflating = zlib.decompressobj()
    blob = inflating.decompress(base64.b64decode(metadata["nixl_metadata"].removeprefix("b64:")))
    range_of_it = struct.pack("<QQQ", descriptor["ptr"], descriptor["size"], 0)
    before, after = blob.split(range_of_it)
    (size,) = struct.unpack("<Q", before[-8:])
    key = size - len(range_of_it)
    changed = before[:-8] + struct.pack("<Q", size + 1) + range_of_it + after[:key] + b"\0" + after[key:]
    text = base64.b64encode(zlib.compress(changed, 6) + inflating.unused_data).decode()
    return metadata | {"nixl_metadata": f"b64:{text}"}


async def read_room(here, metadata):
    async with await begin_to_read_room(here, metadata) as operation:
        await operation.wait_for_completion()
    assert_read(here, SMALL)


async def begin_to_read_room(here, metadata):
    remote = RdmaMetadata.model_validate(metadata)
    target = here.targets[remote.descriptors[0].size]
    target[:] = 0xEE
    return await here.connector.begin_read(remote, Descriptor(target))


def assert_read(here, size):
    assert np.array_equal(here.targets[size], here.room[:size])


async def read_against(here, large, small):
    """Begin a read, and one that has to wait for its end. Returns whether it was in the middle then."""
    async with await begin_to_read_room(here, large) as first:
        while not first.bytes_done:  # noqa: ASYNC110 - nothing announces it
            await asyncio.sleep(0)
        is_in_the_middle = first.bytes_done < LARGE
        async with await begin_to_read_room(here, small) as second:
            assert first.is_quiesced
            await second.wait_for_completion()
        await first.wait_for_completion()
    assert_read(here, LARGE)
    assert_read(here, SMALL)
    return is_in_the_middle


@pytest.mark.parametrize("rounds", [20, pytest.param(300, marks=long)])
def test_parts_that_are_cut_anew_during_a_transfer(spawn, transport, rounds):
    """They overlap what is loaded under equal keys, and are loaded beside it: nothing is dropped, nobody waits."""
    owner, active = spawn(transport), spawn(transport)
    owner.call(make_whole)
    endings.serve(owner, active)
    before = None
    for number in range(rounds):
        _, large = owner.call(endings.expose, "read", 24 << 20, seed=number)
        exposed = owner.call(expose_parts, number)
        assert active.call(read_while_reading, large, exposed, number) == "DONE"
        owner.call(roles.settled)
        if number == rounds // 2:
            before = [settled_and_held(worker) for worker in (owner, active)]
    assert active.call(roles.counters)["reloads"] == 0
    assert before is not None
    check_flat(before, held_now(before, (owner, active), besides=("peers",)), growth=48 << 20)


WHOLE = 4 << 20


async def make_whole(here):
    here.whole = pattern(WHOLE)


async def expose_parts(here, seed):
    """Parts of the same memory as each time, cut elsewhere."""
    randomly = random.Random(seed)
    parts = []
    for _ in range(3):
        start = randomly.randrange(WHOLE - 70_000)
        size = randomly.randrange(1, 70_000)
        operation = await here.connector.create_readable(Descriptor(here.whole[start : start + size]))
        here.keep((operation, []))
        parts.append((operation.metadata().model_dump(), start))
    return parts


async def read_while_reading(here, large, parts, seed):
    remote = RdmaMetadata.model_validate(large)
    target = blank(remote.descriptors[0].size)
    everything = pattern(WHOLE)
    async with await here.connector.begin_read(remote, Descriptor(target)) as operation:

        async def one(metadata: dict[str, Any], start: int) -> None:
            remote = RdmaMetadata.model_validate(metadata)
            array = blank(remote.descriptors[0].size)
            async with await here.connector.begin_read(remote, Descriptor(array)) as small:
                await small.wait_for_completion()
            assert np.array_equal(array, everything[start : start + array.size])

        await asyncio.gather(operation.wait_for_completion(), *(one(*part) for part in parts))
        assert is_pattern(target, seed)
        return str(operation.status)


# Leases


@pytest.mark.parametrize("count", [200, pytest.param(1000, marks=long)])
def test_leases_that_expire_with_nobody_coming(spawn, transport, count):
    """Each holds a mebibyte of its own."""
    owner, active = spawn(transport), spawn(transport)
    endings.serve(owner, active)
    assert owner.call(expire, 100) == {LEASE_EXPIRED: 100}
    before = [settled_and_held(owner)]
    for _ in range(count // 100):
        assert owner.call(expire, 100) == {LEASE_EXPIRED: 100}
    check_flat(before, held_now(before, [owner], besides=("peers",)), growth=32 << 20)
    endings.serve(owner, active)


async def expire(here, count):
    numbers = []
    for number in range(count):
        # Mapped, so that it goes back to the system when it is freed, whatever the allocator thinks of it.
        array = np.frombuffer(mmap.mmap(-1, 1 << 20), dtype=np.uint8)
        array[:] = 1
        create = here.connector.create_readable if number % 2 == 0 else here.connector.create_writable
        operation = await create(Descriptor(array), lease=0.2)
        operation.metadata()
        numbers.append(here.keep((operation, [array])))
        del array, operation
    ends = Counter(await asyncio.gather(*(endings.ended(here, number) for number in numbers)))
    for number in numbers:
        await endings.wait_quiesced(here, number)
        await endings.drop(here, number)
    gc.collect()
    return dict(ends)
