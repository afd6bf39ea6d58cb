"""Reads what `cargo bench` has left behind."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, NamedTuple

import report
from dynamo_nixl.bench.cases import CADENCES, size_name

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

MIB = 1 << 20
_SMALLEST = str(4 << 10)
_LAYER_COLUMNS = [
    "raw",
    "transport",
    "core",
    "core, fresh memory",
    "transport - raw",
    "core - transport",
    "raw / core",
]


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
    made = {}
    for name, (groups, make) in _TABLES.items():
        chosen = [each for each in estimates if each.group.startswith(groups)]
        if chosen and (content := make(chosen)):
            made[name] = content
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
    rows = []
    for (direction, parameter), times in _by_case(estimates).items():
        rows.append([direction, size_name(int(parameter)), *_layers(times)])
    return report.table(["", "size", *_LAYER_COLUMNS], rows)


def _cadence(estimates: list[Estimate]) -> str:
    # Without a pause it is the smallest of those by size.
    hot = [each._replace(parameter="hot") for each in estimates if each.parameter == _SMALLEST]
    paused = [each for each in estimates if each.group.startswith("cadence")]
    if not paused:
        return ""
    rows = [
        [direction, cadence, *_layers(times)]
        for (direction, cadence), times in _by_case(hot + paused, list(CADENCES)).items()
    ]
    return report.table(["", "cadence", *_LAYER_COLUMNS], rows)


def _layers(times: dict[str, float]) -> list[str]:
    """Write the time of each layer, and what it adds to the one below."""
    raw, transport, core, fresh = (times.get(series) for series in ("raw", "transport", "core", "core_fresh"))
    return [
        *(_time(value) for value in (raw, transport, core, fresh)),
        _added(transport, raw),
        _added(core, transport),
        f"{raw / core:.2f} x" if raw and core else "",
    ]


def _added(upper: float | None, lower: float | None) -> str:
    return f"{(upper - lower) / 1000:+.1f} us" if upper and lower else ""


def _big(estimates: list[Estimate]) -> str:
    rows = []
    for (direction, parameter), times in _by_case(estimates).items():
        count, size = (int(part) for part in parameter.split("x")) if "x" in parameter else (1, int(parameter))
        if count * size < MIB:
            continue
        raw, core = times.get("raw"), times.get("core")
        rows.append(
            [
                direction,
                f"{count:,} x {size_name(size)}" if count > 1 else size_name(size),
                *(_time(value) for value in (raw, core)),
                f"{raw / core:.2f} x" if raw and core else "",
                *(f"{count * size / value:.2f}" if value else "" for value in (raw, core)),
            ]
        )
    columns = ["", "size", "raw", "core", "raw / core", "raw, GB/s", "core, GB/s"]
    return report.table(columns, rows) if rows else ""


def _many(estimates: list[Estimate]) -> str:
    cases = _by_case(estimates)
    raw = next((times["raw"] for times in cases.values() if "raw" in times), None)
    rows = []
    for (_, window), times in cases.items():
        core = times.get("core")
        rows.append(
            [
                window,
                _time(times.get("raw")),
                _time(core),
                f"{core / raw:.1f} x" if raw and core else "",
                f"{1e9 / core:,.0f}" if core else "",
            ]
        )
    return report.table(["at once", "raw, each", "core, each", "of one raw request", "core, a second"], rows)


def _registry(estimates: list[Estimate]) -> str:
    counts = sorted({int(each.parameter) for each in estimates})
    times = {(each.group, each.series, int(each.parameter)): each.median for each in estimates}
    rows = [
        [
            group.removeprefix("registry_"),
            series.replace("_", " "),
            *(_time(times.get((group, series, n))) for n in counts),
        ]
        for group, series in dict.fromkeys((each.group, each.series) for each in estimates)
    ]
    return report.table(["of", "what", *(f"{count:,} known" for count in counts)], rows)


def _dispatch(estimates: list[Estimate]) -> str:
    return _list("", "dispatch_", estimates)


def _by_case(estimates: list[Estimate], order: Sequence[str] = ()) -> dict[tuple[str, str], dict[str, float]]:
    """Give the median of each series, by direction and parameter: in this order, or from small to big."""
    cases: dict[tuple[str, str], dict[str, float]] = {}
    for each in estimates:
        direction = each.group.rpartition("_")[2]
        cases.setdefault((direction, each.parameter), {})[each.series] = each.median

    def place(case: tuple[str, str]) -> tuple[str, int]:
        direction, parameter = case
        return direction, order.index(parameter) if order else math.prod(int(part) for part in parameter.split("x"))

    return dict(sorted(cases.items(), key=lambda item: place(item[0])))


def _wire(estimates: list[Estimate]) -> str:
    return _list("side", "wire_", estimates)


def _list(title: str, prefix: str, estimates: list[Estimate]) -> str:
    rows = []
    for each in estimates:
        what = " ".join(filter(None, (each.series, each.parameter))).replace("_", " ")
        interval = f"{_time(each.low)} to {_time(each.high)}"
        rows.append([each.group.removeprefix(prefix), what, _time(each.median), interval])
    return report.table([title, "what", "median", "95 % interval"], rows)


def _time(nanoseconds: float | None) -> str:
    if nanoseconds is not None and nanoseconds < 1000:
        return f"{nanoseconds:.3g} ns"
    return report.duration(None if nanoseconds is None else nanoseconds / 1000)


_TABLES: dict[str, tuple[tuple[str, ...], Callable[[list[Estimate]], str]]] = {
    "core": (("latency",), _core),
    "cadence": (("cadence", "latency"), _cadence),
    "many": (("many",), _many),
    "big": (("latency", "throughput", "scattered"), _big),
    "wire": (("wire",), _wire),
    "registry": (("registry",), _registry),
    "dispatch": (("dispatch",), _dispatch),
}
"""Each table by its name, with what the groups that it shows begin with."""
