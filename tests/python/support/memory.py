"""Memory with contents that tell where each byte belongs."""

import numpy as np


def pattern(size: int, seed: int = 0) -> np.ndarray:
    """An array of bytes, no two aligned words of which are equal; `seed` makes different ones."""
    words = np.arange(size // 4 + 1, dtype=np.uint32)
    words *= np.uint32(2654435761)
    words += np.uint32(seed * 40503 + 1)
    return words.view(np.uint8)[:size]


def is_pattern(memory: object, seed: int = 0) -> bool:
    """Whether a buffer holds exactly the pattern of its size."""
    array = np.frombuffer(memory, dtype=np.uint8)
    return np.array_equal(array, pattern(array.size, seed))


def blank(size: int) -> np.ndarray:
    """An array of bytes to receive into: mapped, and unlike any pattern."""
    return np.full(size, 0xEE, dtype=np.uint8)
