"""Memory to move, allocated and touched once a process."""

from __future__ import annotations

import numpy as np
from plan import ARENA_BYTES

MOST_SLICES = 2048
"""Of a size; more than all the runs of its cases use in one process, where the size leaves room for them."""

OWNERS = 0x5A
READERS = 0xA5


class Arena:
    """Blocks of bytes, one for each size, cut into slices that do not overlap; at a block's end it starts anew.

    A block each, because NIXL does not find its way among ranges that lie within one another.
    """

    def __init__(self, fill: int) -> None:
        self._fill = fill
        self._blocks: dict[int, np.ndarray] = {}
        self._next: dict[int, int] = {}

    def block(self, size: int) -> np.ndarray:
        """Get the block for one size, as many slices of it as fit."""
        if size not in self._blocks:
            slices = max(1, min(MOST_SLICES, ARENA_BYTES // size))
            self._blocks[size] = np.full(size * slices, self._fill, dtype=np.uint8)
            self._next[size] = 0
        return self._blocks[size]

    def take(self, size: int) -> np.ndarray:
        """Cut out the next slice: one that no operation has used before, as a new tensor would be."""
        block = self.block(size)
        start = self._next[size]
        self._next[size] = (start + size) % len(block)
        return block[start : start + size]


def mark(piece: np.ndarray) -> None:
    """Overwrite both ends with the reader's byte."""
    piece[0] = piece[-1] = READERS


def check(piece: np.ndarray) -> None:
    """Raise unless the owner's bytes have arrived at both ends: a fast transfer of nothing would be no transfer."""
    if piece[0] != OWNERS or piece[-1] != OWNERS:
        raise RuntimeError("the bytes did not arrive")
