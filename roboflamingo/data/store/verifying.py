"""Whether the compressed images of a packed folder are whole."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from calvin_eval.system.machine import cores
from roboflamingo.data.store.arrays import checksum
from roboflamingo.data.store.images import shard_name


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
