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
from plan import KIB, MIB, size_name

RESULTS = Path("target/bench/python.json")
SIDES = ("reader", "owner")


def python_sections(results: dict[str, Any]) -> dict[str, str]:
    """Make the tables that the Python benchmarks give, by name."""
    sections = {"machine": _machine(results), "targets": _targets(results), "transfers": _transfers(results)}
    if results["transfers"]:
        sections["runs"] = _runs(results)
    if results.get("exposures"):
        sections["exposures"] = _exposures(results["exposures"])
    if "local" in results:
        sections["local"] = _local(results["local"])
    return sections


def verdict(results: dict[str, Any], implementation: str, size: int, gap_ms: float, side: str) -> float | None:
    """Give the median of the runs' medians, in microseconds."""
    medians = [
        row[side]["median"]
        for row in results["transfers"]
        if (row["implementation"], row["size"], row["gap_ms"]) == (implementation, size, gap_ms)
    ]
    return median(medians) if medians else None


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


def _targets(results: dict[str, Any]) -> str:
    gaps = sorted({row["gap_ms"] for row in results["transfers"]})
    rows = [row for side in SIDES for gap in gaps if (row := _small(results, side, gap))]
    rows += [row for gap in gaps if (row := _big(results, gap))]
    rows += _exposing_targets(results.get("exposures", []))
    if "local" in results:
        milliseconds, percent = results["local"]["import"]["median_ms"], results["local"]["idle"]["exposed"]
        rows += [
            [
                "import, after pydantic and asyncio",
                "under 20 ms",
                f"{milliseconds:.1f} ms",
                "-",
                met(milliseconds < 20),
            ],
            [
                "1 000 passive operations, after 1 s of quiet",
                "2 % of a core",
                f"{percent:.2f} %",
                "-",
                met(percent <= 2),
            ],
        ]
    return table(["what", "target", "measured", "upstream", "met"], rows)


def _small(results: dict[str, Any], side: str, gap_ms: float) -> list[str] | None:
    ours, upstream = (verdict(results, name, 4 * KIB, gap_ms, side) for name in ("ours", "upstream"))
    if ours is None:
        return None
    what = f"4 KiB, {side}, {_cadence(gap_ms)}"
    return [what, "under 0.5 ms", duration(ours), duration(upstream), met(ours < 500)]


def _big(results: dict[str, Any], gap_ms: float) -> list[str] | None:
    ours, raw, upstream = (verdict(results, name, 256 * MIB, gap_ms, "reader") for name in ("ours", "raw", "upstream"))
    if ours is None or raw is None:
        return None
    others = f"{raw / upstream:.2f} x" if upstream else "-"
    what = f"256 MiB, {_cadence(gap_ms)}, against one raw request"
    return [what, "0.9 x", f"{raw / ours:.2f} x", others, met(raw / ours >= 0.9)]


def _transfers(results: dict[str, Any]) -> str:
    keys = sorted({(row["size"], row["gap_ms"]) for row in results["transfers"]})
    names = [name for name in ("ours", "raw", "upstream") if name in results["versions"]]
    rows = []
    for size, gap in keys:
        row = [size_name(size), _cadence(gap)]
        for side in SIDES:
            row += [duration(verdict(results, name, size, gap, side)) for name in names]
        rows.append(row)
    return table(["size", "cadence", *(f"{side}, {name}" for side in SIDES for name in names)], rows)


def _runs(results: dict[str, Any]) -> str:
    rows = []
    for row in sorted(
        results["transfers"], key=lambda row: (row["size"], row["gap_ms"], row["implementation"], row["run"])
    ):
        cells = [size_name(row["size"]), _cadence(row["gap_ms"]), row["implementation"], str(row["run"])]
        for side in SIDES:
            cells += [f"{row[side][what]:.0f}" for what in ("p10", "median", "p90")]
        rows.append(cells)
    columns = [f"{side} {what}, us" for side in SIDES for what in ("p10", "median", "p90")]
    return table(["size", "cadence", "", "run", *columns], rows)


