"""Results as tables for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table

from .cases import cadence_name, size_name

if TYPE_CHECKING:
    from .results import Results, Shape

TITLES = {
    "ours": "dynamo_nixl",
    "raw": "NIXL, polled",
    "raw-rust": "NIXL, Rust",
    "raw-rust-plain": "NIXL, Rust, plain",
    "ucx": "UCX",
    "upstream": "nixl_connect",
    "foreign": "to nixl_connect",
    "raw-foreign": "NIXL to nixl_connect",
    "ucxx": "ucxx",
    "mooncake": "Mooncake",
    "memcpy": "memcpy",
}


def transfers(results: Results) -> Table:
    """How long a transfer takes, and with several tasks how many there are in a second."""
    table = Table(title="Transfers between two processes, median", title_justify="left")
    table.add_column("size", justify="right")
    table.add_column("cadence")
    names = results.implementations
    has_rates = any(shape[2] > 1 for shape in results.shapes)
    for title in (TITLES["ours"], "99 %", "owner awake", "GB/s", *(["per second"] if has_rates else [])):
        table.add_column(title, justify="right", no_wrap=True)
    others = [name for name in names if name != "ours"]
    for name in others:
        table.add_column(TITLES[name], justify="right")
        if has_rates:
            table.add_column("per second", justify="right")
    for shape in results.shapes:
        cells = [_size(shape), cadence_name(shape[1]), duration(results.time("ours", shape))]
        cells += [duration(results.time("ours", shape, *what)) for what in (("reader", "p99"), ("owner",))]
        cells.append(f"{results.gigabytes_per_second('ours', shape) or 0:.1f}" if shape[0] >= 1 << 20 else "")
        if has_rates:
            cells.append(_rate(results, "ours", shape))
        for name in others:
            cells.append(duration(results.time(name, shape)))
            if has_rates:
                cells.append(_rate(results, name, shape))
        table.add_row(*cells)
    return table


def taxes(results: Results) -> Table | None:
    """What each layer adds; None where there is nothing to compare."""
    shapes = [shape for shape in results.shapes if shape[2] == 1 and len(results.layers(shape)) > 1]
    if not shapes:
        return None
    table = Table(title="What each layer adds to the one before it", title_justify="left")
    table.add_column("size", justify="right")
    table.add_column("cadence")
    for layer, _ in results.layers(shapes[0]):
        table.add_column(layer, justify="right")
    for shape in shapes:
        table.add_row(_size(shape), cadence_name(shape[1]), *(duration(added) for _, added in results.layers(shape)))
    return table


def duration(microseconds: float | None) -> str:
    """Write a time with three digits that mean something."""
    if microseconds is None:
        return "-"
    if abs(microseconds) < 999.5:
        return f"{microseconds:.3g} us"
    milliseconds = microseconds / 1000
    return f"{milliseconds:.0f} ms" if abs(milliseconds) >= 100 else f"{milliseconds:.3g} ms"


def _size(shape: Shape) -> str:
    size, _, tasks, blocks, huge = shape
    name = size_name(size)
    if blocks > 1:
        name = f"{blocks} x {size_name(size // blocks)}"
    name += f", {tasks} tasks" if tasks > 1 else ""
    return f"{name}, huge pages" if huge else name


def _rate(results: Results, name: str, shape: Shape) -> str:
    rate = results.per_second(name, shape)
    return f"{rate:,.0f}" if rate else "-"
