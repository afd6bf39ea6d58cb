"""Fail when a Rust test is ignored without a reason that tests/skips.toml lists.

The runners count an ignored test but do not fail on it, so the sources are searched. `tests/python/plugins/skips.py`
does the same for Python.
"""

import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("src", "tests", "benches")

IGNORED = re.compile(r'#\[(?:cfg_attr\([^\]]*,\s*)?ignore\b(?:\s*=\s*"(?P<reason>[^"]*)")?')
FUNCTION = re.compile(r"\bfn\s+(\w+)")
IGNORED_EXAMPLE = re.compile(r"^\s*//[/!]\s*```.*\bignore\b", re.MULTILINE)


def skips(text: str) -> Iterator[tuple[str, str]]:
    """Yield function and reason of every ignored test in a source file."""
    for found in IGNORED.finditer(text):
        function = FUNCTION.search(text, found.end())
        yield (function[1] if function else "?"), found["reason"] or "no reason given"
    for found in IGNORED_EXAMPLE.finditer(text):
        line = text.count("\n", 0, found.end()) + 1
        yield f"example in line {line}", "examples are compiled; use `no_run` where one cannot run"


def main() -> int:
    """Print what is not listed and return the exit status."""
    with (ROOT / "tests" / "skips.toml").open("rb") as file:
        allowed = {(entry["test"], entry["reason"]) for entry in tomllib.load(file).get("rust", [])}
    refused = [
        f"{path.relative_to(ROOT)}::{function}: {reason}"
        for folder in FOLDERS
        for path in sorted((ROOT / folder).rglob("*.rs"))
        for function, reason in skips(path.read_text(encoding="utf-8"))
        if (f"{path.relative_to(ROOT)}::{function}", reason) not in allowed
    ]
    for line in refused:
        print(f"ignored test that tests/skips.toml does not list: {line}", file=sys.stderr)
    return 1 if refused else 0


if __name__ == "__main__":
    sys.exit(main())
