"""Which event proves that no byte of a dead peer lands any more. NIXL says nothing of it, so raw agents are watched.

Whoever's memory is at stake has it in a file in memory, which this process maps as well: it sees how far a transfer has
come, kills the peer in the middle, and takes stock without asking anybody. `docs/adr/0008-quiescence.md` draws on it.
"""

from __future__ import annotations

import itertools
import mmap
import os
import select
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from support import foreign
from support.flight import TCP

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.here import Here
    from support.workers import Worker

pytestmark = [pytest.mark.nixl, pytest.mark.interop]

SIZE = 128 << 20
BLANK, MOVED, CANARY = 0xEE, 0x11, 0x5A
WINDOW = 4
"""Requests in flight together."""
PIECES = 64
SAMPLE = 1024
"""To see how much has landed, every so many bytes are looked at."""
LATE = 0.5
"""Seconds in which something that is still on its way would show."""
ATTEMPTS = 10
"""So often a transfer may be over before it could be caught."""
LIMIT = 30.0

times = pytest.mark.parametrize(
    "times", [pytest.param(2, id="short"), pytest.param(20, id="long", marks=pytest.mark.long)]
)


class Shared:
    """Memory of a worker that this process sees, too."""

    def __init__(self) -> None:
        self._file = os.memfd_create("shared")
        os.truncate(self._file, SIZE)
        self.path = f"/proc/{os.getpid()}/fd/{self._file}"
        self.array = array_of(self.path)

    def watch(self, share: float) -> None:
        """Wait until so much of it has been moved."""
        mark = int(SIZE * share)
        deadline = time.monotonic() + LIMIT
        while self.array[mark] != MOVED:
            assert time.monotonic() < deadline, "nothing arrives"
            time.sleep(0.0001)

    def close(self) -> None:
        os.close(self._file)


def array_of(path: str) -> np.ndarray:
    """The file, mapped."""
    with open(path, "r+b") as file:
        return np.frombuffer(mmap.mmap(file.fileno(), SIZE), dtype=np.uint8)


def moved(array: np.ndarray) -> int:
    """About how many bytes have arrived."""
    return int(np.count_nonzero(array[::SAMPLE] == MOVED)) * SAMPLE


def shares(times: int) -> Iterator[float]:
    """How much is to have been moved when the peer is killed, for as many attempts as are made."""
    return itertools.islice(itertools.cycle([0.1, 0.3, 0.2, 0.4]), ATTEMPTS * times)


@pytest.fixture
def shared() -> Iterator[Shared]:
    memory = Shared()
    yield memory
    memory.close()


@pytest.fixture
def survivor(spawn, shared):
    """A worker with a raw agent that only looks at the wire when it is told to, and the shared memory registered."""

    def make(transport: dict[str, str], **options: Any) -> Worker:
        worker = spawn(transport | foreign.ENVIRONMENT, loses_peers=True)
        worker.call(foreign.start, progress_thread=False, **options)
        worker.call(adopt, shared.path)
        return worker

    return make


@pytest.fixture
def doomed(spawn):
    """A worker with a raw agent that will be killed."""

    def make(transport: dict[str, str], *, progress_thread: bool, **options: Any) -> Worker:
        worker = spawn(transport | foreign.ENVIRONMENT)
        worker.call(foreign.start, progress_thread=progress_thread, **options)
        return worker

    return make


def adopt(here: Here, path: str) -> None:
    """Register the shared memory."""
    here.shared = here.foreign.register(array_of(path))


def kill_and_see(worker: Worker) -> None:
    """Kill, and return as soon as the pidfd says that the process is dead."""
    watch = os.pidfd_open(worker.pid)
    try:
        signal.pidfd_send_signal(watch, signal.SIGKILL)
        assert select.select([watch], [], [], LIMIT)[0]
    finally:
        os.close(watch)


# A reader whose owner dies.


@times
@pytest.mark.parametrize(
    ("requests", "descriptors"), [(1, 1), (PIECES, 1), (1, PIECES)], ids=["one", "pieces", "descriptors"]
)
def test_nothing_lands_once_every_request_has_ended(survivor, doomed, shared, transport, requests, descriptors, times):
    """Each by itself: others may still end well after the first error."""
    reader = survivor(transport)
    caught = 0
    for share in shares(times):
        owner = doomed(transport, progress_thread=False)
        metadata = owner.call(expose_moved)
        owner.start(serve)
        shared.array[:] = BLANK
        reading = reader.start(read_to_the_ends, metadata, requests, descriptors)
        shared.watch(share)
        owner.kill()
        ends, early, late = reading.result()
        assert (early, late) == (0, 0), f"bytes landed after the ends {ends}"
        caught += "ERR" in ends
        if caught == times:
            return
    raise AssertionError("the owner could not be killed in the middle")


def expose_moved(here: Here) -> dict[str, Any]:
    """Register memory full of what is to be moved."""
    array = here.foreign.register(np.full(SIZE, MOVED, np.uint8))
    return dict(here.foreign.metadata([array], 1, None, in_hex=False))


