"""Transfers between two Python processes, and what one process of ours costs: the figures of `docs/performance.md`.

The transfers are those of `dynamo-nixl bench`, in three runs; what that command does not compare by itself is here.
Prints tables, and writes everything as JSON for `report.py`. Ours and NIXL's bindings need nothing but this virtual
environment; the others need what `make bench-peers` makes, and are left out where that is missing.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import report
from dynamo_nixl.bench import machine
from dynamo_nixl.bench.cases import CADENCES, make_cases
from dynamo_nixl.bench.implementations import find
from dynamo_nixl.bench.pair import PeerFailedError
from dynamo_nixl.bench.peer.case import Case
from dynamo_nixl.bench.session import run

if TYPE_CHECKING:
    from dynamo_nixl.bench.results import Results

OUTPUT = Path("target/bench/python.json")
KIB, MIB = 1 << 10, 1 << 20
QUIET_GAP_US = 1_200_000.0
"""Longer than an owner is warm."""


@dataclass(frozen=True)
class Scenario:
    """Cases, and those who are measured with them."""

    implementations: tuple[str, ...]
    cases: list[Case]


SCENARIOS = {
    "small": Scenario(("ours", "raw", "raw-rust", "upstream"), make_cases([8, 4 * KIB, 64 * KIB], list(CADENCES))),
    "big": Scenario(
        ("ours", "raw-rust", "upstream"),
        [
            *make_cases([MIB, 16 * MIB, 64 * MIB, 256 * MIB, 1024 * MIB], ["hot", "cold"]),
            *make_cases([64 * MIB, 256 * MIB], ["hot"], huge=True),
        ],
    ),
    "foreign": Scenario(("foreign", "raw-foreign"), make_cases([4 * KIB], list(CADENCES))),
    "tasks": Scenario(("ours", "upstream"), make_cases([4 * KIB], ["hot"], tasks=64)),
    "blocks": Scenario(("ours", "raw-rust"), make_cases([128 * MIB], ["hot"], blocks=16_384)),
    "quiet": Scenario(("ours",), [Case(4 * KIB, QUIET_GAP_US, iterations=10, warm_up=3)]),
}


def main() -> None:
    """Run what the arguments ask for."""
    arguments = _arguments()
    if machine.load() > machine.QUIET_LOAD:
        _say(f"WARNING: others are at work on this machine (load average {machine.load()})")
    measured: list[Results] = []
    for name in arguments.only:
        _say(f"-- {name}")
        scenario = SCENARIOS[name]
        try:
            measured.append(run(list(scenario.implementations), scenario.cases, arguments.runs, _Said()))
        except PeerFailedError as failure:
            # The others are worth something, too.
            _say(f"{name} is left out: {failure}")
    if not measured:
        raise SystemExit("nothing was measured")
    first, *others = measured
    for other in others:
        first.take_over(other)
    for reason in first.missing.values():
        _say(reason)
    results = first.to_json()
    if not arguments.no_local:
        results["exposures"] = [
            {"run": number, "implementation": name, **_expose(name)}
            for number in range(1, arguments.runs + 1)
            for name in first.implementations
            if name in ("ours", "upstream")
        ]
        results["local"] = {what: _local(what) for what in ("import", "create", "idle")}
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    for name, table in report.python_sections(results).items():
        print(f"\n{name}\n\n{table}")
    print(f"\neverything, as JSON: {arguments.output}")


class _Said:
    """Progress as lines."""

    def __init__(self) -> None:
        self._steps = self._done = 0

    def begin(self, steps: int) -> None:
        self._steps = steps

    def step(self, what: str) -> None:
        self._done += 1
        _say(f"{self._done} of {self._steps}: {what}")


def _expose(implementation: str) -> Any:
    _say(f"{implementation}: exposing")
    return _run(find(implementation).command[0], "expose.py", implementation)


def _local(what: str) -> Any:
    _say(f"ours, one process: {what}")
    return _run(sys.executable, "local.py", what)


def _run(python: str, script: str, argument: str) -> Any:
    path = Path(__file__).with_name(script)
    done = subprocess.run([python, str(path), argument], check=True, stdout=subprocess.PIPE, text=True)
    # The last line: an import may print something of its own.
    return json.loads(done.stdout.splitlines()[-1])


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = ",".join(SCENARIOS)
    parser.add_argument("--only", type=_listed(_one_of(SCENARIOS)), default=list(SCENARIOS), metavar=names)
    parser.add_argument("--runs", type=int, default=3, help="the verdict is the median of the runs (default: 3)")
    parser.add_argument("--no-local", action="store_true", help="leave out import, exposure and idle costs")
    parser.add_argument("--output", type=Path, default=OUTPUT, help=f"default: {OUTPUT}")
    return parser.parse_args()


def _listed(parse: Any) -> Any:
    return lambda text: [parse(item) for item in text.split(",") if item]


def _one_of(names: Any) -> Any:
    def parse(name: str) -> str:
        if name not in names:
            raise argparse.ArgumentTypeError(f"one of {', '.join(names)}: {name!r}")
        return name

    return parse


if __name__ == "__main__":
    main()
