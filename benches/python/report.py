"""Turns results into the tables of `docs/performance.md`.

`report.py [RESULTS]` prints them; with `--update docs/performance.md` each replaces what stands between its two marks
in that file. Criterion's results are taken from its own folder, if there are any.
"""

from __future__ import annotations

import argparse
import json
import os
import re
from pathlib import Path
from statistics import median
from typing import Any

import criterion
import targets
from dynamo_nixl.bench.cases import cadence_name, size_name
from dynamo_nixl.bench.tables import duration

RESULTS = Path("target/bench/python.json")
SIDES = ("reader", "owner")
KIB, MIB = 1 << 10, 1 << 20
QUIET_US = 1e6
"""A pause that is no cadence, but lets an owner forget its reader."""


def python_sections(
    results: dict[str, Any], loop: dict[str, Any] | None = None, soak: dict[str, Any] | None = None
) -> dict[str, str]:
    """Make the tables that the Python benchmarks give, by name."""
    sections = {
        "machine": _machine(results),
        "targets": _targets(results, loop, soak),
        "transfers": _transfers(results),
    }
    if loop is not None:
        sections["loop"] = _loop(loop)
    if results["rows"]:
        sections["runs"] = _runs(results)
    if results.get("exposures"):
        sections["exposures"] = _exposures(results["exposures"])
    if "local" in results:
        sections["local"] = _local(results["local"])
    return sections


def _machine(results: dict[str, Any]) -> str:
    facts = results["machine"]
    rows = [
        ["processors", f"{facts['cores']} cores, {facts['cpu']}{', virtual' if facts['is_virtual'] else ''}"],
        ["memory", f"{facts['memory_gib']} GiB"],
        ["kernel", f"Linux {facts['kernel']}"],
        ["transports", f"`UCX_TLS` {facts['ucx_tls']}"],
        ["measured", f"{results['started']}, {results['runs']} runs, load average before {results['load_before']}"],
    ]
    for implementation, versions in results["versions"].items():
        rows.append([implementation, ", ".join(f"{name} {number}" for name, number in versions.items())])
    return table(["", ""], rows)


def _targets(results: dict[str, Any], loop: dict[str, Any] | None, soak: dict[str, Any] | None) -> str:
    found = [*targets.transfer_targets(results)]
    if loop is not None:
        found += targets.loop_targets(loop, results)
    found += targets.other_targets(results, soak)
    rows = [target.cells() for target in found] + _exposing_targets(results.get("exposures", []))
    return table(["what", "target", "measured", "upstream", "met"], rows)


def _transfers(results: dict[str, Any]) -> str:
    measured = targets.Measured(results)
    alone = [row for row in results["rows"] if row["tasks"] == row["blocks"] == 1 and row["gap_us"] < QUIET_US]
    keys = sorted({(row["size"], row["huge"], row["gap_us"]) for row in alone})
    readers = [name for name in ("ours", "raw-rust", "raw", "upstream") if name in results["versions"]]
    owners = [name for name in ("ours", "upstream") if name in results["versions"]]
    columns = [*((name, "reader") for name in readers), *((name, "owner") for name in owners)]
    rows = []
    for size, huge, gap in keys:
        times = (measured.time(name, size, gap, side, huge=huge) for name, side in columns)
        rows.append([size_name(size) + (", huge pages" if huge else ""), cadence_name(gap), *map(duration, times)])
    return table(["size", "cadence", *(f"{side}, {name}" for name, side in columns)], rows)


def _runs(results: dict[str, Any]) -> str:
    rows = []
    for row in sorted(results["rows"], key=lambda row: (row["size"], row["gap_us"], row["implementation"], row["run"])):
        size = size_name(row["size"])
        size += f", {row['tasks']} tasks" if row["tasks"] > 1 else ""
        size += f", {row['blocks']} blocks" if row["blocks"] > 1 else ""
        size += ", huge pages" if row["huge"] else ""
        cells = [size, cadence_name(row["gap_us"]), row["implementation"], str(row["run"])]
        for side in SIDES:
            cells += [f"{row[side][what]:.0f}" if row.get(side) else "-" for what in ("p10", "median", "p90")]
        rows.append(cells)
    columns = [f"{side} {what}, us" for side in SIDES for what in ("p10", "median", "p90")]
    return table(["size", "cadence", "", "run", *columns], rows)


