"""Who can be measured here, and by which program."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path

from dynamo_nixl import _library

FOLDER_VARIABLE = "DYNAMO_NIXL_PEERS"
"""Names the folder of the others' virtual environments and programs."""
FOLDER = ".cache/peers"

_MODULES = {"upstream": "dynamo.nixl_connect", "ucxx": "ucxx", "mooncake": "mooncake.engine"}
"""What is imported of those that have environments of their own."""
_BINARIES = {"raw-rust": "raw-nixl", "raw-rust-plain": "raw-nixl", "ucx": "raw-ucx"}
"""The programs of those that are no Python; their sources are in `benches/raw`."""
_FOREIGN = {"foreign": "ours", "raw-foreign": "raw"}
"""Those whose owner is upstream's, with their reader."""
OTHERS = (
    "raw",
    "raw-rust",
    "raw-rust-plain",
    "ucx",
    "upstream",
    "foreign",
    "raw-foreign",
    "ucxx",
    "mooncake",
    "memcpy",
)
"""What dynamo_nixl can be compared with; `foreign` is itself, with an owner of upstream's."""

_PEERS = str(Path(__file__).parent)
# Without the working directory, where anything may lie; and at the end of the path, since nothing of ours is to stand
# before what others import by the same name.
_PROGRAM = (
    f"import sys, runpy; sys.path[:] = [*filter(None, sys.path), {_PEERS!r}]; "
    "runpy.run_module('peer', run_name='__main__', alter_sys=True)"
)


@dataclass(frozen=True, slots=True)
class Implementation:
    """One of them."""

    name: str
    """How its processes know what they are."""
    command: tuple[str, ...]
    """What is started, before the arguments of `peer`."""
    environment: dict[str, str] = field(default_factory=dict)
    """What it needs to be told there."""
    owner: Implementation | None = None
    """Who the owner is, where it is somebody else."""


class NotInstalledError(Exception):
    """What is to be compared with is not here; the text says how to get it."""


def find(name: str) -> Implementation:
    """Find what is to be measured.

    Raises
    ------
    NotInstalledError
        Where it is not here.
    """
    if name in _FOREIGN:
        return replace(find(_FOREIGN[name]), owner=find("upstream"))
    folder = Path(os.environ.get(FOLDER_VARIABLE, FOLDER))
    if name in _BINARIES:
        binary = folder / "raw" / "bin" / _BINARIES[name]
        if os.access(binary, os.X_OK):
            return Implementation(name, (str(binary.absolute()),), _nixl())
        raise _missing(name, "builds")
    if name not in _MODULES:
        return _python(name, sys.executable)
    for python in (str(folder / name / "bin" / "python"), sys.executable):
        if Path(python).exists() and _has(python, _MODULES[name]):
            return _python(name, python)
    raise _missing(name, "makes environments for")


def _python(name: str, interpreter: str) -> Implementation:
    return Implementation(name, (interpreter, "-c", _PROGRAM))


def _nixl() -> dict[str, str]:
    """Have the programs use the library that this package uses, and its UCX."""
    try:
        path = _library.choose(_library.find(os.environ)).path
    except ImportError as error:
        raise NotInstalledError(str(error)) from error
    return {_library.VARIABLE: path}


def _missing(name: str, verb: str) -> NotInstalledError:
    return NotInstalledError(
        f"{name} is not installed: `make bench-peers` in a checkout {verb} all of them, in {FOLDER}; "
        f"{FOLDER_VARIABLE} names another folder"
    )


def _has(python: str, module: str) -> bool:
    # Not imported: that takes minutes for some of them.
    program = f"import importlib.util as u, sys; sys.exit(u.find_spec({module.split('.')[0]!r}) is None)"
    return subprocess.run([python, "-c", program], check=False, stderr=subprocess.DEVNULL).returncode == 0
