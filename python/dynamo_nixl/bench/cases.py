"""The cases of a run, as the command line names them."""

from __future__ import annotations

from .peer.case import MIB, Case

CADENCES = {"hot": 0.0, "warm": 300.0, "cold": 2000.0}
"""Microseconds between the end of a transfer and the begin of the next: what has just run is in caches, and processors
are awake, as long as there is no pause."""

DEFAULT_SIZES = (4 << 10, 64 << 10, MIB, 64 * MIB)
DEFAULT_CADENCES = ("hot", "cold")
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def make_cases(
    sizes: list[int],
    cadences: list[str],
    *,
    iterations: int | None = None,
    tasks: int = 1,
    blocks: int = 1,
    huge: bool = False,
) -> list[Case]:
    """Make the cases of one run. Without a number of iterations each size gets its own: big ones take their time."""
    made = []
    for size in sizes:
        count = iterations or (300 if size <= 64 << 10 else 100 if size <= 16 * MIB else 10)
        if iterations is None and size <= 64 << 10:
            count = max(count, 30 * tasks)
        warm_up = min(25, count)
        made += [Case(size, CADENCES[cadence], count, warm_up, tasks, blocks, huge) for cadence in cadences]
    return made


def cadence_name(gap_us: float) -> str:
    """Name a pause."""
    shown = f"{gap_us / 1e6:g} s gaps" if gap_us >= 1e6 else f"{gap_us:g} us gaps"
    return next((name for name, known in CADENCES.items() if known == gap_us), shown)


def parse_size(text: str) -> int:
    """Read a size such as 4096, 64K, 4KiB, 1M or 1 GiB.

    Raises
    ------
    ValueError
        For what is no positive number of bytes.
    """
    cleaned = text.strip().upper().removesuffix("IB").removesuffix("B").strip()
    number, unit = (cleaned[:-1], cleaned[-1]) if cleaned[-1:] in ("K", "M", "G") else (cleaned, "")
    if not number.strip().isdigit() or int(number) == 0:
        raise ValueError(f"not a positive number of bytes, such as 4096, 64K or 1M: {text!r}")
    return int(number) * _UNITS[unit]


def size_name(size: int) -> str:
    """Write a size the way people do."""
    for factor, unit in ((1 << 30, "GiB"), (MIB, "MiB"), (1 << 10, "KiB")):
        if size >= factor and size % factor == 0:
            return f"{size // factor} {unit}"
    return f"{size} B"