def _exposing(rows: list[dict[str, Any]], implementation: str, gap_us: float, what: str) -> float | None:
    """Give the median of the runs' medians, in microseconds."""
    medians = [
        times[what]["median"]
        for row in rows
        if row["implementation"] == implementation
        for times in row["times"]
        if times["gap_us"] == gap_us
    ]
    return median(medians) if medians else None


def _exposing_gaps(rows: list[dict[str, Any]]) -> list[float]:
    return sorted({times["gap_us"] for row in rows for times in row["times"]})


def _exposing_targets(rows: list[dict[str, Any]]) -> list[list[str]]:
    targets = []
    for gap in _exposing_gaps(rows):
        ours = _exposing(rows, "ours", gap, "both")
        if ours is not None:
            what = f"`create_readable` and `metadata()`, registered, {cadence_name(gap)}"
            upstreams = duration(_exposing(rows, "upstream", gap, "both"))
            targets.append([what, "under 60 us", duration(ours), upstreams, met(ours < 60)])
    return targets


def _exposures(rows: list[dict[str, Any]]) -> str:
    lines = []
    for gap in _exposing_gaps(rows):
        for what, name in (("create", "`create_readable`"), ("metadata", "`metadata()`"), ("both", "both")):
            times = [duration(_exposing(rows, each, gap, what)) for each in ("ours", "upstream")]
            lines.append([f"{name}, registered descriptor, {cadence_name(gap)}", *times])
    for count in next(iter(rows))["lengths"]:
        lengths = {row["implementation"]: row["lengths"][count] for row in rows}
        name = f"characters of `nixl_metadata`, {int(count):,} registrations"
        lines.append([name, *(f"{lengths[each]:,}" if each in lengths else "-" for each in ("ours", "upstream"))])
    return table(["what", "ours", "upstream"], lines)


def _loop(loop: dict[str, Any]) -> str:
    """Make the table of what an event loop feels; each figure is the median of the runs."""
    whats = [
        ("making the first connector: longest callback", ("creation", "first_held")),
        ("making another one: longest callback", ("creation", "held", "most")),
        ("first contact, 4 KiB: longest callback", ("first_contact", "held", "most")),
        ("first contact, 4 KiB: until it is there", ("first_contact", "took", "median")),
        *(
            (f"`begin_read` of {size}, {cadence}: on the loop's thread", ("begin", index, "held", "median"))
            for index, (size, cadence) in enumerate(
                (size, cadence) for size in ("1 MiB", "64 MiB") for cadence in ("hot", "cold")
            )
        ),
        ("a ticker of 1 ms, nothing under way: late, 99 %", ("lag", "idle", "p99")),
        ("the same, four transfers of 256 MiB: late, 99 %", ("lag", "busy", "p99")),
        ("four transfers of 256 MiB: longest callback, median of ten rounds", ("lag", "held", "median")),
        ("four transfers of 256 MiB: longest callback", ("lag", "held", "most")),
        ("4 KiB every millisecond: median", ("small_among_big", "alone", "median")),
        ("4 KiB every millisecond: 99 %", ("small_among_big", "alone", "p99")),
        ("the same, 1 GiB under way from the same peer: median", ("small_among_big", "among", "median")),
        ("the same, 1 GiB under way from the same peer: 99 %", ("small_among_big", "among", "p99")),
        ("a bare eventfd's wake, warm", ("bare_wakes", 0, "wake", "median")),
        ("a bare eventfd's wake, cold", ("bare_wakes", 1, "wake", "median")),
    ]
    rows = []
    for what, path in whats:
        values = []
        for run in loop["runs"]:
            value: Any = run
            for key in path:
                value = value[key]
            values.append(value)
        rows.append([what, duration(median(values)), f"{duration(min(values))} to {duration(max(values))}"])
    return table(["what", "median of the runs", "runs"], rows)


