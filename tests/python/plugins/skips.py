"""No test is skipped unnoticed.

A skip whose test and reason are not listed in the file that the ini option `skip_list` names is turned into a failure.
When CI=true, a test marked `nixl` or `interop` may not skip at all, listed or not.
"""

import os
import re
import tomllib
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

NEVER_IN_CI = ("nixl", "interop")


@dataclass(frozen=True)
class Allowed:
    """One entry of the list: which tests may skip, for which reason. `*` stands for anything, all else for itself."""

    test: str
    reason: str

    def covers(self, test: str, reason: str) -> bool:
        """Say whether this entry allows the test to skip for the reason."""
        return _matches(self.test, test) and _matches(self.reason, reason)


@dataclass(frozen=True)
class Policy:
    """What may skip in this session."""

    allowed: Sequence[Allowed]
    source: str
    in_ci: bool

    def objection(self, test: str, reason: str, marks: Sequence[str]) -> str | None:
        """Return why this skip is a failure, or None where it is allowed."""
        if self.in_ci and marks:
            return f"{test} is marked {' and '.join(marks)} and may not skip when CI=true; it skipped: {reason}"
        if any(entry.covers(test, reason) for entry in self.allowed):
            return None
        return f"{test} skipped for a reason that {self.source} does not list: {reason}"


POLICY = pytest.StashKey[Policy]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the ini option that names the list."""
    parser.addini("skip_list", "TOML file with the skips that are no failures, relative to the root")


def pytest_configure(config: pytest.Config) -> None:
    """Read the list once."""
    source = str(config.getini("skip_list"))
    allowed = read_list(config.rootpath / source) if source else []
    config.stash[POLICY] = Policy(allowed, source or "any list", in_ci=os.environ.get("CI") == "true")


def read_list(path: Path) -> list[Allowed]:
    """Read the entries of the tables `[[python]]`."""
    with path.open("rb") as file:
        tables = tomllib.load(file)
    return [Allowed(entry["test"], entry["reason"]) for entry in tables.get("python", [])]


# Outermost, to see the report as pytest's own skip and xfail handling leaves it.
@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Judge a test that skipped."""
    report = yield
    if report.skipped and not hasattr(report, "wasxfail"):
        marks = [name for name in NEVER_IN_CI if item.get_closest_marker(name)]
        _judge(report, item.config.stash[POLICY], marks)
    return report


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Judge a module that skipped as a whole."""
    report = yield
    if report.skipped:
        # Its tests are not known then, so that their marks must be read from the text.
        text = collector.path.read_text(encoding="utf-8") if collector.path.is_file() else ""
        marks = [name for name in NEVER_IN_CI if re.search(rf"\bmark\.{name}\b", text)]
        _judge(report, collector.config.stash[POLICY], marks)
    return report


def _judge(report: pytest.TestReport | pytest.CollectReport, policy: Policy, marks: Sequence[str]) -> None:
    """Make the report a failure where the policy objects."""
    objection = policy.objection(report.nodeid, _reason(report), marks)
    if objection is not None:
        report.outcome = "failed"
        report.longrepr = objection


def _reason(report: pytest.TestReport | pytest.CollectReport) -> str:
    """Return the reason that the test gave."""
    text = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longreprtext
    return text.removeprefix("Skipped: ")


def _matches(pattern: str, text: str) -> bool:
    return re.fullmatch(".*".join(map(re.escape, pattern.split("*"))), text, re.DOTALL) is not None
