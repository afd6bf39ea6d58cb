"""Reads what `cargo bench` has left behind."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, NamedTuple

import report
from plan import size_name

if TYPE_CHECKING:
    from pathlib import Path


class Estimate(NamedTuple):
    """One benchmark's median over its samples, in nanoseconds."""

    group: str
    series: str
    parameter: str
    median: float
    low: float
    high: float


def sections(directory: Path) -> dict[str, str]:
    """Make the tables of the Rust benchmarks, by name; those that have results."""
    estimates = _read(directory)
    between = [each for each in estimates if each.group.startswith(("latency", "throughput"))]
    wire = [each for each in estimates if each.group.startswith("wire")]
    made = {}
    if between:
        made["core"] = _core(between)
    if wire:
        made["wire"] = _wire(wire)
    return made


def _read(directory: Path) -> list[Estimate]:
    found = []
    for path in sorted(directory.glob("**/new/benchmark.json")):
        about = json.loads(path.read_text(encoding="utf-8"))
        values = json.loads(path.with_name("estimates.json").read_text(encoding="utf-8"))["median"]
        interval = values["confidence_interval"]
        found.append(
            Estimate(
                about["group_id"],
                about["function_id"] or "",
                about["value_str"] or "",
                values["point_estimate"],
                interval["lower_bound"],
                interval["upper_bound"],
            )
        )
    return found


def _core(estimates: list[Estimate]) -> str:
    by_key = {(each.group, int(each.parameter), each.series): each.median for each in estimates}
    rows = []
    for group, size in sorted({key[:2] for key in by_key}, key=lambda key: (key[0].split("_")[1], key[1])):
        raw, core, fresh = (by_key.get((group, size, series)) for series in ("raw", "core", "core_fresh"))
        rows.append(
            [
                group.split("_")[1],
                size_name(size),
                *(_time(value) for value in (raw, core, fresh)),
                f"+{(core - raw) / 1000:.1f} us" if raw and core and size < 1 << 24 else "",
                f"{raw / core:.2f} x" if raw and core else "",
                f"{size / core:.2f} GB/s" if core and size >= 1 << 24 else "",
            ]
        )
    return report.table(["", "size", "raw", "core", "core, fresh memory", "core - raw", "raw / core", "core"], rows)


def _wire(estimates: list[Estimate]) -> str:
    rows = []
    for each in estimates:
        what = " ".join(filter(None, (each.series, each.parameter))).replace("_", " ")
        interval = f"{_time(each.low)} to {_time(each.high)}"
        rows.append([each.group.removeprefix("wire_"), what, _time(each.median), interval])
    return report.table(["side", "what", "median", "95 % interval"], rows)


def _time(nanoseconds: float | None) -> str:
    return report.duration(None if nanoseconds is None else nanoseconds / 1000)
