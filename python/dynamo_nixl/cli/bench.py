"""`dynamo-nixl bench`: how long transfers take, beside others on this machine."""

from __future__ import annotations

import json
import sys
from importlib.util import find_spec
from typing import TYPE_CHECKING, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from dynamo_nixl.bench import machine, tables
from dynamo_nixl.bench.pair import PeerFailedError
from dynamo_nixl.bench.session import run

_FORMATS = (".png", ".svg", ".pdf")

if TYPE_CHECKING:
    from pathlib import Path

    from dynamo_nixl.bench.peer.case import Case
    from dynamo_nixl.bench.results import Results


def run_bench(
    cases: list[Case], against: list[str], runs: int, *, as_json: bool, output: Path | None, plot: Path | None
) -> int:
    """Measure, and print what came out; returns the exit code."""
    console = Console(stderr=as_json)
    if error := _why_not(output, plot):
        sys.stderr.write(f"dynamo-nixl bench failed: {error}\n")
        return 1
    if machine.load() > machine.QUIET_LOAD:
        console.print("[yellow]others are at work on this machine: the figures are worth little")
    try:
        with _Bar(console) as bar:
            results = run(["ours", *against], cases, runs, bar)
    except (PeerFailedError, OSError) as failure:
        if as_json:
            sys.stdout.write(json.dumps({"ok": False, "error": str(failure)}, indent=2) + "\n")
        sys.stderr.write(f"dynamo-nixl bench failed: {failure}\n")
        return 1
    text = json.dumps(results.to_json(), indent=1) + "\n"
    if output is not None:
        output.write_text(text, encoding="utf-8")
    if plot is not None:
        from dynamo_nixl.bench.plot import write

        write(results, plot)
    if as_json:
        sys.stdout.write(text)
    else:
        _print(console, results)
    return 0


def _why_not(output: Path | None, plot: Path | None) -> str | None:
    """Tell what would spoil the end of the run, before it has begun."""
    for path in (output, plot):
        if path is not None and not path.absolute().parent.is_dir():
            return f"there is no such folder: {path.parent}"
    if plot is None:
        return None
    if plot.suffix not in _FORMATS:
        return f"a plot is one of {', '.join(_FORMATS)}: {plot}"
    return None if find_spec("matplotlib") else "a plot needs matplotlib: pip install matplotlib"


def _print(console: Console, results: Results) -> None:
    console.print(tables.transfers(results))
    if (taxes := tables.taxes(results)) is not None:
        console.print(taxes)
    for reason in results.missing.values():
        console.print(f"left out: {reason}")


class _Bar:
    """A progress bar for people; nothing where nobody watches."""

    def __init__(self, console: Console) -> None:
        columns = TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn()
        self._progress = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._task = TaskID(0)

    def begin(self, steps: int) -> None:
        self._task = self._progress.add_task("starting", total=steps)

    def step(self, what: str) -> None:
        self._progress.update(self._task, advance=1, description=what)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._progress.stop()
