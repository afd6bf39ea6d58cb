"""`dynamo-nixl doctor`: what is installed, which NIXL is used and whether it works, with advice."""

from __future__ import annotations

import json
import os
import platform
import resource
import signal
import subprocess
import sys
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.table import Table

from dynamo_nixl import __version__, _library

_PACKAGES: Final = ("nixl", "nixl-cu12", "nixl-cu13", "torch", "numpy", "cupy-cuda12x", "cupy-cuda13x", "uvloop")
_VARIABLES: Final = ("UCX_", "NIXL_", "DYNAMO_NIXL_", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES")
_PROBE_PATIENCE: Final = 60.0
"""Seconds that opening a connector may take."""
_SHM: Final = "/dev/shm"  # noqa: S108  # looked at, not written to
_SMALL_SHM: Final = 64 << 20
"""What containers get unless told otherwise."""


@dataclass(slots=True)
class Report:
    """What was found. `is_ok`: a connector could be opened."""

    is_ok: bool = False
    system: dict[str, str] = field(default_factory=dict)
    nixl: dict[str, str] = field(default_factory=dict)
    packages: dict[str, str] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    advice: list[str] = field(default_factory=list)


def run_doctor(*, as_json: bool) -> int:
    """Examine, print, and return the exit code."""
    report = examine()
    if as_json:
        sys.stdout.write(json.dumps(asdict(report), indent=2) + "\n")
    else:
        _print(report)
    return 0 if report.is_ok else 1


def examine() -> Report:
    """Look at this machine and this environment, and try to open a connector."""
    report = Report()
    _system(report)
    _packages(report)
    _environment(report)
    _nixl(report)
    _try(report)
    return report


def _system(report: Report) -> None:
    facts = report.system
    facts["dynamo_nixl"] = __version__
    facts["Python"] = f"{platform.python_implementation()} {platform.python_version()} ({sys.executable})"
    facts["platform"] = platform.platform()
    facts["cores"] = f"{len(os.sched_getaffinity(0))} usable of {os.cpu_count()}"
    if len(os.sched_getaffinity(0)) < 2:
        report.advice.append("One core only: a transfer between two processes here shares it with both of them.")

    devices = _names_in("/sys/class/infiniband")
    facts["RDMA devices"] = ", ".join(devices) or "none"
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    facts["locked memory (ulimit -l)"] = "unlimited" if soft == resource.RLIM_INFINITY else _bytes(soft)
    if devices and soft != resource.RLIM_INFINITY:
        report.advice.append(
            "RDMA devices pin the memory they reach, and the limit on locked memory is low: ulimit -l unlimited"
        )

    scope = _text_of("/proc/sys/kernel/yama/ptrace_scope")
    facts["ptrace scope"] = scope or "no Yama: unrestricted"
    if scope not in ("", "0") and os.geteuid() != 0:
        report.advice.append(
            "UCX may not copy between processes directly (CMA) and will use TCP between processes of this machine, "
            "which is slower: sysctl kernel.yama.ptrace_scope=0, or give the process CAP_SYS_PTRACE"
        )

    try:
        shm = os.statvfs(_SHM)
    except OSError:
        facts[_SHM] = "absent"
        report.advice.append(f"There is no {_SHM}, which UCX uses between processes of one machine.")
    else:
        size, free = shm.f_blocks * shm.f_frsize, shm.f_bavail * shm.f_frsize
        facts[_SHM] = f"{_bytes(size)}, {_bytes(free)} free"
        if size <= _SMALL_SHM:
            report.advice.append(f"{_SHM} is small, UCX may run out of it; for a container: --shm-size=1g")


def _packages(report: Report) -> None:
    for name in _PACKAGES:
        try:
            report.packages[name] = version(name)
        except PackageNotFoundError:
            report.packages[name] = "not installed"
    cuda_major = _library.torch_cuda_major()
    if cuda_major is not None:
        report.packages["torch"] += f" (CUDA {cuda_major})"


def _environment(report: Report) -> None:
    for name, value in sorted(os.environ.items()):
        if name.startswith(_VARIABLES):
            report.environment[name] = value


def _nixl(report: Report) -> None:
    facts = report.nixl
    libucs = _library.mapped_libucs()
    libefa = _library.system_libefa(os.environ)
    facts["libefa of the system"] = libefa or "none"
    modules = os.environ.get("UCX_MODULES")
    if libefa is not None and modules is None:
        facts["libefa of the system"] += "; UCX's EFA module is kept out, or processes would crash when they exit"
        if libucs is not None:
            report.advice.append(
                f"UCX was loaded into this process by someone else ({libucs}), which is too late for keeping its EFA "
                "module out: the process may crash when it exits. Set UCX_MODULES=^efa before it starts."
            )
    elif libefa is not None and modules is not None and "^efa" not in modules:
        report.advice.append(
            f"UCX_MODULES={modules} lets UCX load the system's libefa, with which processes may crash when they exit; "
            "unset it, or add ^efa, unless you need EFA adapters."
        )

    try:
        search = _library.find(os.environ)
        chosen = _library.choose(search)
    except ImportError as error:
        facts["chosen"] = "none"
        report.advice.append(str(error))
        return
    if chosen.path == _library.LIBRARY:
        # No wheel: only loading can tell what the loader's path holds, so `_try` reports and advises.
        facts["chosen"] = f"whatever {chosen.origin} has as {chosen.path}"
    else:
        facts["chosen"] = chosen.path
        facts["how"] = chosen.origin
    facts["version"] = f"{chosen.version or 'unknown'} (supported: {_library.SUPPORTED})"
    others = [each for each in search.candidates if each != chosen]
    facts["other candidates"] = (
        "; ".join(f"{each.path} ({each.origin}, {each.version or 'version unknown'})" for each in others) or "none"
    )
    if search.misses:
        facts["also looked for"] = "; ".join(search.misses)
    if search.is_decided and chosen.origin.startswith("beside"):
        report.advice.append("NIXL was loaded into this process by someone else; its library is used.")
    if search.cuda_major in (12, 13) and f"nixl_cu{search.cuda_major}" not in chosen.path and "nixl_cu" in chosen.path:
        report.advice.append(
            f"torch is built for CUDA {search.cuda_major} but this NIXL is not, GPU memory may not be reachable: "
            f"{_library.pip_command(search.cuda_major)}"
        )


def _try(report: Report) -> None:
    command = [sys.executable, "-m", "dynamo_nixl.cli._probe"]
    try:
        probe = subprocess.run(command, capture_output=True, text=True, timeout=_PROBE_PATIENCE, check=False)  # noqa: S603  # our own
    except subprocess.TimeoutExpired:
        report.nixl["opening a connector"] = f"no end within {_PROBE_PATIENCE:g} s"
        report.advice.append("NIXL hangs when it starts; UCX_LOG_LEVEL=info shows how far it gets.")
        return
    try:
        # The last line: UCX prints on standard output, too.
        answer = json.loads(probe.stdout.splitlines()[-1])
    except (ValueError, IndexError):
        answer = {"error": "the process that tried ended without an answer", "error_type": "crash"}
    if "error" in answer:
        report.nixl["opening a connector"] = f"failed: {answer['error_type']}"
        if answer["error"] not in report.advice:
            report.advice.append(answer["error"])
        if "UCX_TLS" in os.environ:
            report.advice.append("UCX_TLS may exclude what NIXL needs: try without it.")
    else:
        report.is_ok = True
        report.nixl["opening a connector"] = f"works, {answer['seconds']:.2f} s with loading"
    if probe.returncode != 0:
        report.nixl["end of that process"] = _exit(probe.returncode)
        report.advice.append(
            f"A process that used NIXL ended badly: {_exit(probe.returncode)}. Known with the system's libefa, where "
            "UCX_MODULES=^efa helps."
        )
    if probe.stderr.strip():
        report.nixl["it printed"] = probe.stderr.strip()


def _exit(code: int) -> str:
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def _names_in(directory: str) -> list[str]:
    try:
        return sorted(os.listdir(directory))
    except OSError:
        return []


def _text_of(path: str) -> str:
    try:
        return Path(path).read_text(encoding="ascii").strip()
    except OSError:
        return ""


def _bytes(count: int) -> str:
    amount = float(count)
    for unit in ("B", "KiB", "MiB"):
        if amount < 1024:
            return f"{amount:g} {unit}"
        amount = round(amount / 1024, 1)
    return f"{amount:g} GiB"


def _print(report: Report) -> None:
    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console.width = 140
    for title, facts in (
        ("System", report.system),
        ("NIXL", report.nixl),
        ("Packages", report.packages),
        ("Environment", report.environment),
    ):
        table = Table(title=title, title_justify="left", show_header=False, box=None, padding=(0, 2, 0, 0))
        for name, value in facts.items():
            table.add_row(name, value)
        if not facts:
            table.add_row("no variable of UCX or NIXL is set")
        console.print(table)
        console.print()
    for line in report.advice:
        console.print(f"Advice: {line}")
    console.print("A connector can be opened." if report.is_ok else "No connector can be opened.")
