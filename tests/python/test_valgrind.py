"""A read and a write between two connectors of one process, under valgrind's memcheck.

The program is a Rust test, so that no interpreter is in the way: `tests/real_loopback.rs`. What memcheck says of the
loader and of UCX is in `tests/valgrind.supp`, as narrowly as can be; everything else counts, wherever it is found.
Leaks are ours where our code has asked for the memory: what NIXL keeps is its own.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SUPPRESSIONS = ROOT / "tests" / "valgrind.supp"
# Whoever allocates for others.
ALLOCATORS = ("libc.so.6", "libstdc++.so.6", "vgpreload_memcheck")

# Not marked `nixl`, which may never skip in CI: whether there is a valgrind that can run NIXL is the machine's choice.
pytestmark = [pytest.mark.long, pytest.mark.timeout(1500)]


@dataclass(frozen=True)
class Finding:
    """One error that memcheck reports."""

    kind: str
    frames: tuple[tuple[str, str], ...]
    """Function and library, innermost first."""

    @property
    def is_leak(self) -> bool:
        """Say whether it is memory that nobody has a pointer to."""
        return self.kind.startswith("Leak_")

    @property
    def is_ours(self) -> bool:
        """Say whether our code did it, or asked for the memory, rather than somebody whom we have called."""
        libraries = [library for _, library in self.frames if not library.startswith(ALLOCATORS)]
        return bool(libraries) and libraries[0].startswith("real_loopback")


@dataclass(frozen=True)
class Run:
    """What a run under memcheck has come to."""

    returncode: int
    output: str
    findings: tuple[Finding, ...] | None
    """None where memcheck itself did not get to its end."""


def memcheck(scenario: str, report: Path, transports: str | None) -> Run:
    """Run one scenario of `tests/real_loopback.rs`. Cargo builds it, and knows where NIXL is."""
    runner = [
        "valgrind",
        "--quiet",
        "--xml=yes",
        f"--xml-file={report}",
        "--leak-check=full",
        "--show-leak-kinds=definite",
        "--num-callers=60",
        f"--suppressions={SUPPRESSIONS}",
    ]
    command = ["cargo", "test", "--quiet", "--features", "testing", "--test", "real_loopback"]
    command += ["--config", f"target.'cfg(all())'.runner={runner!r}"]
    command += ["--", "child_process_entry", "--exact", "--nocapture", "--test-threads=1"]
    environment = {"UCX_MODULES": "^efa", **os.environ, "DYNAMO_NIXL_TEST_ROLE": scenario}
    if transports is not None:
        environment["UCX_TLS"] = transports
    run = subprocess.run(command, cwd=ROOT, env=environment, text=True, capture_output=True, timeout=1200, check=False)
    return Run(run.returncode, run.stdout + run.stderr, read(report))


def read(report: Path) -> tuple[Finding, ...] | None:
    """Read memcheck's report."""
    try:
        root = ElementTree.parse(report).getroot()
    except (OSError, ElementTree.ParseError):
        return None
    return tuple(
        Finding(
            error.findtext("kind", "?"),
            tuple(
                (frame.findtext("fn", "?"), Path(frame.findtext("obj", "?")).name)
                for frame in error.iterfind("stack[1]/frame")
            ),
        )
        for error in root.iterfind("error")
    )


@pytest.fixture(scope="module")
def probe(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Skip where there is no valgrind, or none that knows all the instructions and system calls of NIXL."""
    if shutil.which("valgrind") is None:
        pytest.skip("no valgrind")
    run = memcheck("a_leak", tmp_path_factory.mktemp("probe") / "report.xml", None)
    if run.returncode != 0 and (run.findings is None or "valgrind: " in run.output):
        pytest.skip("valgrind cannot run NIXL here")
    assert run.returncode == 0, run.output
    return run


def test_memcheck_finds_a_leak_of_ours(probe: Run) -> None:
    """Otherwise the other test says nothing."""
    assert probe.findings is not None
    leaks = [finding for finding in probe.findings if finding.is_leak and finding.is_ours]
    assert [finding.kind for finding in leaks] == ["Leak_DefinitelyLost"]
    assert any("a_leak" in function for function, _ in leaks[0].frames)


@pytest.mark.parametrize("transports", [None, "tcp,self"], ids=["default", "tcp"])
@pytest.mark.usefixtures("probe")
def test_a_read_and_a_write_touch_no_memory_that_they_should_not(tmp_path: Path, transports: str | None) -> None:
    run = memcheck("a_read_and_a_write", tmp_path / "report.xml", transports)
    assert run.returncode == 0, run.output
    assert run.findings is not None
    assert [finding for finding in run.findings if not finding.is_leak or finding.is_ours] == []