def serve(here: Here) -> None:
    """Drive the wire until death."""
    while True:
        here.foreign.notifications()
        time.sleep(0.0001)


def read_to_the_ends(here: Here, metadata: dict[str, Any], count: int, descriptors: int) -> tuple[list[str], int, int]:
    """Read until every request that was posted has ended, and give the memory of each another use at once.

    Returns how they ended, how many bytes came to where a request had failed before the last one had ended, and how
    many after that.
    """
    agent, array = here.foreign.agent, here.shared
    peer = agent.add_remote_agent(foreign.decode(metadata["nixl_metadata"]))
    there = metadata["descriptors"][0]["ptr"]
    size = SIZE // count
    requests = []
    for start in range(0, SIZE, size):
        # Backwards, so that NIXL does not make one of them all.
        parts = [(start + part, size // descriptors) for part in range(0, size, size // descriptors)][::-1]
        mine, theirs = (
            agent.get_xfer_descs([(base + offset, length, 0) for offset, length in parts], "DRAM")
            for base in (array.ctypes.data, there)
        )
        requests.append(agent.initialize_xfer("READ", mine, theirs, peer))
    live: list[int] = []
    failed: list[int] = []
    ends: list[str] = []
    waiting = list(range(count))
    deadline = time.monotonic() + LIMIT
    while live or (waiting and not failed):
        assert time.monotonic() < deadline, f"no end of {live} after {ends}"
        if waiting and len(live) < WINDOW and not failed:
            live.append(waiting.pop(0))
            state = word_on(agent.transfer, requests[live[-1]])
            looked_at = [(live[-1], state)]
        else:
            looked_at = [(each, word_on(agent.check_xfer_state, requests[each])) for each in live]
        for each, state in looked_at:
            if state == "PROC":
                continue
            live.remove(each)
            ends.append(state)
            if state == "ERR":
                failed.append(each)
                array[each * size : (each + 1) * size] = CANARY
    early = sum(int(np.count_nonzero(array[each * size : (each + 1) * size] != CANARY)) for each in failed)
    array[:] = CANARY
    look(here, LATE)
    return ends, early, int(np.count_nonzero(array != CANARY))


def word_on(function: Any, *args: Any) -> str:
    """NIXL's word on a request. A failure is "ERR"."""
    try:
        return str(function(*args))
    except Exception:
        return "ERR"


def look(here: Here, seconds: float) -> None:
    """Drive the wire for a while."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        here.foreign.notifications()


@pytest.mark.parametrize("direction", ["READ", "WRITE"])
def test_nothing_lands_once_a_peer_that_died_before_its_first_answer_was_dropped(survivor, doomed, shared, direction):
    """Nothing ever tells that such a request has ended. Dropping the peer ends it, and it can be released."""
    active = survivor({}, **OURS)
    owner = doomed({}, progress_thread=False, **OURS)
    metadata = owner.call(expose_moved)
    owner.pause()
    active.call(begin_in_vain, metadata, direction)
    kill_and_see(owner)
    owner.kill()
    states, late = active.call(drop_and_look, MUTE)
    assert (states, late) == ({"PROC"}, 0)
    fresh = doomed({}, progress_thread=True, **OURS)
    assert active.call(read_first_page, fresh.call(expose_moved)) == "DONE"
    assert shared.array[0] == MOVED


OURS = {"engine_config": "MM_ERROR_HANDLING=y"}
"""As agents of our own kind are made among themselves."""
MUTE = 3.0
"""Seconds in which a request to a dead owner reports nothing, where it ever would."""
PAGE = 4096


def begin_in_vain(here: Here, metadata: dict[str, Any], direction: str) -> None:
    """Post a request to an owner that does not answer."""
    here.peer, here.request = request_page(here, metadata, direction)
    assert here.foreign.agent.transfer(here.request) == "PROC"


def request_page(here: Here, metadata: dict[str, Any], direction: str) -> tuple[str, Any]:
    agent = here.foreign.agent
    peer = agent.add_remote_agent(foreign.decode(metadata["nixl_metadata"]))
    ends = (here.shared.ctypes.data, metadata["descriptors"][0]["ptr"])
    mine, theirs = (agent.get_xfer_descs([(start, PAGE, 0)], "DRAM") for start in ends)
    return peer, agent.initialize_xfer(direction, mine, theirs, peer)


def drop_and_look(here: Here, seconds: float) -> tuple[set[str], int]:
    """Ask for a while, drop the peer, release the request and give its memory another use.

    Returns what was said of it, and how many bytes landed afterwards.
    """
    agent = here.foreign.agent
    end = time.monotonic() + seconds
    states = set()
    while time.monotonic() < end:
        states.add(word_on(agent.check_xfer_state, here.request))
    agent.remove_remote_agent(here.peer)
    agent.release_xfer_handle(here.request)
    here.shared[:] = CANARY
    look(here, LATE)
    return states, int(np.count_nonzero(here.shared != CANARY))


def read_first_page(here: Here, metadata: dict[str, Any]) -> str:
    """Read from an owner that answers."""
    _, request = request_page(here, metadata, "READ")
    state = here.foreign.agent.transfer(request)
    deadline = time.monotonic() + LIMIT
    while state == "PROC" and time.monotonic() < deadline:
        state = here.foreign.agent.check_xfer_state(request)
    return str(state)


# An owner whose writer dies.


@times
def test_nothing_lands_once_the_sockets_to_a_dead_writer_have_gone(survivor, doomed, shared, times):
    """Its death alone proves nothing, nor does one look at the wire: what the kernel holds of it lands at the next."""
    owner = survivor(TCP)
    metadata = owner.call(described)
    caught = 0
    for share in shares(times):
        shared.array[:] = BLANK
        before = connections(owner.pid)
        writer = doomed(TCP, progress_thread=True)
        writer.call(foreign.notify, metadata["nixl_metadata"], [b"hello"])
        assert owner.call(foreign.receive, 1) == [b"hello"]
        theirs = connections(owner.pid) - before
        assert theirs, "the writer has a connection"
        writer.start(write_all, metadata)
        owner.call(look_until, share)
        # Nobody looks at the wire here; the writer fills what the kernel holds.
        time.sleep(0.2)
        kill_and_see(writer)
        is_caught = shared.array[-1] == BLANK
        landed, looks, last, late = owner.call(drain, theirs)
        writer.kill()
        assert late == 0, (
            f"{late} bytes landed after look {looks}, when the sockets had gone; before it {last} was the last"
        )
        if is_caught:
            assert landed > 0
        caught += is_caught
        if caught == times:
            return
    raise AssertionError("the writer could not be killed in the middle")


def described(here: Here) -> dict[str, Any]:
    """Metadata of the shared memory."""
    return dict(here.foreign.metadata([here.shared], 2, None, in_hex=False))


def connections(process: int | str) -> set[str]:
    """The inodes of a process's TCP sockets that do not listen."""
    listening = "0A"
    rows = [
        line.split()
        for table in ("tcp", "tcp6")
        for line in Path(f"/proc/{process}/net/{table}").read_text().splitlines()[1:]
    ]
    existing = {row[9] for row in rows if row[3] != listening}
    held = set()
    for number in os.listdir(f"/proc/{process}/fd"):
        try:
            held.add(os.readlink(f"/proc/{process}/fd/{number}"))
        except FileNotFoundError:
            continue
    return {inode for inode in existing if f"socket:[{inode}]" in held}


def write_all(here: Here, metadata: dict[str, Any]) -> str:
    """Write to all that is exposed, in one request."""
    array = here.foreign.register(np.full(SIZE, MOVED, np.uint8))
    return str(here.foreign.finish(here.foreign.begin("WRITE", [array], metadata)))


def look_until(here: Here, share: float) -> None:
    """Drive the wire until so much has arrived."""
    mark = int(SIZE * share)
    deadline = time.monotonic() + LIMIT
    while here.shared[mark] != MOVED:
        assert time.monotonic() < deadline, "nothing arrives"
        here.foreign.notifications()


def drain(here: Here, sockets: set[str]) -> tuple[int, int, int, int]:
    """Drive the wire until the sockets have gone, and give the memory another use at once.

    Returns how many bytes have landed meanwhile, at how many looks, at which the last of them, and how many after that.
    """
    start = have = moved(here.shared)
    looks = last = 0
    deadline = time.monotonic() + LIMIT
    while sockets & connections("self"):
        assert time.monotonic() < deadline, f"sockets stay: {sockets & connections('self')}"
        here.foreign.notifications()
        looks += 1
        if (now := moved(here.shared)) != have:
            have, last = now, looks
    here.shared[:] = CANARY
    look(here, LATE)
    return have - start, looks, last, int(np.count_nonzero(here.shared != CANARY))


@times
def test_nothing_lands_over_shared_memory_once_the_pidfd_says_that_the_writer_is_dead(survivor, doomed, shared, times):
    """There its own threads copy, and they are gone before that."""
    owner = survivor({})
    metadata = owner.call(described)
    caught = 0
    for share in shares(times):
        shared.array[:] = BLANK
        writer = doomed({}, progress_thread=False)
        writer.start(write_all, metadata)
        shared.watch(share)
        kill_and_see(writer)
        at_death = moved(shared.array)
        is_caught = shared.array[-1] == BLANK
        time.sleep(0.02)
        assert moved(shared.array) == at_death
        shared.array[:] = CANARY
        owner.call(look, LATE)
        assert np.count_nonzero(shared.array != CANARY) == 0
        writer.kill()
        caught += is_caught
        if caught == times:
            return
    raise AssertionError("the writer could not be killed in the middle")
