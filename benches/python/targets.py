"""The table of what was aimed at, and what was measured."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

from dynamo_nixl.bench.cases import CADENCES, cadence_name, size_name
from dynamo_nixl.bench.tables import duration

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
SCATTERED = 16_384


@dataclass(frozen=True)
class Target:
    """One line. What was not measured is None."""

    what: str
    target: str
    measured: str | None
    upstream: str
    is_met: bool

    def cells(self) -> list[str]:
        """Write it."""
        verdict = "yes" if self.is_met else "**no**"
        return [self.what, self.target, self.measured or "-", self.upstream, verdict if self.measured else "-"]


class Measured:
    """The median of the runs' medians."""

    def __init__(self, results: dict[str, Any]) -> None:
        self._rows = results["rows"]

    def time(
        self, name: str, size: int, gap_us: float, side: str = "reader", *, blocks: int = 1, huge: bool = False
    ) -> float | None:
        """Microseconds of a transfer."""
        rows = self._of(name, size, gap_us, 1, blocks, huge=huge)
        medians = [row[side]["median"] for row in rows if row.get(side)]
        return median(medians) if medians else None

    def rate(self, name: str, size: int, gap_us: float, tasks: int = 1) -> float | None:
        """Transfers in a second."""
        rates = [row["per_second"] for row in self._of(name, size, gap_us, tasks, 1, huge=False)]
        return median(rates) if rates else None

    def _of(self, name: str, size: int, gap_us: float, tasks: int, blocks: int, *, huge: bool) -> list[dict[str, Any]]:
        wanted = (name, size, gap_us, tasks, blocks, huge)
        keys = ("implementation", "size", "gap_us", "tasks", "blocks", "huge")
        return [row for row in self._rows if tuple(row[key] for key in keys) == wanted]


def transfer_targets(results: dict[str, Any]) -> Iterator[Target]:
    """Give those of the transfers between two processes."""
    measured = Measured(results)
    hot, warm, cold = (CADENCES[name] for name in ("hot", "warm", "cold"))
    for size in (8, 4 * KIB, 64 * KIB):
        for gap, added in ((hot, 15.0), (cold, 30.0)):
            ours, raw, upstream = (measured.time(name, size, gap) for name in ("ours", "raw-rust", "upstream"))
            what = f"{size_name(size)}, reader, {cadence_name(gap)}"
            target = f"NIXL in Rust + {added:.0f} us"
            if ours is None or raw is None:
                yield Target(what, target, None, "-", is_met=False)
            else:
                target += f": {duration(raw + added)}"
                yield Target(what, target, duration(ours), duration(upstream), ours <= raw + added)
    for gap in (hot, warm, cold):
        ours, raw = (measured.time(name, 4 * KIB, gap) for name in ("foreign", "raw-foreign"))
        if ours is not None and raw is not None:
            what = f"4 KiB, reader, owner of upstream's, {cadence_name(gap)}, against NIXL's Python bindings with it"
            yield Target(what, "1.3 x", f"{ours / raw:.2f} x", "-", ours <= 1.3 * raw)
    for gap, limit in ((warm, 150.0), (cold, 200.0)):
        ours, upstream = (measured.time(name, 4 * KIB, gap, "owner") for name in ("ours", "upstream"))
        what = f"4 KiB, the owner's wait, {cadence_name(gap)}"
        yield from _below(what, limit, ours, upstream)
    yield from _below(
        "4 KiB, the owner's wait, after 1.2 s of quiet", 2000.0, measured.time("ours", 4 * KIB, 1.2e6, "owner")
    )
    for size in (MIB, 16 * MIB, 64 * MIB, 256 * MIB, GIB):
        least = 1.5 if size >= 64 * MIB else 0.9
        for gap in (hot, cold):
            ours, raw, upstream = (measured.time(name, size, gap) for name in ("ours", "raw-rust", "upstream"))
            what = f"{size_name(size)}, {cadence_name(gap)}, against one request of NIXL's"
            if ours is None or raw is None:
                yield Target(what, f"{least} x", None, "-", is_met=False)
            else:
                others = f"{raw / upstream:.2f} x" if upstream else "-"
                yield Target(what, f"{least} x", f"{raw / ours:.2f} x", others, raw / ours >= least)
    ours, raw = (measured.time(name, 128 * MIB, hot, blocks=SCATTERED) for name in ("ours", "raw-rust"))
    if ours is not None and raw is not None:
        what = f"{SCATTERED:,} blocks of 8 KiB, against one request of NIXL's"
        yield Target(what, "1.3 x", f"{raw / ours:.2f} x", "-", raw / ours >= 1.3)
    rate, one, others = (
        measured.rate("ours", 4 * KIB, hot, 64),
        measured.rate("raw-rust", 4 * KIB, hot),
        measured.rate("upstream", 4 * KIB, hot, 64),
    )
    if rate is not None and one is not None:
        what = "64 tasks, 4 KiB, transfers a second, against a loop in Rust with one read at a time"
        yield Target(what, "0.3 x", f"{rate / one:.2f} x ({rate:,.0f})", "-", rate / one >= 0.3)
    if rate is not None and others is not None:
        what = "64 tasks, 4 KiB, transfers a second, against upstream with 64 tasks"
        yield Target(what, "10 x", f"{rate / others:.0f} x", f"{others:,.0f}", rate / others >= 10)


