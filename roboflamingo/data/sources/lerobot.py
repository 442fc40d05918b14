"""LeRobotDataset v3.0 as a source.

`observation.images.front` is the camera `front`, `observation.state` the state `state`; every other row of numbers
under `observation.` is a state as well. What begins with `privileged.` is a privileged state, as our own writer names
CALVIN's scene. Depth images and everything else are left aside.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from calvin_eval.specs import RobotSpec
from calvin_eval.system.files import read_json
from roboflamingo.data.errors import DataError
from roboflamingo.data.lerobot.layout import CHECKSUMS, INFO, NAMES, TASKS, Info, read_info
from roboflamingo.data.lerobot.tables import Episode, RowReader, numbers, read_episodes, read_tasks
from roboflamingo.data.lerobot.video import video_size
from roboflamingo.data.sources.base import Reader, Sample, Source, SourceOptions
from roboflamingo.data.sources.columns import Columns, PartColumns
from roboflamingo.data.sources.lerobot_images import row_name
from roboflamingo.data.sources.lerobot_reading import (
    ACTION,
    LeRobotReader,
    Vectors,
    column_readers,
    episode_files,
    stamp_of,
)

IMAGES, OBSERVATION, PRIVILEGED = "observation.images.", "observation.", "privileged."
SPLIT_NAMES = {"training": ("train", "training"), "validation": ("validation", "val", "valid", "eval", "test")}
"""What sets call the splits, most usual first."""


class LeRobotSource(Source):
    """One split of a LeRobotDataset v3.0. See `Source`.

    Attributes:
        info: what `meta/info.json` says.
        tasks: texts by number.
        entries: the episodes of the split.
        vectors: the features that are read.
        columns: what their columns mean.
    """

    kind = "lerobot"

    def __init__(self, path: Path, split: str, options: SourceOptions) -> None:
        super().__init__(path, split, options)
        self.info = read_info(path)
        self.tasks = read_tasks(self.info)
        first, stop = _named(self.info, split) or (0, self.info.episodes)
        self.entries = read_episodes(self.info)[first:stop]
        self._first = self.entries[0].first if self.entries else 0
        self.vectors = find_vectors(self.info)
        self.columns = _columns(path, options.columns)
        self.actions, self.states = column_readers(self.info, self.vectors, self.columns)

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """See `Source`."""
        return (path / INFO).is_file()

    @classmethod
    def splits(cls, path: Path) -> tuple[str, ...]:
        """See `Source`. All episodes are for training where the set names no split."""
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

    def _places(self, rows: np.ndarray) -> np.ndarray:
        """Which of `entries` each of the rows belongs to."""
        return np.searchsorted(self.episodes[:, 1], rows, side="right")

    def name(self, row: int) -> str:
        """See `Source`."""
        episode = self.entries[int(self._places(np.array(row)))]
        return row_name(self.info, episode, row - (episode.first - self._first))

    @cached_property
    def notes(self) -> str:
        """See `Source`."""
        digest = hashlib.sha256(self.split.encode())
        episodes = sorted((self.path / "meta" / "episodes").glob("*/*.parquet"))
        for path in (*(self.path / name for name in (INFO, TASKS, NAMES)), *episodes):
            digest.update(path.name.encode() + (path.read_bytes() if path.is_file() else b"none"))
        return digest.hexdigest()

    def stamps(self, rows: np.ndarray) -> np.ndarray:
        """See `Source`. Size is the sum, times are the latest of the table's and the videos'."""
        known: dict[tuple[Path, ...], tuple[int, int, int]] = {}
        stamps, places = np.empty((len(rows), 3), np.int64), self._places(rows)
        for place in np.unique(places).tolist():
            paths = episode_files(self.info, self.entries[place])
            if paths not in known:
                known[paths] = stamp_of(paths)
            stamps[places == place] = known[paths]
        return stamps

    def stamp(self) -> str:
        """See `Source`."""
        digest = hashlib.sha256()
        for path in sorted({path for episode in self.entries for path in episode_files(self.info, episode)}):
            digest.update(f"{path.relative_to(self.path)} {stamp_of((path,))}".encode())
        return digest.hexdigest()

    @cached_property
    def _checksums(self) -> dict[str, str]:
        """SHA-256 of files as our own writer wrote them; none of other sets."""
        path = self.path / CHECKSUMS
        content = read_json(path, "checksums of a data set") if path.is_file() else {}
        if not isinstance(content, dict):
            raise DataError(f"{path} should hold checksums by file")
        return content

    def reader(self, rows: np.ndarray) -> Reader:
        """See `Source`."""
        places, parts = self._places(rows), []
        for place in np.unique(places).tolist():
            episode = self.entries[place]
            parts.append((episode, tuple((rows[places == place] - (episode.first - self._first)).tolist())))
        files = {path for episode, _ in parts for path in episode_files(self.info, episode)}
        names = [path.relative_to(self.path).as_posix() for path in files]
        checksums = {name: self._checksums[name] for name in names if name in self._checksums}
        out_of_range = self.options.out_of_range
        return LeRobotReader(self.info, tuple(parts), self.vectors, self.columns, out_of_range, checksums)


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


def _columns(path: Path, given: Columns) -> Columns:
    """What a set's columns mean: as is said, or else as a note of our own writer says.

    Raises:
        DataError: the note is damaged.
    """
    note = path / NAMES
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


def _named(info: Info, split: str) -> tuple[int, int] | None:
    """Episodes of a split, where the set says so."""
    return next((info.splits[name] for name in SPLIT_NAMES[split] if name in info.splits), None)