def _local(local: dict[str, Any]) -> str:
    imported = local["import"]
    rows = [
        [
            f"import, after pydantic and asyncio, {imported['interpreters']} fresh interpreters",
            f"{imported['median_ms']:.1f} ms ({imported['least_ms']:.1f} to {imported['most_ms']:.1f})",
        ]
    ]
    for each in local["create"]:
        rows.append([f"`create_readable`, {size_name(each['size'])}", duration(each["create"]["median"])])
        rows.append([f"`metadata()`, {size_name(each['size'])}", duration(each["metadata"]["median"])])
    idle = local["idle"]
    rows += [
        ["idle, 1 000 passive operations, after 1 s of quiet", f"{idle['exposed']:.2f} % of a core"],
        ["idle, nothing pending, two agents, one with a peer, one with a range", f"{idle['attached']:.2f} % of a core"],
        ["idle, nothing pending, one agent with neither", f"{idle['detached']:.2f} % of a core"],
    ]
    return table(["what", "median"], rows)


def table(columns: list[str], rows: list[list[str]]) -> str:
    """Write a markdown table that is readable as it stands."""
    widths = [max(len(row[index]) for row in [columns, *rows]) for index in range(len(columns))]
    lines = [columns, ["-" * width for width in widths], *rows]
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    )


def endings_section(results: dict[str, Any]) -> str:
    """Make the table of how soon one side learns that the other has ended their operation."""
    names = {
        "cancel": "`cancel()`",
        "deadline": "its `timeout` passes",
        "close": "`Connector.close()`",
        "kill": "SIGKILL",
        "lease": "the `lease` passes, and nobody has come",
    }
    rows = [
        [
            row["transports"],
            row["by"],
            names[row["event"]],
            f"{row['median']:.2f} ms",
            f"{row['worst']:.2f} ms",
            str(row["rounds"]),
        ]
        for row in results["rows"]
    ]
    columns = ["`UCX_TLS`", "ended by the", "how", "the other side knows after", "worst", "rounds"]
    # Whoever reads the table can make it again.
    command = f"`benches/python/endings.py --rounds {results['rows'][0]['rounds']}`"
    return f"{table(columns, rows)}\n\nMeasured by {command}, load average before {results['load']}."


def met(is_met: bool) -> str:
    """Write a verdict."""
    return "yes" if is_met else "**no**"


def update(document: Path, sections: dict[str, str]) -> None:
    """Replace what stands between `<!-- begin NAME -->` and `<!-- end NAME -->`."""
    text = document.read_text(encoding="utf-8")
    for name, content in sections.items():
        pattern = re.compile(f"(<!-- begin {name} -->\n).*?(<!-- end {name} -->)", re.DOTALL)
        text, count = pattern.subn(lambda match, content=content: f"{match[1]}\n{content}\n\n{match[2]}", text)
        if count != 1:
            raise SystemExit(f"{document} has no place for the table: {name}")
    document.write_text(text, encoding="utf-8")


def _load(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def main() -> None:
    """Print the tables, or put them where they belong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="?", default=RESULTS, help=f"default: {RESULTS}")
    parser.add_argument("--update", type=Path, metavar="DOCUMENT")
    target = Path(os.environ.get("CARGO_TARGET_DIR", "target"))
    parser.add_argument("--criterion", type=Path, default=target / "criterion", help=f"default: {target / 'criterion'}")
    arguments = parser.parse_args()
    sections = {}
    if (results := _load(arguments.results)) is not None:
        others = (_load(arguments.results.with_name(f"{name}.json")) for name in ("loop", "soak"))
        sections |= python_sections(results, *others)
    if (tcp := _load(arguments.results.with_name("tcp.json"))) is not None:
        sections["tcp"] = _transfers(tcp)
    if (endings := _load(arguments.results.with_name("endings.json"))) is not None:
        sections["endings"] = endings_section(endings)
    if arguments.criterion.is_dir():
        sections |= criterion.sections(arguments.criterion)
    if not sections:
        raise SystemExit("there are no results: run `make bench` and `make bench-python` first")
    if arguments.update:
        update(arguments.update, sections)
        return
    for name, content in sections.items():
        print(f"{name}\n\n{content}\n")


if __name__ == "__main__":
    main()
