"""How long things may take and how much memory may stay pinned: the defaults, the environment and the checks."""

from __future__ import annotations

import os
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final, TypeAlias


class Default(Enum):
    """The type of `DEFAULT`."""

    DEFAULT = "DEFAULT"

    def __repr__(self) -> str:
        return self.value


DEFAULT: Final = Default.DEFAULT
"""Stands for the connector's own value, where None means no limit."""

Seconds: TypeAlias = float | Default | None
"""A limit in seconds; None: no limit."""

_PREFIX: Final = "DYNAMO_NIXL_"
_MOST_LANES: Final = 64
_GIB: Final = 1 << 30
_ENDLESS: Final = 1 << 63


@dataclass(frozen=True, slots=True)
class Settings:
    """A connector's values. Times in seconds, sizes in bytes; None: no limit."""

    lease: float | None
    grace: float | None
    stall_timeout: float | None
    timeout: float | None
    keepalive: float | None
    quarantine_limit: int | None
    copy_lanes: int | None = None
    """Agents that move the bytes of big transfers; None: as many as suit the machine. By environment only."""

    @classmethod
    def of(
        cls,
        *,
        lease: Seconds,
        grace: Seconds,
        stall_timeout: Seconds,
        timeout: Seconds,
        keepalive: Seconds,
        quarantine_limit: int | Default | None,
    ) -> Settings:
        """Take what is given, then what the environment says, then the defaults.

        Raises
        ------
        TypeError
            For what is no number.
        ValueError
            For a number that is negative or not a number; for a variable of the environment, with its name.
        """
        return cls(
            lease=_chosen("lease", lease, 600.0),
            grace=_chosen("grace", grace, 30.0),
            stall_timeout=_chosen("stall_timeout", stall_timeout, 30.0),
            timeout=_chosen("timeout", timeout, None),
            keepalive=_chosen("keepalive", keepalive, 5.0),
            quarantine_limit=_bytes(_chosen("quarantine_limit", quarantine_limit, _GIB)),
            copy_lanes=_count("copy_lanes", most=_MOST_LANES),
        )


def seconds(name: str, value: Any, default: float | None) -> float | None:
    """Check a limit that a call was given. Raises TypeError and ValueError, naming it."""
    if value is DEFAULT:
        return default
    if value is None:
        return None
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise TypeError(f"{name} is a number or None (no limit), got {type(value).__name__}")
    if not value >= 0:
        raise ValueError(f"{name} must be a number that is not negative: {value!r}")
    # Beyond what a machine word holds, which is longer and more than anything lasts or is.
    return None if value >= _ENDLESS else value


def _chosen(name: str, given: Any, default: float | None) -> float | None:
    if given is not DEFAULT:
        return seconds(name, given, None)
    variable = _PREFIX + name.upper()
    text = os.environ.get(variable, "").strip()
    if not text:
        return default
    if text.lower() == "none":
        return None
    try:
        return seconds(name, float(text), None)
    except ValueError:
        raise ValueError(f"{variable} must be a number that is not negative, or none (no limit): {text!r}") from None


def _count(name: str, *, most: int) -> int | None:
    """Take what the environment says, if it says something."""
    variable = _PREFIX + name.upper()
    text = os.environ.get(variable, "").strip()
    if not text:
        return None
    if not (text.isascii() and text.isdigit() and int(text) <= most):
        raise ValueError(f"{variable} must be a whole number from 0 to {most}: {text!r}")
    return int(text)


def _bytes(value: float | None) -> int | None:
    return None if value is None else int(value)
