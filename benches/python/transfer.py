"""Transfers between two Python processes: ours, NIXL's own bindings, and upstream's `nixl_connect`.

Prints tables, and writes everything as JSON for `report.py`. Ours and NIXL's bindings need nothing but this virtual
environment; upstream needs its own, which `make peers` makes.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import machine
import report
from pair import Pair
from plan import DEFAULT_CADENCES, DEFAULT_IMPLEMENTATIONS, DEFAULT_SIZES, Case, cases, parse_size, size_name

PEERS_VARIABLE = "DYNAMO_NIXL_PEERS_PYTHON"
PEERS_PYTHON = ".cache/peers/upstream/bin/python"
OUTPUT = Path("target/bench/python.json")


def main() -> None:
    """Run what the arguments ask for."""
    arguments = _arguments()
    plan = cases(arguments.sizes, arguments.cadence, arguments.iterations)
    pythons = _pythons(arguments.only, arguments.peers_python)
    results: dict[str, Any] = {
        "format": 1,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine.describe(),
        "load_before": _check_load(),
        "runs": arguments.runs,
        "versions": {},
        "transfers": [],
        "exposures": [],
    }
    for run in range(1, arguments.runs + 1):
        # Each implementation in each run: what drifts, drifts for all of them.
        for implementation, python in pythons.items():
            _measure(results, run, implementation, python, plan)
            if implementation != "raw" and not arguments.no_local:
                _expose(results, run, implementation, python)
    if "ours" in pythons and not arguments.no_local:
        results["local"] = {what: _local(what) for what in ("import", "create", "idle")}
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print()
    for name, table in report.python_sections(results).items():
        print(f"{name}\n\n{table}\n")
    print(f"everything, as JSON: {arguments.output}")


def _measure(results: dict[str, Any], run: int, implementation: str, python: str, plan: list[Case]) -> None:
    with Pair(implementation, python) as pair:
        results["versions"][implementation] = pair.versions
        for case in plan:
            result = pair.measure(case)
            _say(
                f"run {run}  {implementation:<9}{size_name(case.size):>8}  gap {case.gap_ms:g} ms  "
                f"reader {result['reader']['median']:>9.1f} us  owner {result['owner']['median']:>9.1f} us"
            )
            results["transfers"].append({"run": run, "implementation": implementation, **case.to_json(), **result})


def _expose(results: dict[str, Any], run: int, implementation: str, python: str) -> None:
    _say(f"run {run}  {implementation:<9} exposing")
    script = Path(__file__).with_name("expose.py")
    done = subprocess.run([python, str(script), implementation], check=True, stdout=subprocess.PIPE, text=True)
    # The last line: an import may print something of its own.
    result = json.loads(done.stdout.splitlines()[-1])
    results["exposures"].append({"run": run, "implementation": implementation, **result})


def _local(what: str) -> Any:
    _say(f"ours, one process: {what}")
    script = Path(__file__).with_name("local.py")
    done = subprocess.run([sys.executable, str(script), what], check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout)


def _pythons(only: list[str], peers_python: str) -> dict[str, str]:
    pythons = dict.fromkeys(only, sys.executable)
    if "upstream" in pythons:
        if Path(peers_python).exists():
            pythons["upstream"] = peers_python
        else:
            _say(f"upstream is left out, there is no {peers_python}: `make peers` makes it")
            del pythons["upstream"]
    return pythons


def _check_load() -> float:
    load = machine.load()
    if load > machine.QUIET_LOAD:
        _say(f"WARNING: others are at work on this machine (load average {load}): these figures are worth little")
    return load


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=_listed(parse_size), default=list(DEFAULT_SIZES), metavar="4KiB,1MiB,...")
    parser.add_argument(
        "--cadence",
        type=_listed(float),
        default=list(DEFAULT_CADENCES),
        metavar="0,2,...",
        help="milliseconds between two transfers; 0 is back to back (default: 0,2)",
    )
    parser.add_argument("--runs", type=int, default=3, help="the verdict is the median of the runs (default: 3)")
    parser.add_argument("--iterations", type=int, help="transfers a case (default: by size, 300 to 12)")
    parser.add_argument(
        "--only", type=_listed(_implementation), default=list(DEFAULT_IMPLEMENTATIONS), metavar="ours,raw,upstream"
    )
    parser.add_argument(
        "--peers-python",
        default=os.environ.get(PEERS_VARIABLE, PEERS_PYTHON),
        help=f"an interpreter that has upstream's package (default: ${PEERS_VARIABLE}, or {PEERS_PYTHON})",
    )
    parser.add_argument("--no-local", action="store_true", help="leave out import, exposure and idle costs")
    parser.add_argument("--output", type=Path, default=OUTPUT, help=f"default: {OUTPUT}")
    return parser.parse_args()


def _listed(parse: Any) -> Any:
    return lambda text: [parse(item) for item in text.split(",")]


def _implementation(name: str) -> str:
    if name not in DEFAULT_IMPLEMENTATIONS:
        raise argparse.ArgumentTypeError(f"no such implementation: {name}")
    return name


if __name__ == "__main__":
    main()
