"""Memory to move, allocated and touched once a process."""

from __future__ import annotations

import mmap

import numpy as np

from .case import ARENA_BYTES, Case

MOST_SLICES = 2048
"""Of a shape; more than all the runs of its cases use in one process, where the size leaves room for them."""

OWNERS = 0x5A
READERS = 0xA5


class Arena:
    """Memory for each shape of transfer, cut into slices that do not overlap; at its end it starts anew.

    A block each, because NIXL does not find its way among ranges that lie within one another.
    """

    def __init__(self, fill: int) -> None:
        self._fill = fill
        self._blocks: dict[tuple[int, int, bool], np.ndarray] = {}
        self._next: dict[tuple[int, int, bool], int] = {}
        self.pools: dict[tuple[int, int, bool], object] = {}
        """What an implementation has made of the whole of a shape's memory, which is to stay."""

    def block(self, case: Case) -> np.ndarray:
        """Get all the memory for one shape."""
        shape = case.shape
        if shape not in self._blocks:
            span = _span(case)
            slices = max(case.tasks, min(MOST_SLICES, ARENA_BYTES // span), 1)
            self._blocks[shape] = allocate(span * slices, huge=case.huge)
            self._blocks[shape][:] = self._fill
            self._next[shape] = 0
        return self._blocks[shape]

    def take(self, case: Case) -> list[np.ndarray]:
        """Cut out the ranges of one transfer: as long as there are any, ones that none has used before."""
        block, shape = self.block(case), case.shape
        start = self._next[shape]
        self._next[shape] = (start + _span(case)) % len(block)
        each = case.size // case.blocks
        stride = each if case.blocks == 1 else 2 * each
        return [block[start + index * stride :][:each] for index in range(case.blocks)]


def allocate(size: int, *, huge: bool) -> np.ndarray:
    """Get memory with huge pages, or with ordinary ones."""
    # Not by numpy, which asks for huge pages itself from some size on.
    mapping = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    mapping.madvise(mmap.MADV_HUGEPAGE if huge else mmap.MADV_NOHUGEPAGE)
    return np.frombuffer(mapping, dtype=np.uint8)


def _span(case: Case) -> int:
    """Bytes from the start of a transfer's memory to that of the next: blocks lie apart by their own size."""
    return case.size if case.blocks == 1 else 2 * case.size


def mark(pieces: list[np.ndarray]) -> None:
    """Overwrite both ends with the reader's byte."""
    pieces[0][0] = pieces[-1][-1] = READERS


def check(pieces: list[np.ndarray]) -> None:
    """Raise unless the owner's bytes have arrived at both ends: a fast transfer of nothing would be no transfer."""
    if pieces[0][0] != OWNERS or pieces[-1][-1] != OWNERS:
        raise RuntimeError("the bytes did not arrive")
