"""The commands and their options."""

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


@app.command()
def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show what is installed and which NIXL is used, try it, and advise."""
    raise SystemExit(run_doctor(as_json=as_json))
