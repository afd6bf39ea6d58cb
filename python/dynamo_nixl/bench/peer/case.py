"""What is measured: one size at one cadence."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from statistics import median, quantiles
from typing import Any

MIB = 1 << 20

ARENA_BYTES = 256 * MIB
"""The memory of either side, or that of one transfer where it is bigger; a case's ranges are cut out of it."""


@dataclass(frozen=True)
class Case:
    """One size at one cadence."""

    size: int
    """Bytes of a transfer."""
    gap_us: float
    """The pause of a task between the end of a transfer and the begin of its next; 0 is back to back."""
    iterations: int
    """Transfers that count, over all tasks."""
    warm_up: int
    """Transfers before those that count: they connect, and wake the processors up."""
    tasks: int = 1
    """How many of the reader's tasks transfer at the same time."""
    blocks: int = 1
    """Ranges of one transfer, of equal size and not next to each other."""
    huge: bool = False
    """Whether the memory has huge pages, which the kernel copies about twice as fast. Few allocators ask for them."""

    @property
    def batch(self) -> int:
        """How many exposures the owner holds at a time, made before the clock starts."""
        # Upstream's metadata grows with what is registered at the time, so the batches stay small.
        most = max(1, ARENA_BYTES // self.size)
        return max(self.tasks, min(max(25, 4 * self.tasks), self.iterations, most))

    @property
    def shape(self) -> tuple[int, int, bool]:
        """What takes memory of its own."""
        return self.size, self.blocks, self.huge

    def to_json(self) -> dict[str, Any]:
        """Make plain data that `Case(**data)` takes."""
        return asdict(self)


def summary(microseconds: list[float]) -> dict[str, float]:
    """Describe one side's times."""
    ordered = sorted(microseconds)
    hundredths = quantiles(ordered, n=100, method="inclusive") if len(ordered) > 1 else ordered * 99
    return {
        "median": median(ordered),
        "p10": hundredths[9],
        "p90": hundredths[89],
        "p99": hundredths[98],
        "least": ordered[0],
        "most": ordered[-1],
    }
