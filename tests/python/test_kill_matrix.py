"""Every way in which a peer can go, at every moment: what the one that stays is told, and that it loses nothing.

`ENDS` is the table: how the survivor's operation ends, as docs/protocol.md has it. Limits are short here,
so that what only they can tell is told within seconds.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from typing import TYPE_CHECKING, Any

import pytest
from dynamo_nixl import Descriptor

from support import endings, roles
from support.aborts import again_where_ucx_aborts
from support.endings import DONE, FAILED, HUGE, LEASE_EXPIRED, PEER_LOST, TIMED_OUT, End
from support.fixtures import TRANSPORTS
from support.held import grown, held_by
from support.here import PATIENCE, settle

if TYPE_CHECKING:
    from collections.abc import Callable

    from support.here import Here
    from support.workers import Worker

pytestmark = pytest.mark.nixl

LEASE = 1.0
"""Of the exposures that are looked at, and not of those by which two get to know each other."""
STALL = 1.5
LIMITS = {"DYNAMO_NIXL_GRACE": "0.2", "DYNAMO_NIXL_STALL_TIMEOUT": f"{STALL}"}

VICTIMS = {
    "reader": ("active", "read"),
    "writer": ("active", "write"),
    "owner of readable": ("owner", "read"),
    "owner of writable": ("owner", "write"),
}
"""Which side goes, and which way the bytes move, seen from the active side."""
MOMENTS = ("unused", "begin", "transfer", "unnotified", "idle")
EVENTS = ("kill", "stop", "exit")
"""SIGKILL; SIGSTOP until the survivor's limits have passed, then SIGCONT; an orderly exit, with all operations kept."""

NOTHING = frozenset[End]()
"""There is no operation."""


def only(*ends: End) -> frozenset[End]:
    return frozenset(ends)


ENDS: dict[tuple[str, str, str, str], frozenset[End]] = {}
"""By side of the victim, moment, event, transport."""


def state(side: str, moment: str, event: str, default: frozenset[End], tcp: frozenset[End] | None = None) -> None:
    ENDS[side, moment, event, "default"] = default
    ENDS[side, moment, event, "tcp"] = default if tcp is None else tcp


# The active side goes, and the owner stays.
for each in EVENTS:
    # Nobody has said anything to the owner.
    state("active", "unused", each, only(LEASE_EXPIRED))
    state("active", "idle", each, NOTHING)
# Whether the owner hears of what had only begun depends on what got through to it while it stood still: if it
# does, then also of the end; if it does not, the lease ends.
state("active", "begin", "kill", only(PEER_LOST, LEASE_EXPIRED))
state("active", "begin", "exit", only(FAILED, PEER_LOST, LEASE_EXPIRED))
# A transfer holds the exposure open, but not one of a process that is stopped.
state("active", "begin", "stop", only(LEASE_EXPIRED))
state("active", "transfer", "stop", only(LEASE_EXPIRED))
state("active", "transfer", "kill", only(PEER_LOST))
# The transfer may come to its end before the exit comes to it.
state("active", "transfer", "exit", only(FAILED, DONE))
# Where the key waits, it counts, whatever has become of its sender. Over TCP it was not sent, or just about.
state("active", "unnotified", "kill", only(DONE), only(PEER_LOST, DONE))
# The lease is long there. The deadline of who was stopped may have passed before it goes on.
state("active", "unnotified", "stop", only(DONE), only(DONE, FAILED))
state("active", "unnotified", "exit", only(DONE), only(FAILED, DONE))

# The owner goes, and the active side stays.
state("owner", "unused", "kill", only(PEER_LOST))
# It is used after SIGCONT.
state("owner", "unused", "stop", only(DONE))
state("owner", "unused", "exit", only(PEER_LOST))
state("owner", "begin", "kill", only(PEER_LOST))
state("owner", "begin", "stop", only(TIMED_OUT))
# The transfer may be over first; and the process may have ended before its message is looked at.
state("owner", "begin", "exit", only(FAILED, PEER_LOST, DONE))
state("owner", "transfer", "kill", only(PEER_LOST))
# Where the kernel copies, a stopped process can be read and written; a lane that is not connected yet needs it to run.
state("owner", "transfer", "stop", only(DONE, TIMED_OUT), only(TIMED_OUT))
state("owner", "transfer", "exit", only(FAILED, PEER_LOST, DONE))
state("owner", "unnotified", "kill", only(DONE), only(PEER_LOST))
state("owner", "unnotified", "stop", only(DONE), only(TIMED_OUT))
state("owner", "unnotified", "exit", only(DONE), only(DONE, FAILED, PEER_LOST))
for each in EVENTS:
    state("owner", "idle", each, NOTHING)

