"""Forked children, which inherit objects but no threads.

What a thread of the parent held, nobody will ever release in a child: each module that keeps a lock makes a new one
there, by `os.register_at_fork`. Native state is made anew by itself, by who asks for it.
"""

from __future__ import annotations

import os

from .errors import ForkedError

_generation = 0


def generation() -> int:
    """Tell how many forks lie between the import of this package and this process."""
    return _generation


def refuse(made_in: int) -> None:
    """Raise where something was made before the fork that led to this process.

    Raises
    ------
    ForkedError
        If it was made in another `generation`.
    """
    if made_in != _generation:
        raise ForkedError(
            "it was made before this process was forked off, and belongs to the parent; "
            "make a new connector in this process"
        )


def _count() -> None:
    global _generation
    _generation += 1


os.register_at_fork(after_in_child=_count)
