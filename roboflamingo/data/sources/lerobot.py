"""LeRobotDataset v3.0 as a source.

`observation.images.front` is the camera `front`, `observation.state` the state `state`; every other row of numbers
under `observation.` is a state as well. What begins with `privileged.` is a privileged state, as our own writer names
CALVIN's scene. Depth images and everything else are left aside.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from calvin_eval.specs import RobotSpec
from calvin_eval.system.files import read_json
from roboflamingo.data.checks import as_action, as_vector, check_image
from roboflamingo.data.errors import DataError
from roboflamingo.data.lerobot.layout import INFO, TASKS, Info, read_info
from roboflamingo.data.lerobot.tables import Episode, RowReader, numbers, read_episodes, read_tasks
from roboflamingo.data.lerobot.video import read_frames, video_size
from roboflamingo.data.sources.base import ACTIONS, DIGEST_BYTES, Frame, Reader, Sample, Source, SourceOptions
from roboflamingo.data.sources.columns import ActionColumns, Columns, PartColumns, StateColumns

IMAGES, OBSERVATION, PRIVILEGED = "observation.images.", "observation.", "privileged."
ACTION = "action"
NOTE = "meta/roboflamingo.json"
"""Where our own writer says what states and parts of the action are called."""
SPLIT_NAMES = {"training": ("train", "training"), "validation": ("validation", "val", "valid", "eval", "test")}
"""What sets call the splits, most usual first."""


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


def find_vectors(info: Info) -> Vectors:
    """Which features are cameras, states and privileged states.

    Raises:
        DataError: two features would have one name, or there are no actions. Names them.
    """
    found: dict[str, dict[str, str]] = {"cameras": {}, "state": {}, "privileged": {}}
    for key, feature in info.features.items():
        if feature.camera:
            kind, name = "cameras", key.removeprefix(IMAGES).removeprefix(OBSERVATION)
        elif feature.vector and key.startswith(OBSERVATION):
            kind, name = "state", key.removeprefix(OBSERVATION)
        elif feature.vector and key.startswith(PRIVILEGED):
            kind, name = "privileged", key.removeprefix(PRIVILEGED)
        else:
            continue
        if any(name in names for names in found.values()):
            raise DataError(f"{info.folder / INFO}: two features would be called {name}; rename {key}")
        found[kind][name] = key
    if ACTION not in info.features or not info.features[ACTION].vector:
        raise DataError(f"{info.folder / INFO} has no feature {ACTION} of numbers; it has {', '.join(info.features)}")
    return Vectors(**found)


class LeRobotSource(Source):
    """One split of a LeRobotDataset v3.0. See `Source`."""

    kind = "lerobot"

    def __init__(self, path: Path, split: str, options: SourceOptions) -> None:
        super().__init__(path, split, options)
        self.info = read_info(path)
        self.tasks = read_tasks(self.info)
        first, stop = _bounds(self.info, split)
        self.entries = read_episodes(self.info)[first:stop]
        self._first = self.entries[0].first if self.entries else 0
        self.vectors = find_vectors(self.info)
        self.columns = _columns(path, options.columns)
        self.actions, self.states = _readers(self.info, self.vectors, self.columns)

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """See `Source`."""
        return (path / INFO).is_file()

    @classmethod
    def splits(cls, path: Path) -> tuple[str, ...]:
        """See `Source`."""
        info = read_info(path)
        return tuple(split for split in SPLIT_NAMES if split == "training" or _named(info, split))

    @cached_property
    def spec(self) -> RobotSpec:
        """See `Source`."""
        cameras = {}
        for name, key in self.vectors.cameras.items():
            if self.info.features[key].dtype == "video" and self.entries:
                part = self.entries[0].videos[key]
                cameras[name] = video_size(self.info.video_file(key, part.chunk, part.file))
            else:
                cameras[name] = self.info.features[key].image_size
        return RobotSpec(
            cameras=cameras,
            state=self.states.sizes,
            privileged={name: self.info.features[key].shape[0] for name, key in self.vectors.privileged.items()},
            actions=self.actions.spec,
            rate_hz=self.info.fps,
        )

    def __len__(self) -> int:
        return sum(episode.length for episode in self.entries)

    @cached_property
    def episodes(self) -> np.ndarray:
        """See `Source`."""
        bounds = [(e.first - self._first, e.first - self._first + e.length) for e in self.entries]
        return np.array(bounds, np.int64).reshape(-1, 2)

    @cached_property
    def samples(self) -> tuple[Sample, ...]:
        """See `Source`. Where the task changes within an episode, each stretch of one task is a sample."""
        found = []
        rows = RowReader(self.info, ["task_index"])
        for episode, (first, stop) in zip(self.entries, self.episodes.tolist(), strict=True):
            if len(episode.tasks) == 1:
                stretches = [(first, stop, episode.tasks[0])]
            else:
                tasks = self._row_tasks(rows, episode)
                cuts = [0, *(np.flatnonzero(np.diff(tasks)) + 1).tolist(), episode.length]
                stretches = [(first + start, first + end, self.tasks[tasks[start]]) for start, end in pairwise(cuts)]
            found += [Sample(start, end, instruction=text, task=text) for start, end, text in stretches if text.strip()]
        return tuple(found)

    def _row_tasks(self, rows: RowReader, episode: Episode) -> np.ndarray:
        """(length,) task number of every row of an episode."""
        path = self.info.data_file(episode.chunk, episode.file)
        tasks = numbers(path, "task_index", rows.rows(episode).column("task_index"), 1)[:, 0]
        if len(wrong := np.flatnonzero((tasks < 0) | (tasks >= len(self.tasks)))):
            raise DataError(
                f"{path}: episode {episode.index} has the task {tasks[wrong[0]]}, and {self.path / TASKS} lists "
                f"{len(self.tasks)}"
            )
        return tasks

    def name(self, row: int) -> str:
        """See `Source`."""
        episode = self._episode_of(row)
        return _row_name(self.info, episode, row - (episode.first - self._first))

    def _episode_of(self, row: int) -> Episode:
        return self.entries[int(np.searchsorted(self.episodes[:, 1], row, side="right"))]

    @cached_property
    def notes(self) -> str:
        """See `Source`."""
        digest = hashlib.sha256(self.split.encode())
        episodes = sorted((self.path / "meta" / "episodes").glob("*/*.parquet"))
        for path in (*(self.path / name for name in (INFO, TASKS, NOTE)), *episodes):
            digest.update(path.name.encode() + (path.read_bytes() if path.is_file() else b"none"))
        return digest.hexdigest()

    def stamps(self, rows: np.ndarray) -> np.ndarray:
        """See `Source`. Size is the sum, times are the latest of the table's and the videos'."""
        known: dict[tuple[Path, ...], tuple[int, int, int]] = {}
        stamps = np.empty((len(rows), 3), np.int64)
        places = np.searchsorted(self.episodes[:, 1], rows, side="right")
        for place in np.unique(places).tolist():
            paths = _files(self.info, self.entries[place])
            if paths not in known:
                known[paths] = _stamp(paths)
            stamps[places == place] = known[paths]
        return stamps

    def stamp(self) -> str:
        """See `Source`."""
        digest = hashlib.sha256()
        for path in sorted({path for episode in self.entries for path in _files(self.info, episode)}):
            digest.update(f"{path.relative_to(self.path)} {_stamp((path,))}".encode())
        return digest.hexdigest()

    def reader(self, rows: np.ndarray) -> Reader:
        """See `Source`."""
        places = np.searchsorted(self.episodes[:, 1], rows, side="right")
        parts = []
        for place in np.unique(places).tolist():
            episode = self.entries[place]
            parts.append((episode, tuple((rows[places == place] - (episode.first - self._first)).tolist())))
        return LeRobotReader(self.info, tuple(parts), self.vectors, self.columns, self.options.out_of_range)


@dataclass(frozen=True)
class LeRobotReader(Reader):
    """Some frames of a set.

    Attributes:
        info: of the set.
        parts: episodes, each with its frames that are wanted, ascending.
        vectors: features by name.
        columns: what their columns mean.
        out_of_range: what happens to actions beyond their bounds.
    """

    info: Info
    parts: tuple[tuple[Episode, tuple[int, ...]], ...]
    vectors: Vectors
    columns: Columns
    out_of_range: Literal["error", "clip"]

    def frames(self, names: tuple[str, ...]) -> Iterator[Frame | DataError]:
        """See `Reader`."""
        features = self.info.features
        actions, states = _readers(self.info, self.vectors, self.columns)
        keys = {name: key for kind in (self.vectors.state, self.vectors.privileged) for name, key in kind.items()}
        wanted = {name: states.needed(name) for name in names if name in states.sizes}
        columns = [keys[vector] for vectors in wanted.values() for vector in vectors]
        columns += [self.vectors.privileged[name] for name in names if name in self.vectors.privileged]
        columns += [ACTION] * (ACTIONS in names)
        cameras = {name: self.vectors.cameras[name] for name in names if name in self.vectors.cameras}
        kept = {name: key for name, key in cameras.items() if features[key].dtype == "image"}
        rows = RowReader(self.info, [*columns, *kept.values(), "timestamp", "task_index"])
        for episode, frames in self.parts:
            path = self.info.data_file(episode.chunk, episode.file)
            try:
                table = rows.rows(episode)
                recorded = {
                    key: numbers(path, key, table.column(key), features[key].shape[0]) for key in dict.fromkeys(columns)
                }
                times = numbers(path, "timestamp", table.column("timestamp"), 1)[:, 0].astype(np.float64)
                _check_times(path, episode, times, self.info.fps)
                arrays = {
                    name: states.take(name, {vector: recorded[keys[vector]] for vector in vectors})
                    for name, vectors in wanted.items()
                }
                arrays |= {n: recorded[k] for n, k in self.vectors.privileged.items() if n in names}
                taken = actions.take(recorded[ACTION]) if ACTIONS in names else None
                sources: dict[str, Iterator[np.ndarray | DataError]] = {
                    name: _video_images(self.info, episode, key, times[list(frames)].tolist())
                    for name, key in cameras.items()
                    if name not in kept
                }
                for name, key in kept.items():
                    sources[name] = _kept_images(self.info, episode, table.column(key), key, frames)
            except DataError as error:
                for _ in frames:
                    yield error
                continue
            digest = self._digest(episode)
            for frame in frames:
                images = {name: next(source) for name, source in sources.items()}
                where = _row_name(self.info, episode, frame)
                try:
                    yield self._frame(where, frame, images, arrays, taken, actions, digest(frame))
                except DataError as error:
                    yield error

    def _frame(
        self,
        where: str,
        frame: int,
        images: Mapping[str, np.ndarray | DataError],
        arrays: Mapping[str, np.ndarray],
        actions: np.ndarray | None,
        columns: ActionColumns,
        digest: np.ndarray,
    ) -> Frame:
        """One frame, checked.

        Raises:
            DataError: a value is not what it should be. Names it.
        """
        checked: dict[str, np.ndarray] = {}
        for name, image in images.items():
            if isinstance(image, DataError):
                raise image
            check_image(where, name, image)
            checked[name] = image
        for name, rows in arrays.items():
            row = rows[frame].astype(np.uint8) if rows.dtype == bool else rows[frame]
            checked[name] = as_vector(where, name, row, rows.shape[1])
        beyond = 0.0
        if actions is not None:
            checked[ACTIONS], beyond = as_action(where, ACTION, actions[frame], columns.spec, self.out_of_range)
        return Frame(checked, digest, beyond)

    def digests(self) -> Iterator[np.ndarray]:
        """See `Reader`."""
        for episode, frames in self.parts:
            digest = self._digest(episode)
            yield from (digest(frame) for frame in frames)

    def _digest(self, episode: Episode) -> Any:
        """The digest of an episode's frames as a function of their numbers: of the contents of files, and the row."""
        files = b""
        for path in _files(self.info, episode):
            status = _stamp((path,))
            files += _file_digest(path, *status) if status[0] >= 0 else b"none"

        def of(frame: int) -> np.ndarray:
            if b"none" in files:
                return np.zeros(DIGEST_BYTES, np.uint8)
            text = files + f"{episode.index} {frame}".encode()
            return np.frombuffer(hashlib.blake2b(text, digest_size=DIGEST_BYTES).digest(), np.uint8)

        return of


