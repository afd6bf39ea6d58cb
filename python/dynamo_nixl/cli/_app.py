"""The commands and their options."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from dynamo_nixl import __version__

from .demo import SIZES, run_demo
from .doctor import run_doctor

app = typer.Typer(
    name="dynamo-nixl",
    help="Asyncio RDMA tensor transfers on NIXL.",
    no_args_is_help=True,
    add_completion=False,
    # An unexpected error should read like any Python error, and be short enough to report.
    pretty_exceptions_enable=False,
)

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"dynamo-nixl {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Asyncio RDMA tensor transfers on NIXL."""


def parse_size(text: str) -> int:
    """Bytes from a number with an optional binary unit: 4096, 4K, 4KiB, 1M, 1 GiB."""
    cleaned = text.strip().upper().removesuffix("IB").removesuffix("B").strip()
    number, unit = (cleaned[:-1], cleaned[-1]) if cleaned[-1:] in ("K", "M", "G") else (cleaned, "")
    if not number.strip().isdigit() or int(number) == 0:
        raise typer.BadParameter(f"not a positive number of bytes, such as 4096, 64K or 1M: {text!r}")
    return int(number) * _UNITS[unit]


@app.command()
def demo(
    sizes: Annotated[
        list[int] | None,
        typer.Option(
            "--size",
            parser=parse_size,
            metavar="BYTES",
            help="Bytes to move, such as 4096, 64K or 1M; may be given several times.",
            show_default="4K, 1M, 64M",
        ),
    ] = None,
    repeat: Annotated[int, typer.Option(min=1, help="How often each transfer is done; the median counts.")] = 5,
    timeout: Annotated[float, typer.Option(min=1, metavar="SECONDS", help="When to give up.")] = 120,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Hand tensors from one process to another and back, and verify every byte."""
    raise SystemExit(run_demo(sizes or list(SIZES), repeat, timeout, as_json=as_json))


class Cadence(StrEnum):
    """The pauses between transfers."""

    HOT = "hot"
    WARM = "warm"
    COLD = "cold"


def _others(texts: list[str]) -> list[str]:
    """Read names, separated by commas; each once."""
    from dynamo_nixl.bench.implementations import OTHERS

    names = [name.strip() for text in texts for name in text.split(",")]
    if unknown := [name for name in names if name not in OTHERS]:
        raise typer.BadParameter(f"{unknown[0]!r} is none of {', '.join(OTHERS)}", param_hint="--against")
    return list(dict.fromkeys(names))


@app.command()
def bench(
    sizes: Annotated[
        list[int] | None,
        typer.Option(
            "--size",
            parser=parse_size,
            metavar="BYTES",
            help="Bytes of a transfer, such as 4096, 64K or 1M; may be given several times.",
            show_default="4K, 64K, 1M, 64M",
        ),
    ] = None,
    cadences: Annotated[
        list[Cadence] | None,
        typer.Option(
            "--cadence",
            help="The pause between two transfers: none, 300 us, 2 ms. May be given several times.",
            show_default="hot, cold",
        ),
    ] = None,
    against: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME,...",
            help="Whom to compare with, if installed: raw, raw-rust, raw-rust-plain, ucx, memcpy, upstream, foreign, "
            "raw-foreign, ucxx, mooncake.",
            show_default="raw, memcpy",
        ),
    ] = None,
    tasks: Annotated[int, typer.Option(min=1, help="How many tasks of the reader transfer at the same time.")] = 1,
    blocks: Annotated[int, typer.Option(min=1, help="How many scattered ranges a transfer has.")] = 1,
    huge: Annotated[bool, typer.Option("--huge-pages", help="Have memory with huge pages on both sides.")] = False,
    iterations: Annotated[
        int | None, typer.Option(min=1, help="Transfers of each size and cadence.", show_default="by size, 10 to 300")
    ] = None,
    runs: Annotated[
        int, typer.Option(min=1, help="How often all of it is done; the median of the medians counts.")
    ] = 1,
    plot: Annotated[Path | None, typer.Option(metavar="FILE", help="Draw the times there (needs matplotlib).")] = None,
    output: Annotated[Path | None, typer.Option(metavar="FILE", help="Write everything there, as JSON.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as one JSON object.")] = False,
) -> None:
    """Measure reads between two processes, beside others, and what each layer adds. Takes up to half a minute."""
    from dynamo_nixl.bench.cases import DEFAULT_CADENCES, DEFAULT_SIZES, make_cases

    from .bench import run_bench

    wanted = sizes or list(DEFAULT_SIZES)
    if odd := [size for size in wanted if size % blocks]:
        raise typer.BadParameter(f"{odd[0]} bytes are not {blocks} ranges of equal size")
    names = [each.value for each in cadences or ()] or list(DEFAULT_CADENCES)
    cases = make_cases(wanted, names, iterations=iterations, tasks=tasks, blocks=blocks, huge=huge)
    others = _others(against) if against else ["raw", "memcpy"]
    raise SystemExit(run_bench(cases, others, runs, as_json=as_json, output=output, plot=plot))


@app.command()
def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show what is installed and which NIXL is used, try it, and advise."""
    raise SystemExit(run_doctor(as_json=as_json))
