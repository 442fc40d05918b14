"""Arrays in rows, written in blocks and mapped into memory.

Rows are written with `pwrite` into space that was claimed before, so that a full disk is an error that names the file
and never a bus error. Whatever is damaged is noticed by its checksum.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import zlib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from calvin_eval.system.files import naming, reserve
from calvin_eval.system.machine import cores
from roboflamingo.data.errors import DataError
from roboflamingo.data.store.index import read_sealed, write_sealed

VERIFIED = "verified.json"
ALWAYS_VERIFIED = 4 << 30
"""Bytes up to which arrays are read and checked whenever they are opened; larger ones only after a change."""
CHUNK = 1 << 22
"""Bytes that are read at once."""

Arrays = Mapping[str, tuple[tuple[int, ...], type[np.generic]]]
"""Shape and type of each array."""


def size_of(arrays: Arrays) -> int:
    """Bytes of all arrays."""
    return sum(int(np.prod(shape)) * np.dtype(kind).itemsize for shape, kind in arrays.values())


def create_arrays(folder: Path, arrays: Arrays) -> None:
    """Makes the files of arrays and claims their space.

    Raises:
        OSError: the disk is too small. Names the file.
    """
    for name, (shape, kind) in arrays.items():
        path = folder / f"{name}.npy"
        with naming(path), path.open("wb") as file:
            header = _header(shape, kind)
            file.write(header)
            file.flush()
            size = len(header) + int(np.prod(shape)) * np.dtype(kind).itemsize
            try:
                reserve(file, size)
            except OSError as error:
                if error.errno not in (errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL, errno.ENOSYS):
                    raise
                os.truncate(file.fileno(), size)  # a file system that cannot claim space: rows may still not fit


def _header(shape: tuple[int, ...], kind: type[np.generic]) -> bytes:
    """How an .npy file of that shape and type begins."""
    header = io.BytesIO()
    descr = np.lib.format.dtype_to_descr(np.dtype(kind))
    np.lib.format.write_array_header_1_0(header, {"descr": descr, "fortran_order": False, "shape": shape})
    return header.getvalue()


def write_rows(folder: Path, name: str, shape: tuple[int, ...], first: int, rows: np.ndarray) -> int:
    """Writes rows of an array to the disk and returns their checksum.

    Args:
        folder: of the arrays.
        name: which array.
        shape: of the whole array.
        first: number of the first row.
        rows: (n, ...) of the array's type.

    Raises:
        OSError: the disk is full. Names the file.
    """
    path = folder / f"{name}.npy"
    data = np.ascontiguousarray(rows).data.cast("B")
    offset = len(_header(shape, rows.dtype.type)) + first * rows[0].nbytes
    with naming(path), path.open("r+b") as file:
        done = 0
        while done < len(data):
            done += os.pwrite(file.fileno(), data[done:], offset + done)
        os.fsync(file.fileno())
    return zlib.crc32(data)


def open_array(folder: Path, name: str, shape: tuple[int, ...], kind: type[np.generic]) -> np.ndarray:
    """An array mapped into memory, read-only.

    Raises:
        DataError: the file is missing, or not of that shape, type and length. Names it.
    """
    path, header = folder / f"{name}.npy", _header(shape, kind)
    size = len(header) + int(np.prod(shape)) * np.dtype(kind).itemsize
    try:
        with path.open("rb") as file:
            whole = file.read(len(header)) == header and os.fstat(file.fileno()).st_size == size
            if whole:
                mapped = np.memmap(file, kind, "r", offset=len(header), shape=shape)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error
    if not whole:
        raise DataError(f"{path} is damaged; pack the data set again")
    return mapped.view(np.ndarray)  # indexing an np.memmap costs a Python call for every slice


def checksum(path: Path, first: int = 0, count: int | None = None) -> int:
    """CRC-32 of so many bytes of a file from `first` on. They are read, not mapped, so that no memory counts them.

    Raises:
        OSError: the file cannot be read.
    """
    found, left = 0, os.stat(path).st_size - first if count is None else count
    with naming(path), path.open("rb", buffering=0) as file:
        while left > 0 and (part := os.pread(file.fileno(), min(CHUNK, left), first)):
            found, first, left = zlib.crc32(part, found), first + len(part), left - len(part)
    return found


def damaged_blocks(
    folder: Path,
    arrays: Arrays,
    checksums: Mapping[str, Mapping[str, int]],
    block: int,
    on_bytes: Callable[[int], object] = lambda count: None,
) -> Iterator[tuple[str, int]]:
    """Names of arrays and first rows of the blocks that are not what was written.

    Args:
        folder: of the arrays.
        arrays: their shapes and types.
        checksums: of every block by array and its first row.
        block: rows of a block.
        on_bytes: told how many bytes more were read.

    Raises:
        DataError: an array's file is missing or of another length.
    """
    for name, array in arrays.items():
        open_array(folder, name, *array)  # which looks at header and length

    def check(name: str, row: str, wanted: int) -> tuple[str, int, int, bool]:
        shape, kind = arrays[name]
        width = int(np.prod(shape[1:])) * np.dtype(kind).itemsize
        first, stop = int(row) * width, min(int(row) + block, shape[0]) * width
        found = checksum(folder / f"{name}.npy", len(_header(shape, kind)) + first, stop - first)
        return name, int(row), stop - first, found == wanted

    with ThreadPoolExecutor(cores()) as pool:  # reading and checksums leave Python's lock alone
        jobs = [
            pool.submit(check, name, row, wanted) for name in arrays for row, wanted in checksums.get(name, {}).items()
        ]
        try:
            for job in jobs:
                name, row, size, whole = job.result()
                on_bytes(size)
                if not whole:
                    yield name, row
        finally:
            pool.shutdown(cancel_futures=True)


def note_verified(folder: Path, arrays: Arrays) -> None:
    """Notes that the arrays, as they now lie there, are what was written. Nothing is noted where that cannot be."""
    stamps = _array_stamps(folder, arrays)
    if read_sealed(folder / VERIFIED) != stamps:
        with contextlib.suppress(OSError):  # read-only: they are checked again then
            write_sealed(folder / VERIFIED, stamps)


def needs_verifying(folder: Path, arrays: Arrays, together: int | None = None) -> bool:
    """Whether the blocks are to be read and checked: always in small folders, after any change in large ones.

    Args:
        folder: of the arrays.
        arrays: their shapes and types.
        together: bytes of all that is opened at once, where that is more than these arrays.
    """
    size = size_of(arrays) if together is None else together
    return size <= ALWAYS_VERIFIED or read_sealed(folder / VERIFIED) != _array_stamps(folder, arrays)


def _array_stamps(folder: Path, arrays: Arrays) -> dict[str, Any]:
    """Size and times of change of every array's file."""
    stamps = {}
    for name in arrays:
        status = (folder / f"{name}.npy").stat()
        stamps[name] = [status.st_size, status.st_mtime_ns, status.st_ctime_ns]
    return stamps
