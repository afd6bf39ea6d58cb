"""The package's build backend: maturin's PEP 517 and PEP 660 hooks, with libclang at hand.

`pip install .` thereby needs cargo, g++ and Python only. `bindgen_env` says what is set and why.
"""

import os
from collections.abc import Mapping
from typing import Any

import maturin
from bindgen_env import bindgen_environment

__all__ = [
    "build_editable",
    "build_sdist",
    "build_wheel",
    "get_requires_for_build_editable",
    "get_requires_for_build_sdist",
    "get_requires_for_build_wheel",
    "prepare_metadata_for_build_editable",
    "prepare_metadata_for_build_wheel",
]

Settings = Mapping[str, Any] | None

# These compile nothing.
build_sdist = maturin.build_sdist
get_requires_for_build_sdist = maturin.get_requires_for_build_sdist
prepare_metadata_for_build_editable = maturin.prepare_metadata_for_build_editable
prepare_metadata_for_build_wheel = maturin.prepare_metadata_for_build_wheel


def get_requires_for_build_wheel(config_settings: Settings = None) -> list[str]:
    """Add libclang to what maturin asks for, unless the user points to one."""
    libclang = [] if "LIBCLANG_PATH" in os.environ else ["libclang>=16"]
    return [*maturin.get_requires_for_build_wheel(config_settings), *libclang]


get_requires_for_build_editable = get_requires_for_build_wheel


def build_wheel(wheel_directory: str, config_settings: Settings = None, metadata_directory: str | None = None) -> str:
    """Build the wheel with maturin."""
    os.environ.update(bindgen_environment())
    name: str = maturin.build_wheel(wheel_directory, config_settings, metadata_directory)
    return name


def build_editable(
    wheel_directory: str, config_settings: Settings = None, metadata_directory: str | None = None
) -> str:
    """Build the wheel of an editable installation with maturin."""
    os.environ.update(bindgen_environment())
    name: str = maturin.build_editable(wheel_directory, config_settings, metadata_directory)
    return name
