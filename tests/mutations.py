"""Damages files as disks, transfers and editors do, by seed. `damaged(content, count)` is what the tests use."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np


def damaged(content: bytes, count: int, seed: int = 0) -> Iterator[bytes]:
    """So many damaged copies of a file's bytes, none equal to the original."""
    rng = np.random.default_rng(seed)
    kinds = (_flip, _flip_some, _cut, _zero, _insert, _remove, _swap, _empty)
    made = 0
    while made < count:
        copy = kinds[made % len(kinds)](bytearray(content), rng)
        if bytes(copy) == content:  # zeros over zeros, say
            copy = _flip(bytearray(content), rng)
        made += 1
        yield bytes(copy)


def _place(content: bytearray, rng: np.random.Generator) -> int:
    return int(rng.integers(max(1, len(content))))


def _flip(content: bytearray, rng: np.random.Generator) -> bytearray:
    """One bit."""
    content[_place(content, rng)] ^= 1 << int(rng.integers(8))
    return content


def _flip_some(content: bytearray, rng: np.random.Generator) -> bytearray:
    for _ in range(int(rng.integers(2, 9))):
        _flip(content, rng)
    return content


def _cut(content: bytearray, rng: np.random.Generator) -> bytearray:
    """A transfer that ended early."""
    return content[: _place(content, rng)]


def _zero(content: bytearray, rng: np.random.Generator) -> bytearray:
    """A block that was never written."""
    first = _place(content, rng)
    last = min(len(content), first + int(rng.integers(1, 513)))
    content[first:last] = bytes(last - first)
    return content


def _insert(content: bytearray, rng: np.random.Generator) -> bytearray:
    place = _place(content, rng)
    content[place:place] = rng.bytes(int(rng.integers(1, 17)))
    return content


def _remove(content: bytearray, rng: np.random.Generator) -> bytearray:
    place = _place(content, rng)
    del content[place : place + int(rng.integers(1, 17))]
    return content


def _swap(content: bytearray, rng: np.random.Generator) -> bytearray:
    """Two blocks in each other's place."""
    size = max(1, min(64, len(content) // 4))
    a, b = _place(content, rng), _place(content, rng)
    a, b = min(a, len(content) - size), min(b, len(content) - size)
    content[a : a + size], content[b : b + size] = content[b : b + size], content[a : a + size]
    return content


def _empty(content: bytearray, rng: np.random.Generator) -> bytearray:
    return bytearray()
