"""Packed folders as a source: what `roboflamingo data pack` made is inspected, converted and read like any data set.

Images are as they were packed: at their recorded size and once through JPEG, or at a policy's size.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import numpy as np

from calvin_eval.specs import RobotSpec
from roboflamingo.data.errors import DataError
from roboflamingo.data.sources.base import SPLITS, Frame, Reader, Sample, Source, SourceOptions
from roboflamingo.data.store.index import INDEX, read_index
from roboflamingo.data.store.reading import PackedFolder


@dataclass(frozen=True)
class PackedReader(Reader):
    """Some rows of a packed folder.

    Attributes:
        folder: the packed folder.
        rows: (n,) int64.
        problems: what was wrong with a row when it was packed.
    """

    folder: Path
    rows: np.ndarray
    problems: dict[int, str]

    def frames(self, names: tuple[str, ...]) -> Iterator[Frame | DataError]:
        """See `Reader`."""
        packed = PackedFolder(self.folder)
        packed.threads = 1
        for row in self.rows.tolist():
            if row in self.problems:
                yield DataError(f"{self.folder}, row {row}: {self.problems[row]}")
                continue
            try:
                arrays = {name: packed.take(name, np.array([row]))[0] for name in names}
            except DataError as error:
                yield error
                continue
            yield Frame(arrays, packed.digests(np.array([row]))[0])

    def digests(self) -> Iterator[np.ndarray]:
        """See `Reader`."""
        yield from PackedFolder(self.folder).digests(self.rows)


class PackedSource(Source):
    """One packed split. What its source left out cannot be had from it."""

    kind: ClassVar[str] = "packed"

    def __init__(self, path: Path, split: str, options: SourceOptions | None = None) -> None:
        super().__init__(path, split, options or SourceOptions())
        self.folder = path / split
        self._index = read_index(self.folder)

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """See `Source`."""
        return any((path / split / INDEX).is_file() for split in SPLITS)

    @classmethod
    def splits(cls, path: Path) -> tuple[str, ...]:
        """See `Source`."""
        return tuple(split for split in SPLITS if (path / split / INDEX).is_file())

    @cached_property
    def _packed(self) -> PackedFolder:
        return PackedFolder(self.folder)

    @cached_property
    def spec(self) -> RobotSpec:
        """See `Source`. Of what was packed, and no more."""
        return self._packed.held

    def __len__(self) -> int:
        return self._packed.frames

    @property
    def episodes(self) -> np.ndarray:
        """See `Source`."""
        return self._packed.episodes

    @property
    def annotated(self) -> bool:
        """See `Source`."""
        return bool(self._index["samples"])

    @cached_property
    def samples(self) -> tuple[Sample, ...]:
        """See `Source`."""
        return tuple(self._packed.samples())

    def name(self, row: int) -> str:
        """See `Source`."""
        return f"{self.folder}, row {row}"

    @property
    def notes(self) -> str:
        """See `Source`."""
        told = json.dumps([self._index["content"], self._index["samples"], self._index["episodes"]])
        return hashlib.sha256(told.encode()).hexdigest()

    def stamps(self, rows: np.ndarray) -> np.ndarray:
        """See `Source`: those of the index, which is written anew with every packing."""
        status = (self.folder / INDEX).stat()
        return np.tile(np.array([status.st_size, status.st_mtime_ns, status.st_ctime_ns], np.int64), (len(rows), 1))

    def stamp(self) -> str:
        """See `Source`."""
        return f"{self.notes}:{(self.folder / INDEX).stat().st_mtime_ns}"

    def reader(self, rows: np.ndarray) -> PackedReader:
        """See `Source`."""
        chosen = set(rows.tolist())
        problems = {row: message for row, message in self._index["damaged"] if row in chosen}
        return PackedReader(self.folder, rows, problems)
