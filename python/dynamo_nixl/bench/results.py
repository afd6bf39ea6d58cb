"""What came out of a run, and what follows from it."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from statistics import median
from typing import Any

from . import machine
from .peer.case import Case

FORMAT = 2

Shape = tuple[int, float, int, int, bool]
"""What tells cases apart: bytes, pause, tasks, blocks, huge pages."""


def shape_of(case: Case) -> Shape:
    """Tell a case from others, whatever its number of iterations."""
    return case.size, case.gap_us, case.tasks, case.blocks, case.huge


@dataclass(slots=True)
class Results:
    """All measurements of a run; the verdict on a case is the median of its runs' medians."""

    runs: int
    versions: dict[str, dict[str, str]] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)
    """Who was to be measured and is not here, and why."""
    started: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    load_before: float = field(default_factory=machine.load)

    def add(self, run: int, implementation: str, case: Case, measured: dict[str, Any]) -> None:
        """Take one measurement in."""
        self.rows.append({"run": run, "implementation": implementation, **case.to_json(), **measured})

    def take_over(self, other: Results) -> None:
        """Take in what another run has measured."""
        self.rows += other.rows
        self.versions |= other.versions
        self.missing |= other.missing

    @property
    def implementations(self) -> list[str]:
        """Who was measured, in order."""
        return list(dict.fromkeys(row["implementation"] for row in self.rows))

    @property
    def shapes(self) -> list[Shape]:
        """The cases, in order."""
        return list(dict.fromkeys(_shape(row) for row in self.rows))

    def time(self, implementation: str, shape: Shape, side: str = "reader", what: str = "median") -> float | None:
        """Microseconds of a transfer, as one side sees it."""
        times = [row[side][what] for row in self._rows_of(implementation, shape) if row.get(side)]
        return median(times) if times else None

    def per_second(self, implementation: str, shape: Shape) -> float | None:
        """Transfers in a second, over all tasks."""
        rates = [row["per_second"] for row in self._rows_of(implementation, shape)]
        return median(rates) if rates else None

    def gigabytes_per_second(self, implementation: str, shape: Shape) -> float | None:
        """At the median time of a transfer; a gigabyte is 10**9 bytes."""
        time = self.time(implementation, shape)
        return shape[0] / time / 1000 if time else None

    def layers(self, shape: Shape) -> list[tuple[str, float]]:
        """What each layer adds to the one below it, in microseconds.

        Differences of medians that were measured one after the other: on a machine with other things to do they may
        come out below zero.
        """
        ucx = self.time("ucx", shape)
        # The one in Rust has the transport that ours has, and nothing of Python in between.
        rust = self.time("raw-rust", shape)
        nixl = rust or self.time("raw", shape)
        name = "NIXL" if rust else "NIXL in Python"
        steps = [
            ("memcpy", self.time("memcpy", shape)),
            ("UCX", ucx),
            (f"{name}, UCX" if ucx is None else name, nixl),
            ("reader", self.time("ours", shape)),
            ("owner awake", self.time("ours", shape, "owner")),
        ]
        layers = []
        below = 0.0
        for name, time in steps:
            if time is not None:
                layers.append((name, time - below))
                below = time
        return layers

    def to_json(self) -> dict[str, Any]:
        """Make plain data."""
        return {
            "format": FORMAT,
            "ok": True,
            "started": self.started,
            "runs": self.runs,
            "machine": machine.describe(),
            "load_before": self.load_before,
            "versions": self.versions,
            "missing": self.missing,
            "rows": self.rows,
        }

    def _rows_of(self, implementation: str, shape: Shape) -> list[dict[str, Any]]:
        return [row for row in self.rows if row["implementation"] == implementation and _shape(row) == shape]


def _shape(row: dict[str, Any]) -> Shape:
    return row["size"], row["gap_us"], row["tasks"], row["blocks"], row["huge"]