def _columns(path: Path, given: Columns) -> Columns:
    """What a set's columns mean: as is said, or else as a note of our own writer says.

    Raises:
        DataError: the note is damaged.
    """
    note = path / NOTE
    if not note.is_file():
        return given
    content = read_json(note, "what a data set's columns mean")
    try:
        actions = {str(name): PartColumns(**_tuples(part)) for name, part in content["actions"].items()}
        states = {str(name): [f"{vector}.*"] for vector, name in content["states"].items()}
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{note} is damaged: {type(error).__name__}: {error}") from None
    return Columns(given.actions or actions, given.states or states)


def _tuples(part: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in part.items()}


def _readers(info: Info, vectors: Vectors, columns: Columns) -> tuple[ActionColumns, StateColumns]:
    """What makes actions and states of a set's vectors."""
    where, features = str(info.folder / INFO), info.features
    action = features[ACTION]
    sizes = {name: features[key].shape[0] for name, key in vectors.state.items()}
    names = {name: features[key].names for name, key in vectors.state.items()}
    return (
        ActionColumns(columns, action.shape[0], action.names, f"{ACTION} of {where}"),
        StateColumns(columns, sizes, names, where),
    )


@lru_cache(maxsize=64)
def _file_digest(path: Path, size: int, changed: int, status_changed: int) -> bytes:
    """SHA-256 of a file; read anew where its stamp has changed."""
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.digest()


