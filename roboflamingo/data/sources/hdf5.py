"""HDF5 files, read block by block. Nothing in them is run, and they lead to no other file."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from calvin_eval.system.errors import MissingExtraError
from roboflamingo.data.errors import DataError
from roboflamingo.data.sources.base import DIGEST_BYTES

MAGIC = b"\x89HDF\r\n\x1a\n"
BLOCK_BYTES = 32 << 20
"""Of one array that are read at once."""


def need_h5py() -> ModuleType:
    """The library h5py.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        import h5py
    except ImportError as error:
        raise MissingExtraError("HDF5 files need the h5py package: pip install 'roboflamingo[hdf5]'") from error
    found: ModuleType = h5py
    return found


def is_hdf5(path: Path) -> bool:
    """Whether a file begins as HDF5 files do."""
    try:
        with path.open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """An HDF5 file for reading.

    Raises:
        DataError: it is missing or damaged, also where reading it in the `with` block fails.
    """
    h5py = need_h5py()
    if not path.is_file():
        raise DataError(f"{path} is missing")
    try:
        with h5py.File(path, "r") as file:
            yield file
    except DataError:
        raise
    except (OSError, RuntimeError, KeyError, ValueError, TypeError) as error:  # what h5py raises of damage
        raise DataError(f"{path} cannot be read: {error}") from error


def array_of(path: Path, group: Any, name: str) -> Any:
    """An array of a group, not read yet.

    Raises:
        DataError: it is not there, is no array of numbers, or lies in another file. Names file and array.
    """
    h5py = need_h5py()
    where = f"{path}: {group.name.rstrip('/')}/{name}"
    link = group.get(name, getlink=True)
    if isinstance(link, h5py.ExternalLink):
        raise DataError(f"{where} lies in another file, {link.filename}; data sets of several files are not read")
    found = group.get(name)
    if not isinstance(found, h5py.Dataset):
        raise DataError(f"{where} is missing; there are {', '.join(group) or 'none'}")
    if found.is_virtual or found.external:
        raise DataError(f"{where} lies in other files; data sets of several files are not read")
    if found.dtype.kind not in "fiub" or not found.ndim:
        raise DataError(f"{where} is {found.dtype} {found.shape}; rows of numbers are needed")
    return found


def blocks(path: Path, arrays: Mapping[str, Any], rows: Sequence[int]) -> Iterator[dict[str, np.ndarray] | DataError]:
    """Rows of arrays, one after another, read in blocks that are bounded in size.

    Args:
        path: for messages.
        arrays: by name, each (N, ...).
        rows: ascending.

    Yields:
        For every row its values by name, or what is wrong with it.
    """
    widest = max(max(1, array.dtype.itemsize * int(np.prod(array.shape[1:]))) for array in arrays.values())
    size = max(1, BLOCK_BYTES // widest)
    for first in range(0, len(rows), size):
        wanted = rows[first : first + size]
        start, stop = wanted[0], wanted[-1] + 1
        try:
            loaded = {name: array[start:stop] for name, array in arrays.items()}
        except Exception as error:  # damage makes h5py raise almost anything
            for row in wanted:
                yield DataError(f"{path}: rows {start} to {stop - 1} cannot be read: {error} (row {row})")
            continue
        for row in wanted:
            yield {name: values[row - start] for name, values in loaded.items()}


def row_digest(values: Mapping[str, np.ndarray]) -> np.ndarray:
    """(16,) uint8 of everything that a row holds."""
    digest = hashlib.blake2b(digest_size=DIGEST_BYTES)
    for name in sorted(values):
        value = np.ascontiguousarray(values[name])
        digest.update(f"{name} {value.dtype.str} {value.shape}".encode())
        digest.update(value.tobytes())
    return np.frombuffer(digest.digest(), np.uint8)
