"""By how many pixels images are moved before their tokens are kept."""

from __future__ import annotations

import numpy as np

Shift = tuple[int, int]
"""Pixels down and right."""


def shifts_of(largest: int, count: int) -> tuple[Shift, ...]:
    """The shifts of a camera's images: none first, the others drawn without repetition.

    The draw depends on `largest` alone, so that fewer shifts are the first of more, and runs of any seed share them.

    Args:
        largest: pixels in either direction.
        count: how many; there are at most (2 largest + 1)^2.
    """
    span = range(-largest, largest + 1)
    others = [(down, right) for down in span for right in span if (down, right) != (0, 0)]
    order = np.random.default_rng(largest).permutation(len(others))
    return ((0, 0), *(others[place] for place in order[: max(0, count - 1)].tolist()))


def shifted(images: np.ndarray, shift: Shift) -> np.ndarray:
    """Images (N, H, W, C) moved as `policy.inputs.random_shift` moves them, edges repeated."""
    if shift == (0, 0):
        return images
    height, width = images.shape[1:3]
    rows = np.clip(np.arange(height) + shift[0], 0, height - 1)
    columns = np.clip(np.arange(width) + shift[1], 0, width - 1)
    return images[:, rows[:, None], columns]
