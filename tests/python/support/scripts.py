"""Programs of a few lines, run to their end in processes of their own."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from typing import TYPE_CHECKING, NamedTuple

from support.workers import environment

if TYPE_CHECKING:
    from pathlib import Path

LIMIT = 60.0


class Ended(NamedTuple):
    """How a program ended."""

    code: int
    output: str
    errors: str


PRELUDE = """\
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
"""
"""A shell that runs the tests in the background has them ignore Ctrl-C, and programs inherit that."""


def start(source: str, folder: Path, extra: dict[str, str] | None = None) -> subprocess.Popen[str]:
    """Start a program; it reads nothing."""
    script = folder / "script.py"
    script.write_text(PRELUDE + textwrap.dedent(source))
    return subprocess.Popen(
        [sys.executable, "-W", "error", str(script)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=folder,
        env=environment(extra or {}),
    )


def end(process: subprocess.Popen[str], limit: float = LIMIT) -> Ended:
    """Wait for a program's end. One that hangs is killed, which its code shows."""
    try:
        output, errors = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        process.kill()
        output, errors = process.communicate()
        errors += f"\nkilled after {limit:g} s"
    return Ended(process.returncode, output, errors)


def run(source: str, folder: Path, extra: dict[str, str] | None = None) -> Ended:
    """Run a program to its end."""
    return end(start(source, folder, extra))
