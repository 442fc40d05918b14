"""Fills consecutive rows of a packed folder: what one process does at a time."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from roboflamingo.data.errors import DataError
from roboflamingo.data.images import resize_image
from roboflamingo.data.sources.base import Frame, Reader
from roboflamingo.data.store.arrays import Arrays, write_rows
from roboflamingo.data.store.images import encode, write_shard


@dataclass(frozen=True)
class Filled:
    """What a job has done.

    Attributes:
        first: its first row.
        rows: how many.
        checksums: of its rows in every array.
        shard: size and checksum of its compressed images; empty where there are none.
        clipped: rows whose action was clipped.
        beyond: the largest absolute value among these.
        damaged: rows that could not be read, and why.
    """

    first: int
    rows: int
    checksums: dict[str, int]
    shard: list[int] = field(default_factory=list)
    clipped: int = 0
    beyond: float = 0.0
    damaged: list[tuple[int, str]] = field(default_factory=list)


@dataclass(frozen=True)
class FillJob:
    """Consecutive rows of a packed folder.

    Attributes:
        reader: of these rows.
        target: the packed folder.
        arrays: all of its.
        names: what is read of a row.
        shots: the cameras whose images are compressed.
        first: the first row.
        rows: how many.
        leave_out: whether a row that cannot be read is left empty.
    """

    reader: Reader
    target: Path
    arrays: Arrays
    names: tuple[str, ...]
    shots: tuple[str, ...]
    first: int
    rows: int
    leave_out: bool

    def run(self) -> Filled:
        """Fills the rows.

        Raises:
            DataError: a row cannot be read, and is not to be left out. Names file and key.
            OSError: the disk is full. Names the file.
        """
        rows = {name: np.zeros((self.rows, *shape[1:]), kind) for name, (shape, kind) in self.arrays.items()}
        images = bytearray()
        damaged: list[tuple[int, str]] = []
        beyond = []
        for place, frame in enumerate(self.reader.frames(self.names)):
            if isinstance(frame, DataError):
                if not self.leave_out:
                    raise frame
                damaged.append((self.first + place, str(frame)))
            else:
                self._take(frame, place, rows, images)
                beyond.append(frame.beyond)
        checksums = {
            name: write_rows(self.target, name, self.arrays[name][0], self.first, block) for name, block in rows.items()
        }
        shard = list(write_shard(self.target, self.first, images)) if self.shots else []
        clipped = sum(value > 0 for value in beyond)
        return Filled(self.first, self.rows, checksums, shard, clipped, max(beyond, default=0.0), damaged)

    def _take(self, frame: Frame, place: int, rows: dict[str, np.ndarray], images: bytearray) -> None:
        rows["digests"][place] = frame.digest
        for name, value in frame.arrays.items():
            if name in self.shots:
                data = encode(value)
                rows["places"][place, self.shots.index(name)] = len(images), len(data), zlib.crc32(data)
                images += data
            elif value.ndim == 3:
                rows[name][place] = resize_image(value, self.arrays[name][0][1])
            else:
                rows[name][place] = value
