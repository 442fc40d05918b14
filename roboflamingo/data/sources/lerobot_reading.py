"""Reads frames of a LeRobotDataset v3.0: numbers from its tables, images from its videos or tables."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np

from roboflamingo.data.checks import as_action, as_vector, check_image
from roboflamingo.data.errors import DataError
from roboflamingo.data.lerobot.layout import CHECKSUMS, INFO, Info
from roboflamingo.data.lerobot.tables import Episode, RowReader, numbers
from roboflamingo.data.sources.base import ACTIONS, DIGEST_BYTES, Frame, Reader
from roboflamingo.data.sources.columns import ActionColumns, Columns, StateColumns
from roboflamingo.data.sources.lerobot_images import kept_images, row_name, video_images

ACTION = "action"
"""The feature of the recorded actions."""


@dataclass(frozen=True)
class Vectors:
    """The features of a set that are read, by the names that they have here.

    Attributes:
        cameras: feature by camera.
        state: feature of each recorded vector.
        privileged: feature of each privileged state.
    """

    cameras: Mapping[str, str]
    state: Mapping[str, str]
    privileged: Mapping[str, str]


@dataclass(frozen=True)
class _Rows:
    """The numbers of an episode's frames.

    Attributes:
        table: the rows, a pyarrow table.
        times: (n,) seconds from the episode's start.
        arrays: states and privileged states (n, m) by name.
        actions: (n, A), or None where they are not asked for.
    """

    table: Any
    times: np.ndarray
    arrays: Mapping[str, np.ndarray]
    actions: np.ndarray | None


@dataclass(frozen=True)
class LeRobotReader(Reader):
    """Some frames of a set.

    Attributes:
        info: of the set.
        parts: episodes, each with its frames that are wanted, ascending.
        vectors: features by name.
        columns: what their columns mean.
        out_of_range: what happens to actions beyond their bounds.
        checksums: SHA-256 of files as they were written, by path within the set; of as many as are known.
    """

    info: Info
    parts: tuple[tuple[Episode, tuple[int, ...]], ...]
    vectors: Vectors
    columns: Columns
    out_of_range: Literal["error", "clip"]
    checksums: Mapping[str, str]

    def frames(self, names: tuple[str, ...]) -> Iterator[Frame | DataError]:
        """See `Reader`."""
        actions, states = column_readers(self.info, self.vectors, self.columns)
        columns = self._needed(names, states)
        images = [key for name, key in self.vectors.cameras.items() if name in names and self._kept(key)]
        rows = RowReader(self.info, [*columns, *images, "timestamp"])
        for episode, wanted in self.parts:
            try:
                self._check_whole(episode)
                read = self._read(rows, episode, names, columns, actions, states)
            except DataError as error:
                yield from (error for _ in wanted)
                continue
            sources = self._images(episode, wanted, names, read)
            digest = self._digest(episode)
            for frame in wanted:
                pictures = {name: next(source) for name, source in sources.items()}
                try:
                    yield self._frame(episode, frame, pictures, read, actions, digest)
                except DataError as error:
                    yield error

    def digests(self) -> Iterator[np.ndarray]:
        """See `Reader`."""
        for episode, wanted in self.parts:
            digest = self._digest(episode)
            yield from (_row_digest(digest, episode, frame) for frame in wanted)

    def _kept(self, key: str) -> bool:
        """Whether a camera's images are in the tables."""
        return self.info.features[key].dtype == "image"

    def _needed(self, names: tuple[str, ...], states: StateColumns) -> dict[str, int]:
        """The features of numbers that are read, with the length of each."""
        keys = [self.vectors.state[v] for name in names if name in states.sizes for v in states.needed(name)]
        keys += [self.vectors.privileged[name] for name in names if name in self.vectors.privileged]
        keys += [ACTION] * (ACTIONS in names)
        return {key: self.info.features[key].shape[0] for key in keys}

    def _read(
        self,
        rows: RowReader,
        episode: Episode,
        names: tuple[str, ...],
        columns: Mapping[str, int],
        actions: ActionColumns,
        states: StateColumns,
    ) -> _Rows:
        """The numbers of an episode.

        Raises:
            DataError: the table is damaged, or does not fit. Names file and column.
        """
        path = self.info.data_file(episode.chunk, episode.file)
        table = rows.rows(episode)
        recorded = {key: numbers(path, key, table.column(key), size) for key, size in columns.items()}
        times = numbers(path, "timestamp", table.column("timestamp"), 1)[:, 0].astype(np.float64)
        _check_times(path, episode, times, self.info.fps)
        arrays = {n: recorded[key] for n, key in self.vectors.privileged.items() if n in names}
        for name in names:
            if name in states.sizes:
                vectors = {vector: recorded[self.vectors.state[vector]] for vector in states.needed(name)}
                arrays[name] = states.take(name, vectors)
        return _Rows(table, times, arrays, actions.take(recorded[ACTION]) if ACTIONS in names else None)

    def _images(
        self, episode: Episode, wanted: Sequence[int], names: tuple[str, ...], read: _Rows
    ) -> dict[str, Iterator[np.ndarray | DataError]]:
        """The images of every camera, frame by frame."""
        found = {}
        for name, key in self.vectors.cameras.items():
            if name not in names:
                continue
            if self._kept(key):
                found[name] = kept_images(self.info, episode, read.table.column(key), key, wanted)
            else:
                found[name] = video_images(self.info, episode, key, read.times[list(wanted)].tolist())
        return found

    def _frame(
        self,
        episode: Episode,
        frame: int,
        images: Mapping[str, np.ndarray | DataError],
        read: _Rows,
        actions: ActionColumns,
        digest: bytes | None,
    ) -> Frame:
        """One frame, checked.

        Raises:
            DataError: a value is not what it should be. Names it.
        """
        where = row_name(self.info, episode, frame)
        arrays: dict[str, np.ndarray] = {}
        for name, image in images.items():
            if isinstance(image, DataError):
                raise image
            check_image(where, name, image)
            arrays[name] = image
        for name, rows in read.arrays.items():
            row = rows[frame].astype(np.uint8) if rows.dtype == bool else rows[frame]
            arrays[name] = as_vector(where, name, row, rows.shape[1])
        beyond = 0.0
        if read.actions is not None:
            taken = read.actions[frame]
            arrays[ACTIONS], beyond = as_action(where, ACTION, taken, actions.spec, self.out_of_range)
        return Frame(arrays, _row_digest(digest, episode, frame), beyond)

    def _check_whole(self, episode: Episode) -> None:
        """Refuses files that are not as they were written: neither mp4 nor every parquet file holds checksums.

        Raises:
            DataError: one is not. Names it.
        """
        for path in episode_files(self.info, episode):
            known = self.checksums.get(path.relative_to(self.info.folder).as_posix())
            status = stamp_of((path,))
            if known is not None and status[0] >= 0 and _file_digest(path, *status).hex() != known:
                raise DataError(
                    f"{path} is not as it was written: its SHA-256 is not that of {CHECKSUMS}; if it was changed "
                    f"on purpose, remove {self.info.folder / CHECKSUMS}"
                )

    def _digest(self, episode: Episode) -> bytes | None:
        """Of the contents of an episode's files; None where one is missing."""
        digest = hashlib.sha256()
        for path in episode_files(self.info, episode):
            status = stamp_of((path,))
            if status[0] < 0:
                return None
            digest.update(_file_digest(path, *status))
        return digest.digest()