def loop_targets(loop: dict[str, Any], results: dict[str, Any]) -> Iterator[Target]:
    """Give those of what the event loop feels."""
    measured = Measured(results)

    def over_runs(pick: Callable[[dict[str, Any]], float]) -> float:
        return median(pick(run) for run in loop["runs"])

    for index, cadence in enumerate(("warm", "cold")):
        told = measured.time("ours", 4 * KIB, CADENCES[cadence], "told")
        if told is not None:
            bare = over_runs(lambda run, index=index: run["bare_wakes"][index]["wake"]["median"])  # type: ignore[misc]
            what = f"4 KiB, the owner's wait, from the reader's end, {cadence}, above a bare eventfd's {duration(bare)}"
            yield Target(what, "at most 60 us", duration(told - bare), "-", told - bare <= 60)
    for index, (what, limit) in enumerate((("hot", 15.0), ("cold", 40.0))):
        held = over_runs(lambda run, index=index: run["begin"][index]["held"]["median"])  # type: ignore[misc]
        yield from _below(f"1 MiB, `begin_read` alone, on the loop's thread, {what}", limit, held)
    held = over_runs(lambda run: run["first_contact"]["held"]["most"])
    took = over_runs(lambda run: run["first_contact"]["took"]["median"])
    yield from _below(f"first contact, 4 KiB ({duration(took)}): the longest callback", 2000.0, held)
    yield from _below(
        "making a connector: the longest callback", 2000.0, over_runs(lambda run: run["creation"]["first_held"])
    )
    yield from _below(
        "four transfers of 256 MiB: a ticker's lateness, 99 %", 2000.0, over_runs(lambda run: run["lag"]["busy"]["p99"])
    )
    what = "four transfers of 256 MiB: the longest callback"
    yield from _below(what, 200.0, over_runs(lambda run: run["lag"]["held"]["most"]))
    among = over_runs(lambda run: run["small_among_big"]["among"]["p99"])
    yield from _below("4 KiB in the middle of 1 GiB from the same peer, 99 %", 1000.0, among)


def other_targets(results: dict[str, Any], soak: dict[str, Any] | None) -> Iterator[Target]:
    """Give those of one process by itself, and of a million operations."""
    if "local" in results:
        idle, imported = results["local"]["idle"], results["local"]["import"]["median_ms"]
        for what, limit, value in (
            ("1 000 passive operations, after 1 s of quiet", 2.0, idle["exposed"]),
            ("nothing pending, two agents, one with a peer", 0.2, idle["attached"]),
        ):
            yield Target(what, f"{limit} % of a core", f"{value:.2f} %", "100 %", value <= limit)
        yield Target("import, after pydantic and asyncio", "under 20 ms", f"{imported:.1f} ms", "-", imported < 20)
    if soak is not None:
        before, after = soak["before"], soak["after"]
        grown = max(after[side]["RSS, KiB"] - before[side]["RSS, KiB"] for side in after)
        same = all(
            after[side][what] <= before[side][what] for side in after for what in after[side] if what != "RSS, KiB"
        )
        what = f"{soak['last']:,} operations against {soak['first']:,}: RSS; descriptors, threads, registrations"
        shown = f"{grown / 1024:+.2f} MiB; {'no more' if same else '**more**'}"
        yield Target(what, "within 2 MiB; no more", shown, "grows", same and grown <= 2048)


def _below(what: str, limit: float, measured: float | None, upstream: float | None = None) -> Iterator[Target]:
    if measured is not None:
        yield Target(what, duration(limit), duration(measured), duration(upstream), measured <= limit)
