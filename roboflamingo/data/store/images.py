"""Compressed images: one JPEG each, many in a file, every one with its checksum.

JPEG at quality 90 with full colour resolution. Measured on the static images of the play table, 200 pixels a side
(`benchmarks/store.py --codecs`, one thread):

    JPEG 90 4:4:4   16.7 kB   37 dB (44 dB once resized to 96 pixels)   0.23 ms to read
    JPEG 90 4:2:0   13.4 kB   34 dB (38 dB)                             0.18 ms
    WebP 90          9.2 kB   35 dB                                     0.71 ms
    WebP lossless   14.3 kB   exact; 79 kB with a camera's noise        0.46 ms
    PNG             17.2 kB   exact; 76 kB with a camera's noise        0.50 ms
    H.264, crf 18    3.9 kB   34 dB, a key frame every 2 frames         1.0 ms for a frame drawn at random
                     1.0 kB   35 dB, a key frame every 30               2.6 ms

So with both cameras a frame takes a tenth of CALVIN's files, and windows are read at random the soonest. simplejpeg
decodes in 0.23 ms where Pillow and torchvision take 0.32 and 0.31, the same pixels: with resizing, a fifth more windows
a second. Video is for exchange: LeRobot sets are written and read as such.
"""

from __future__ import annotations

import functools
import os
import zlib
from pathlib import Path

import numpy as np
import simplejpeg

from calvin_eval.system.files import naming
from roboflamingo.data.errors import DataError

QUALITY = 90
OPEN_FILES = 128
"""Shards that a process keeps open; most systems allow 1024 files."""


def encode(image: np.ndarray) -> bytes:
    """An image (H, W, 3) uint8 as JPEG."""
    data: bytes = simplejpeg.encode_jpeg(np.ascontiguousarray(image), QUALITY, colorsubsampling="444")
    return data


def decode(data: bytes) -> np.ndarray:
    """A JPEG as (H, W, 3) uint8.

    Raises:
        ValueError: it is none.
    """
    image: np.ndarray = simplejpeg.decode_jpeg(data)
    return image


def shard_name(first: int) -> str:
    """The file of the images of rows `first` and following."""
    return f"images-{first:09d}.bin"


def write_shard(folder: Path, first: int, images: bytearray) -> tuple[int, int]:
    """Writes images that lie one after another, and returns their file's size and checksum.

    Raises:
        OSError: the disk is full. Names the file.
    """
    path = folder / shard_name(first)
    with naming(path), path.open("wb") as file:
        file.write(images)
        file.flush()
        os.fsync(file.fileno())
    return len(images), zlib.crc32(images)


class ShardReader:
    """Reads single images of a packed folder. Nothing is mapped, so that memory stays flat however many are read.

    Args:
        folder: the packed folder.
        places: (N, C, 3) uint32, offset, size and checksum of the image of every row and camera.
        rows: of a shard.
    """

    def __init__(self, folder: Path, places: np.ndarray, rows: int) -> None:
        self._folder, self._places, self._rows = folder, places, rows
        self._open = functools.lru_cache(OPEN_FILES)(self._opened)

    def _opened(self, shard: int) -> _Handle:
        return _Handle(self._folder / shard_name(shard * self._rows))

    def read(self, row: int, camera: int) -> np.ndarray:
        """One image, (H, W, 3) uint8 at its recorded size.

        Raises:
            DataError: it is damaged. Names file and row.
        """
        offset, size, wanted = self._places[row, camera].tolist()
        handle = self._open(row // self._rows)
        data = os.pread(handle.number, size, offset)
        if not size or zlib.crc32(data) != wanted:
            raise DataError(f"{handle.path} is damaged in row {row}; pack the data set again")
        return decode(data)


class _Handle:
    """An open file that is closed when nobody needs it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.number = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error.strerror or error}") from error

    def __del__(self) -> None:
        if hasattr(self, "number"):
            os.close(self.number)
