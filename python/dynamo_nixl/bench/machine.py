"""What the figures were measured on. Neither names nor addresses of the machine."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path
from typing import Any

QUIET_LOAD = 0.5
"""A load average above this before a measurement means that others are at work here."""


def describe() -> dict[str, Any]:
    """Describe processors, memory and kernel."""
    cpu = re.search(r"model name\s*:\s*(.+)", _read("/proc/cpuinfo"))
    memory = re.search(r"MemTotal:\s*(\d+) kB", _read("/proc/meminfo"))
    return {
        "cores": len(os.sched_getaffinity(0)),
        "cpu": cpu[1] if cpu else platform.machine(),
        "is_virtual": "hypervisor" in _read("/proc/cpuinfo"),
        "memory_gib": round(int(memory[1]) / (1 << 20)) if memory else None,
        "kernel": platform.release(),
        "python": platform.python_version(),
        "ucx_tls": os.environ.get("UCX_TLS", "default"),
    }


def load() -> float:
    """Tell how many processes have been running on average over the last minute."""
    return round(os.getloadavg()[0], 2)


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