SHORT: dict[tuple[str, str], tuple[str, str]] = {
    (victim, moment): (EVENTS[(row + column) % 3], ("default", "tcp")[(row + row // 2 + column) % 2])
    for row, victim in enumerate(VICTIMS)
    for column, moment in enumerate(MOMENTS)
}
"""The cell of each row that `make test` runs: all events, both transports."""


# Where UCX would abort the owner now and then, see `support.aborts`, and the test would be run anew.
SHORT["reader", "unnotified"] = ("kill", "default")
SHORT["owner of readable", "begin"] = ("kill", "tcp")


def cells() -> list[Any]:
    made = []
    for victim, moment, event, transport in itertools.product(VICTIMS, MOMENTS, EVENTS, TRANSPORTS):
        marks = () if SHORT[victim, moment] == (event, transport) else (pytest.mark.long,)
        made.append(pytest.param(victim, moment, event, transport, marks=marks))
    return made


class Cell:
    """Two workers, of which one goes."""

    def __init__(self, spawn: Callable[..., Worker], victim: str, event: str, transport: str) -> None:
        self.environment = LIMITS | TRANSPORTS[transport]
        self.side, self.kind = VICTIMS[victim]
        self.event, self.transport = event, transport
        self._spawn = spawn
        self.survivor = spawn(self.environment, loses_peers=True)
        self.serve_with_another()
        self.survivor.call(wait_in_vain)
        self.before, self.resident = held_by(self.survivor), self.survivor.resident
        self.victim = spawn(self.environment, loses_peers=True)
        self.victim.call(hold)
        is_owner = self.side == "owner"
        self.owner, self.active = (self.victim, self.survivor) if is_owner else (self.survivor, self.victim)

    def serve_with_another(self) -> None:
        """Have the survivor do its part with a peer that comes and goes in order."""
        other = self._spawn(self.environment)
        pair = (other, self.survivor) if self.side == "owner" else (self.survivor, other)
        endings.serve(*pair)
        other.finish()

    def expose(self, size: int, lease: float = LEASE) -> tuple[int, dict[str, Any]]:
        return self.owner.call(endings.expose, self.kind, size, lease=lease)

    def go(self, stopped: Worker | None = None) -> None:
        """What happens to the victim; from here on the survivor runs. One of them may be stopped already."""
        if self.event == "kill":
            self.victim.kill()
        elif self.event == "stop" and self.victim is not stopped:
            self.victim.pause()
        self.survivor.resume()
        if self.event == "exit":
            self.victim.leave()

    def end_of_exposure(self, number: int) -> End:
        """How the owner's operation ends, where it survives."""
        waiting = self.survivor.start(endings.ended, number)
        if self.event == "stop":
            # It may end before. Whatever a limit tells has been told by then.
            time.sleep(max(LEASE, STALL) + 0.5)
            self.victim.resume()
        return waiting.result()


def unused(cell: Cell) -> End:
    """The metadata was handed out, and nobody has begun. After SIGCONT it is used."""
    endings.serve(cell.owner, cell.active)
    number, metadata = cell.expose(70_000)
    cell.go()
    if cell.side == "active":
        end = cell.survivor.call(endings.ended, number)
        if cell.event == "stop":
            # What it has is worth nothing by now.
            cell.victim.resume()
            assert cell.victim.call(endings.attempt, metadata) == LEASE_EXPIRED
        return end
    if cell.event == "stop":
        cell.victim.resume()
    else:
        cell.victim.finish()
    return cell.survivor.call(endings.attempt, metadata)


def begin(cell: Cell) -> End:
    """The active side has never been connected to the owner, which stands still while it begins."""
    number, metadata = cell.expose(HUGE)
    cell.active.call(open_connector)
    cell.owner.pause()
    # One that goes keeps its operation: letting go of it would be a cancel.
    begun = cell.active.start(endings.begin if cell.side == "active" else endings.attempt, metadata)
    cell.active.call(endings.still, 0.3)
    cell.go(cell.owner)
    return cell.end_of_exposure(number) if cell.side == "active" else begun.result()


def transfer(cell: Cell) -> End:
    """The bytes are on their way; the active side is stopped in the middle of that."""
    exposed, begun = endings.catch(cell.owner, cell.active, cell.kind, lease=LEASE)
    cell.go(cell.active)
    return cell.end_of_exposure(exposed) if cell.side == "active" else cell.survivor.call(endings.ended, begun)


def unnotified(cell: Cell) -> End:
    """All bytes are where they belong, and the owner, which stands still, has not heard of it.

    Where the kernel copies, the owner is not needed for that: the key waits in shared memory, and the active side is
    done. Over TCP the owner is needed to the end, so one is taken of which only the last request is missing.
    """
    endings.serve(cell.owner, cell.active)
    if cell.transport == "default":
        exposed, metadata = cell.expose(endings.WARM)
        cell.owner.pause()
        end = cell.active.call(endings.attempt, metadata)
        assert end == DONE
        cell.go(cell.owner)
        return cell.end_of_exposure(exposed) if cell.side == "active" else end
    for _ in range(20):
        made = [cell.expose(256 << 10, lease=60.0) for _ in range(100)]
        begun = [cell.active.call(endings.begin, metadata) for _, metadata in made]
        cell.owner.pause()
        found = cell.active.call(nearly_done, begun)
        if found is not None:
            cell.go(cell.owner)
            exposed, _ = made[found]
            if cell.side == "active":
                return cell.end_of_exposure(exposed)
            return cell.survivor.call(endings.ended, begun[found])
        cell.owner.resume()
        for number in begun:
            assert cell.active.call(endings.ended, number) == DONE
        for worker in (cell.owner, cell.active):
            worker.call(roles.settled)
    raise AssertionError("no transfer could be caught at its end")


def idle(cell: Cell) -> None:
    """They know each other, and nothing is under way."""
    endings.serve(cell.owner, cell.active)
    cell.go()


@pytest.mark.parametrize(("victim", "moment", "event", "transport"), cells())
@again_where_ucx_aborts
def test_a_peer_that_goes(spawn, victim, moment, event, transport):
    cell = Cell(spawn, victim, event, transport)
    end = {"unused": unused, "begin": begin, "transfer": transfer, "unnotified": unnotified, "idle": idle}[moment](cell)
    expected = ENDS[cell.side, moment, event, transport]
    assert end in expected if expected else end is None, (end, expected)
    if event == "stop":
        # What it was at work on must stay mapped until it has ended, and `grace` is over.
        cell.victim.resume()
        cell.victim.call(roles.settled)
        # Both go on.
        endings.serve(cell.owner, cell.active)
        cell.victim.call(roles.settled)
    cell.victim.finish()
    cell.serve_with_another()
    cell.survivor.call(roles.settled)
    check_back_at_start(cell)


def check_back_at_start(cell: Cell) -> None:
    deadline = time.monotonic() + PATIENCE
    # Connections to those that are gone are closed a little later.
    while more := grown(cell.before, held_by(cell.survivor), besides=("peers",)):
        assert time.monotonic() < deadline, more
        time.sleep(0.05)
    assert cell.survivor.resident - cell.resident < 64 << 20


_held: list[Here] = []


async def hold(here):
    """Keep all operations to the end of the process, so that its exit finds them unfinished."""
    _held.append(here)


async def wait_in_vain(here):
    # A loop gets its eventfd when it first has to wait, which one whose peer is quick may not for a long time.
    operation = await here.connector.create_readable(Descriptor(bytes(1)))
    with operation, pytest.raises(TimeoutError):
        await operation.wait_for_completion(timeout=0.01)
    await settle(here.connector)


async def open_connector(here):
    await here.connector.warmup()


async def nearly_done(here, numbers):
    """Which of the kept operations has moved all of its bytes and has not ended; None if none has."""
    # What the owner had sent has come by then.
    await asyncio.sleep(0.3)
    for index, number in enumerate(numbers):
        native = here.kept[number][0]._native
        if native.bytes_done == native.bytes_total and not native.has_finished:
            return index
    return None
