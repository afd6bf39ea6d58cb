"""What the documents say of the tests: each one that they name is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
GUARANTEES = ROOT / "docs" / "guarantees.md"
FILE = re.compile(r"`([\w/]+\.(?:py|rs))`(:?)")
"""A file, and whether functions of it follow."""
FUNCTION = re.compile(r"[\s,]*`(\w+)`")


def cited(text):
    """Each file that is named, and the functions of it that are named behind it."""
    found = []
    for each in FILE.finditer(text):
        functions, end = [], each.end()
        while each[2] and (function := FUNCTION.match(text, end)):
            functions.append(function[1])
            end = function.end()
        assert functions or not each[2], each[0]
        found.append((each[1], functions))
    return found


def path_of(name):
    """Where a file lies, by what the document says of that."""
    folders = ["tests/python"] if name.endswith(".py") else ["tests", "src"]
    paths = [path for folder in folders if (path := ROOT / folder / name).is_file()]
    assert len(paths) == 1, f"{name}: {paths}"
    return paths[0]


def functions_of(path):
    return set(re.findall(r"^\s*(?:async )?(?:def|fn) (\w+)", path.read_text(encoding="utf-8"), re.MULTILINE))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("| a | `test_a.py` |", [("test_a.py", [])]),
        ("`x/y.rs`: `one`, `two`; `test_b.py`: `test_c`", [("x/y.rs", ["one", "two"]), ("test_b.py", ["test_c"])]),
        ("(`test_a.py`:\n  `test_b`, `long`)", [("test_a.py", ["test_b", "long"])]),
    ],
)
def test_how_citations_are_read(text, expected):
    assert cited(text) == expected


def test_each_test_behind_a_guarantee_exists():
    found = cited(GUARANTEES.read_text(encoding="utf-8"))
    assert len(found) > 40
    missing = []
    for name, functions in found:
        known = functions_of(path_of(name))
        # How often it runs is said behind its name.
        missing += [f"{name}: {each}" for each in functions if each not in known and each != "long"]
    assert not missing


def test_each_line_that_promises_something_has_a_test():
    promised = GUARANTEES.read_text(encoding="utf-8").split("## Promised")[1].split("## Not promised")[0]
    rows = [line for line in promised.splitlines() if line.startswith("| ") and "| test |" not in line]
    assert len(rows) > 20
    assert not [row for row in rows if not cited(row.rsplit("|", 2)[1])]