def _stamp(paths: tuple[Path, ...]) -> tuple[int, int, int]:
    """Sizes together, and the latest times of change; -1 where a file is missing."""
    try:
        found = [path.stat() for path in paths]
    except OSError:
        return (-1, -1, -1)
    return sum(s.st_size for s in found), max(s.st_mtime_ns for s in found), max(s.st_ctime_ns for s in found)


def _files(info: Info, episode: Episode) -> tuple[Path, ...]:
    """The table and the videos of an episode."""
    videos = [info.video_file(key, part.chunk, part.file) for key, part in episode.videos.items()]
    return (info.data_file(episode.chunk, episode.file), *videos)


def _row_name(info: Info, episode: Episode, frame: int) -> str:
    path = info.data_file(episode.chunk, episode.file)
    return f"{path}, row {episode.row + frame} (frame {frame} of episode {episode.index})"


def _named(info: Info, split: str) -> tuple[int, int] | None:
    """Episodes of a split, where the set says so."""
    return next((info.splits[name] for name in SPLIT_NAMES[split] if name in info.splits), None)


def _bounds(info: Info, split: str) -> tuple[int, int]:
    """First episode of a split and the one after its last; all are for training where the set names no split."""
    return _named(info, split) or (0, info.episodes)


def _check_times(path: Path, episode: Episode, times: np.ndarray, fps: float) -> None:
    """Refuses timestamps that are not those of the rate, as frames are found in the videos by them.

    Raises:
        DataError: one is off by more than a quarter of a frame. Names it.
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


def _video_images(info: Info, episode: Episode, key: str, times: Sequence[float]) -> Iterator[np.ndarray | DataError]:
    """The images of a camera at times of an episode, each or what is wrong with it."""
    part = episode.videos[key]
    path = info.video_file(key, part.chunk, part.file)
    done = 0
    while done < len(times):
        try:
            for image in read_frames(path, [part.start + time for time in times[done:]], info.fps):
                yield image
                done += 1
        except DataError as error:
            yield error
            done += 1  # later frames may be whole: the next key frame begins anew


def _kept_images(
    info: Info, episode: Episode, column: Any, key: str, frames: Sequence[int]
) -> Iterator[np.ndarray | DataError]:
    """The images that a table holds, each or what is wrong with it."""
    for frame in frames:
        try:
            yield _decode(column[frame].as_py(), _row_name(info, episode, frame), key)
        except DataError as error:
            yield error


def _decode(value: Any, where: str, key: str) -> np.ndarray:
    """An image file's bytes as (H, W, 3) uint8.

    Raises:
        DataError: there are none, or they are no image.
    """
    content = value.get("bytes") if isinstance(value, dict) else value
    if not content:
        raise DataError(f"{where} holds no image of {key}")
    try:
        with Image.open(io.BytesIO(content)) as picture:
            return np.asarray(picture.convert("RGB"))
    except Exception as error:  # damage makes Pillow raise almost anything
        raise DataError(f"{where}: {key} is no image: {error}") from error
