"""What sources share that keep whole trajectories, each with one instruction, in a single HDF5 file."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol, TypeAlias

import numpy as np

from roboflamingo.data.errors import DataError
from roboflamingo.data.sources.base import DIGEST_BYTES, Frame, Reader, Sample, Source, SourceOptions
from roboflamingo.data.sources.hdf5 import row_digest

Make: TypeAlias = Callable[[str, Mapping[str, np.ndarray]], tuple[dict[str, np.ndarray], float]]
"""A row's place and recorded values -> its checked arrays by name, and the largest action that was clipped, or 0."""


class HasRows(Protocol):
    """One episode of the file."""

    @property
    def instruction(self) -> str:
        """What it carries out."""

    @property
    def length(self) -> int:
        """How many rows it gives."""


class TrajectorySource(Source):
    """A source whose rows are those of one trajectory after another.

    Args:
        path: see `Source`.
        split: likewise.
        options: likewise.
        file: that holds all rows.
        trajectories: at least one, each of at least one row.
    """

    def __init__(
        self, path: Path, split: str, options: SourceOptions, file: Path, trajectories: Sequence[HasRows]
    ) -> None:
        super().__init__(path, split, options)
        self.file = file
        self._told = [each.instruction for each in trajectories]
        ends = np.cumsum([each.length for each in trajectories])
        self._episodes = np.stack([np.append(0, ends[:-1]), ends], axis=1).astype(np.int64)

    def __len__(self) -> int:
        return int(self._episodes[-1, 1])

    @property
    def episodes(self) -> np.ndarray:
        """See `Source`."""
        return self._episodes

    @property
    def samples(self) -> tuple[Sample, ...]:
        """See `Source`."""
        pairs = zip(self._episodes.tolist(), self._told, strict=True)
        return tuple(Sample(first, stop, instruction=text, task=text) for (first, stop), text in pairs)

    def stamps(self, rows: np.ndarray) -> np.ndarray:
        """See `Source`."""
        status = self.file.stat()
        stamp = np.array([status.st_size, status.st_mtime_ns, status.st_ctime_ns], np.int64)
        return np.tile(stamp, (len(rows), 1))

    def stamp(self) -> str:
        """See `Source`."""
        return f"{self.notes} {self.stamps(np.zeros(1))[0].tolist()}"

    def place(self, row: int) -> tuple[int, int]:
        """The trajectory, and the step in it, of a row."""
        number = int(np.searchsorted(self._episodes[:, 1], row, side="right"))
        return number, row - int(self._episodes[number, 0])

    def steps(self, rows: np.ndarray) -> Iterator[tuple[int, tuple[int, ...]]]:
        """The trajectories of rows (n,), ascending, each with the steps that are wanted of it."""
        places = np.searchsorted(self._episodes[:, 1], rows, side="right")
        for number in np.unique(places).tolist():
            yield number, tuple((rows[places == number] - self._episodes[number, 0]).tolist())


class TrajectoryReader(Reader):
    """A reader that gets a row's arrays at once, and makes frames of them."""

    @abstractmethod
    def rows(self) -> Iterator[tuple[str, dict[str, np.ndarray] | DataError]]:
        """Every row's place, for messages, and all that is recorded of it or what is wrong."""

    @abstractmethod
    def maker(self, names: tuple[str, ...]) -> Make:
        """Makes of a row's place and values the named arrays, checked, and the largest action that was clipped.

        What it returns raises `DataError` where a value is not what it should be.
        """

    def frames(self, names: tuple[str, ...]) -> Iterator[Frame | DataError]:
        """See `Reader`."""
        make = self.maker(names)
        for where, values in self.rows():
            try:
                if isinstance(values, DataError):
                    raise values
                arrays, beyond = make(where, values)
                yield Frame(arrays, row_digest(values), beyond)
            except DataError as error:
                yield error

    def digests(self) -> Iterator[np.ndarray]:
        """See `Reader`."""
        for _, values in self.rows():
            yield np.zeros(DIGEST_BYTES, np.uint8) if isinstance(values, DataError) else row_digest(values)
