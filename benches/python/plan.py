"""What is measured: the cases, and what came out of one."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from statistics import median, quantiles
from typing import Any

KIB = 1 << 10
MIB = 1 << 20

DEFAULT_SIZES = (4 * KIB, 64 * KIB, MIB, 256 * MIB)
DEFAULT_CADENCES = (0.0, 2.0)
DEFAULT_IMPLEMENTATIONS = ("ours", "raw", "upstream")

ARENA_BYTES = 256 * MIB
"""The memory of either side; a case's ranges are cut out of it."""


@dataclass(frozen=True)
class Case:
    """One size at one cadence."""

    size: int
    gap_ms: float
    """The pause between the end of one transfer and the begin of the next; 0 is back to back."""
    iterations: int
    warm_up: int
    """Transfers before those that count: they connect, and wake the processors up."""
    batch: int
    """How many exposures the owner holds at a time, made before the clock starts."""

    def to_json(self) -> dict[str, Any]:
        """Make plain data that `Case(**data)` takes."""
        return asdict(self)


def cases(sizes: list[int], gaps_ms: list[float], iterations: int | None) -> list[Case]:
    """Make a run's cases. Without a number of iterations each size gets its own: big ones take their time."""
    made = []
    for size in sizes:
        count = iterations or (300 if size <= 64 * KIB else 150 if size <= 16 * MIB else 12)
        # Upstream's metadata grows with what is registered at the time, so the batches stay small.
        batch = min(25, count, max(1, ARENA_BYTES // size))
        warm_up = min(25, count)
        made += [Case(size, gap, count, warm_up, batch) for gap in gaps_ms]
    return made


def summary(microseconds: list[float]) -> dict[str, float]:
    """Describe one side's times."""
    ordered = sorted(microseconds)
    deciles = quantiles(ordered, n=10, method="inclusive") if len(ordered) > 1 else ordered * 9
    return {"median": median(ordered), "p10": deciles[0], "p90": deciles[8], "least": ordered[0], "most": ordered[-1]}


def parse_size(text: str) -> int:
    """Read a size such as 4KiB, 64k, 1MiB, 256m or 4096."""
    lowered = text.lower().removesuffix("ib").removesuffix("b")
    factors = {"k": KIB, "m": MIB, "g": 1 << 30}
    factor = factors.get(lowered[-1:], 1)
    return int(lowered.rstrip("kmg")) * factor


def size_name(size: int) -> str:
    """Write a size the way people do."""
    for factor, unit in ((1 << 30, "GiB"), (MIB, "MiB"), (KIB, "KiB")):
        if size >= factor and size % factor == 0:
            return f"{size // factor} {unit}"
    return f"{size} B"