def _exposing(rows: list[dict[str, Any]], implementation: str, gap_ms: float, what: str) -> float | None:
    """Give the median of the runs' medians, in microseconds."""
    medians = [
        times[what]["median"]
        for row in rows
        if row["implementation"] == implementation
        for times in row["times"]
        if times["gap_ms"] == gap_ms
    ]
    return median(medians) if medians else None


def _exposing_gaps(rows: list[dict[str, Any]]) -> list[float]:
    return sorted({times["gap_ms"] for row in rows for times in row["times"]})


def _exposing_targets(rows: list[dict[str, Any]]) -> list[list[str]]:
    targets = []
    for gap in _exposing_gaps(rows):
        ours = _exposing(rows, "ours", gap, "both")
        if ours is not None:
            what = f"`create_readable` and `metadata()`, registered, {_cadence(gap)}"
            upstreams = duration(_exposing(rows, "upstream", gap, "both"))
            targets.append([what, "under 60 us", duration(ours), upstreams, met(ours < 60)])
    return targets


def _exposures(rows: list[dict[str, Any]]) -> str:
    lines = []
    for gap in _exposing_gaps(rows):
        for what, name in (("create", "`create_readable`"), ("metadata", "`metadata()`"), ("both", "both")):
            times = [duration(_exposing(rows, each, gap, what)) for each in ("ours", "upstream")]
            lines.append([f"{name}, registered descriptor, {_cadence(gap)}", *times])
    for count in next(iter(rows))["lengths"]:
        lengths = {row["implementation"]: row["lengths"][count] for row in rows}
        name = f"characters of `nixl_metadata`, {int(count):,} registrations"
        lines.append([name, *(f"{lengths[each]:,}" if each in lengths else "-" for each in ("ours", "upstream"))])
    return table(["what", "ours", "upstream"], lines)


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


def duration(microseconds: float | None) -> str:
    """Write a time with three digits that mean something."""
    if microseconds is None:
        return "-"
    if microseconds < 1000:
        return f"{microseconds:.3g} us"
    milliseconds = microseconds / 1000
    return f"{milliseconds:.0f} ms" if milliseconds >= 100 else f"{milliseconds:.3g} ms"


def met(is_met: bool) -> str:
    """Write a verdict."""
    return "yes" if is_met else "**no**"


def _cadence(gap_ms: float) -> str:
    return f"{gap_ms:g} ms gaps" if gap_ms else "back to back"


def update(document: Path, sections: dict[str, str]) -> None:
    """Replace what stands between `<!-- begin NAME -->` and `<!-- end NAME -->`."""
    text = document.read_text(encoding="utf-8")
    for name, content in sections.items():
        pattern = re.compile(f"(<!-- begin {name} -->\n).*?(<!-- end {name} -->)", re.DOTALL)
        text, count = pattern.subn(lambda match, content=content: f"{match[1]}\n{content}\n\n{match[2]}", text)
        if count != 1:
            raise SystemExit(f"{document} has no place for the table: {name}")
    document.write_text(text, encoding="utf-8")


def main() -> None:
    """Print the tables, or put them where they belong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="?", default=RESULTS, help=f"default: {RESULTS}")
    parser.add_argument("--update", type=Path, metavar="DOCUMENT")
    target = Path(os.environ.get("CARGO_TARGET_DIR", "target"))
    parser.add_argument("--criterion", type=Path, default=target / "criterion", help=f"default: {target / 'criterion'}")
    arguments = parser.parse_args()
    sections = {}
    if arguments.results.exists():
        sections |= python_sections(json.loads(arguments.results.read_text(encoding="utf-8")))
    endings = arguments.results.with_name("endings.json")
    if endings.exists():
        sections["endings"] = endings_section(json.loads(endings.read_text(encoding="utf-8")))
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
