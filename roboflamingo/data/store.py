"""The packed folder: arrays in rows, written in blocks whose checksums stand in a sealed index.

Rows are written with `pwrite` into space that was claimed before, so that a full disk is an error that names the file
and never a bus error. A packed folder is a cache: whatever of it is damaged is noticed here and packed again.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import os
import zlib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from calvin_eval.system.files import naming, reserve, write_json
from calvin_eval.system.machine import cores
from roboflamingo.data.errors import DataError
from roboflamingo.data.frames import HASH_BYTES, PackSettings, read_frame

FORMAT = 2
"""Raised when the layout of a packed folder changes, so that older ones are made again."""
BLOCK = 256
"""Rows that are written, and checked, at once."""
INDEX, VERIFIED, STAMPS = "index.json", "verified.json", "stamps.npy"
ALWAYS_VERIFIED = 4 << 30
"""Bytes up to which a packed folder is read and checked whenever it is opened; larger ones only after a change."""

Arrays = Mapping[str, tuple[tuple[int, ...], type[np.generic]]]


def stored_arrays(settings: PackSettings, frames: int) -> Arrays:
    """Shape and type of every array of a packed folder that is written in blocks."""
    return {**settings.arrays(frames), "digests": ((frames, HASH_BYTES), np.uint8)}


# --- JSON that knows whether it is whole ---------------------------------------------------------


def _seal(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def write_sealed(path: Path, content: dict[str, Any]) -> None:
    """Writes a JSON file with a checksum of its content, atomically.

    Raises:
        OSError: the disk is full, or the folder cannot be written to. Names the file.
    """
    content = json.loads(json.dumps(content))  # keys and tuples as they will come back
    write_json(path, {"seal": _seal(content), **content})


def read_sealed(path: Path) -> dict[str, Any] | None:
    """The content of a file that `write_sealed` wrote; None where it is missing or damaged."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(content, dict) or content.pop("seal", None) != _seal(content):
        return None
    return content


def read_index(folder: Path) -> dict[str, Any]:
    """The index of a packed folder.

    Raises:
        DataError: it is missing or damaged.
    """
    index = read_sealed(folder / INDEX)
    if index is None or index.get("format") != FORMAT:
        raise DataError(f"{folder / INDEX} is missing, damaged or of another version; pack the data set again")
    return index


# --- arrays --------------------------------------------------------------------------------------


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


# --- rows from frames ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Filled:
    """What a job has done.

    Attributes:
        first: its first row.
        rows: how many.
        checksums: of its rows in every array.
        clipped: frames whose relative action was clipped.
        beyond: the largest absolute value among these.
    """

    first: int
    rows: int
    checksums: dict[str, int]
    clipped: int
    beyond: float


@dataclass(frozen=True)
class FrameJob:
    """Consecutive rows of the packed arrays that one process fills.

    Attributes:
        source: the split folder.
        target: the folder of the packed arrays.
        settings: what is taken from a frame.
        total: rows of the whole arrays.
        first: the first row of this job.
        names: n files of frames.
        block_order: (n, 3) places of the red, blue and pink block in the recorded scene_obs.
    """

    source: Path
    target: Path
    settings: PackSettings
    total: int
    first: int
    names: tuple[str, ...]
    block_order: np.ndarray

    def run(self) -> Filled:
        """Fills the rows.

        Raises:
            DataError: a frame's file is broken. Names file and key.
            OSError: the disk is full. Names the file.
        """
        arrays = stored_arrays(self.settings, self.total)
        rows = {name: np.empty((len(self.names), *shape[1:]), kind) for name, (shape, kind) in arrays.items()}
        beyond = []
        for i, (name, order) in enumerate(zip(self.names, self.block_order, strict=True)):
            frame = read_frame(self.source / name, self.settings, order)
            rows["digests"][i] = frame.digest
            for key, value in frame.arrays.items():
                rows[key][i] = value
            beyond.append(frame.beyond)
        checksums = {
            name: write_rows(self.target, name, arrays[name][0], self.first, block) for name, block in rows.items()
        }
        return Filled(self.first, len(self.names), checksums, sum(b > 0 for b in beyond), max(beyond))


# --- is it whole? --------------------------------------------------------------------------------


def damaged_blocks(
    folder: Path,
    arrays: Arrays,
    checksums: Mapping[str, Mapping[str, int]],
    on_bytes: Callable[[int], object] = lambda count: None,
) -> Iterator[tuple[str, int]]:
    """Names of arrays and first rows of the blocks that are not what was written.

    Args:
        folder: of the arrays.
        arrays: their shapes and types.
        checksums: of every block by array and its first row.
        on_bytes: told how many bytes more were read.

    Raises:
        DataError: an array's file is missing or of another length.
    """
    opened = {name: open_array(folder, name, *array) for name, array in arrays.items()}

    def check(name: str, row: str, wanted: int) -> tuple[str, int, int, bool]:
        block = opened[name][int(row) : int(row) + BLOCK]
        return name, int(row), block.nbytes, zlib.crc32(block.data.cast("B")) == wanted

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


def needs_verifying(folder: Path, arrays: Arrays) -> bool:
    """Whether the blocks are to be read and checked: always in small folders, after any change in large ones."""
    size = sum(int(np.prod(shape)) * np.dtype(kind).itemsize for shape, kind in arrays.values())
    return size <= ALWAYS_VERIFIED or read_sealed(folder / VERIFIED) != _array_stamps(folder, arrays)


def _array_stamps(folder: Path, arrays: Arrays) -> dict[str, Any]:
    """Size and times of change of every array's file."""
    stamps = {}
    for name in arrays:
        status = (folder / f"{name}.npy").stat()
        stamps[name] = [status.st_size, status.st_mtime_ns, status.st_ctime_ns]
    return stamps