def column_readers(info: Info, vectors: Vectors, columns: Columns) -> tuple[ActionColumns, StateColumns]:
    """What makes actions and states of a set's vectors.

    Raises:
        DataError: a column is not there.
    """
    where, features = str(info.folder / INFO), info.features
    action = features[ACTION]
    sizes = {name: features[key].shape[0] for name, key in vectors.state.items()}
    names = {name: features[key].names for name, key in vectors.state.items()}
    return (
        ActionColumns(columns, action.shape[0], action.names, f"{ACTION} of {where}"),
        StateColumns(columns, sizes, names, where),
    )


def episode_files(info: Info, episode: Episode) -> tuple[Path, ...]:
    """The table and the videos of an episode."""
    videos = [info.video_file(key, part.chunk, part.file) for key, part in episode.videos.items()]
    return (info.data_file(episode.chunk, episode.file), *videos)


def stamp_of(paths: tuple[Path, ...]) -> tuple[int, int, int]:
    """Sizes together, and the latest times of change; -1 where a file is missing."""
    try:
        found = [path.stat() for path in paths]
    except OSError:
        return (-1, -1, -1)
    return sum(s.st_size for s in found), max(s.st_mtime_ns for s in found), max(s.st_ctime_ns for s in found)


@lru_cache(maxsize=64)
def _file_digest(path: Path, size: int, changed: int, status_changed: int) -> bytes:
    """SHA-256 of a file; read anew where its stamp has changed."""
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.digest()


def _row_digest(files: bytes | None, episode: Episode, frame: int) -> np.ndarray:
    """(16,) uint8 from the digest of files; zeros where there is none."""
    if files is None:
        return np.zeros(DIGEST_BYTES, np.uint8)
    text = files + f"{episode.index} {frame}".encode()
    return np.frombuffer(hashlib.blake2b(text, digest_size=DIGEST_BYTES).digest(), np.uint8)


def _check_times(path: Path, episode: Episode, times: np.ndarray, fps: float) -> None:
    """Refuses timestamps that are not those of the rate, as frames are found in the videos by them.

    Raises:
        DataError: one is off by more than a quarter of a frame, or a video has more or fewer frames. Names it.
    """
    expected = np.arange(len(times)) / fps
    wrong = np.flatnonzero(~(np.abs(times - expected) < 0.25 / fps))
    if len(wrong):
        place = int(wrong[0])
        raise DataError(
            f"{path}: frame {place} of episode {episode.index} has the timestamp {times[place]:.4f}; at {fps:g} frames "
            f"a second it should be {expected[place]:.4f}"
        )
    for key, part in episode.videos.items():
        frames = (part.stop - part.start) * fps
        if abs(frames - episode.length) > 1.5:
            raise DataError(
                f"{path}: episode {episode.index} has {episode.length} rows, and {key} {frames:.0f} frames between "
                f"{part.start:.4f} s and {part.stop:.4f} s"
            )
