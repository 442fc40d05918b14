"""Whether a packed folder is whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from calvin_eval.system.machine import cores
from roboflamingo.data.errors import DataError
from roboflamingo.data.store.arrays import checksum, damaged_blocks
from roboflamingo.data.store.images import shard_name
from roboflamingo.data.store.index import arrays_of


def shard_problem(folder: Path, index: Mapping[str, Any]) -> str | None:
    """A shard that is missing or of another size. Their content is checked image by image, when it is read."""
    for first, (size, _) in index["shards"].items():
        path = folder / shard_name(int(first))
        try:
            found = path.stat().st_size
        except OSError as error:
            return f"{path}: {error.strerror}"
        if found != size:
            return f"{path} has {found} bytes, and {size} were written"
    return None


def problems_of(
    folder: Path, index: Mapping[str, Any], on_bytes: Callable[[int], object] = lambda count: None
) -> Iterator[str]:
    """All that is not as it was written, each with its file.

    Args:
        folder: the packed folder.
        index: its index.
        on_bytes: told how many bytes more were read.
    """
    block = int(index["block"])
    for name, array in arrays_of(index).items():
        blocks = {name: index["blocks"][name]}
        try:
            for _, row in damaged_blocks(folder, {name: array}, blocks, block, on_bytes):
                yield f"{folder / name}.npy is damaged in rows {row} to {row + block - 1}"
        except DataError as error:
            yield str(error)
    shards = {int(first): written for first, written in index["shards"].items()}
    for first in sorted(damaged_shards(folder, shards, on_bytes)):
        yield f"{folder / shard_name(first)} is damaged or missing"


def damaged_shards(
    folder: Path,
    shards: Mapping[int, Sequence[int]],
    on_bytes: Callable[[int], object] = lambda count: None,
) -> set[int]:
    """The first rows of the shards that are not what was written.

    Args:
        folder: the packed folder.
        shards: size and checksum of each, by its first row.
        on_bytes: told how many bytes more were read.
    """

    def whole(first: int) -> bool:
        size, wanted = shards[first]
        try:
            path = folder / shard_name(first)
            found = path.stat().st_size == size and checksum(path) == wanted
        except OSError:
            found = False
        on_bytes(size)
        return found

    with ThreadPoolExecutor(cores()) as pool:
        return {first for first, fine in zip(shards, pool.map(whole, shards), strict=True) if not fine}
