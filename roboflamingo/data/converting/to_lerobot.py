"""Data sets of any kind as recordings that the LeRobot writer takes: every language sample becomes an episode.

What has no name in LeRobot's format goes into files of our own under `meta`, which its readers pass over, so that
what we read back is the same: `roboflamingo.json` says what states and parts of the action are called,
`calvin.json` what a CALVIN folder holds besides frames.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from calvin_eval.calvin import SCENE_OBS
from calvin_eval.specs import ActionSpec, RobotSpec
from roboflamingo.data.checks import check_image
from roboflamingo.data.errors import DataError
from roboflamingo.data.lerobot.files import EpisodePlan
from roboflamingo.data.sources.base import ACTIONS, Reader, Sample, Source
from roboflamingo.data.sources.calvin.frames import CalvinReader, load_arrays
from roboflamingo.data.sources.calvin.source import CalvinSource
from roboflamingo.data.sources.columns import PartColumns
from roboflamingo.data.sources.lerobot import IMAGES, OBSERVATION, PRIVILEGED
from roboflamingo.data.sources.lerobot_reading import ACTION

ABSOLUTE, FRAME_ID = "calvin.actions", "calvin.frame"
"""Features of CALVIN's absolute actions and of the numbers in the names of its frames' files. Whatever begins with
`action` or `observation` is an input or output to LeRobot's policies; these are neither."""


def feature_names(spec: RobotSpec) -> dict[str, str]:
    """The feature of every camera, state and privileged state, and of the actions.

    LeRobot's policies read one state, `observation.state`: a data set's first, or the one called so.
    """
    first = "state" if "state" in spec.state else next(iter(spec.state), "")
    return {
        **{name: f"{IMAGES}{name}" for name in spec.cameras},
        **{name: f"{OBSERVATION}{'state' if name == first else name}" for name in spec.state},
        **{name: f"{PRIVILEGED}{name}" for name in spec.privileged},
        ACTIONS: ACTION,
    }


def names_note(spec: RobotSpec) -> dict[str, Any]:
    """What `roboflamingo.json` holds: names of states by vector, and the parts of an action."""
    features = feature_names(spec)
    parts, first = {}, 0
    for part in spec.actions.parts:
        columns = tuple(range(first, first + part.size))
        meant = PartColumns(columns, part.kind, part.units, part.one, part.low, part.high, choices=part.choices)
        parts[part.name] = asdict(meant)
        first += part.size
    return {"states": {features[name].removeprefix(OBSERVATION): name for name in spec.state}, "actions": parts}


@dataclass(frozen=True)
class SourceRecording:
    """The language samples of splits of a data set, one after another.

    Attributes:
        samples: of each split, with the split; none in a part.
        plans: of the episodes.
        readers: of each episode's rows, in a part.
        spec: what the data set gives.
        cameras: dtype of the cameras.
    """

    samples: tuple[tuple[Source, Sample], ...]
    plans: tuple[EpisodePlan, ...]
    readers: tuple[Reader, ...]
    spec: RobotSpec
    cameras: Literal["video", "image"]

    @property
    def fps(self) -> float:
        """See `Recording`."""
        return self.spec.rate_hz

    @property
    def episodes(self) -> Sequence[EpisodePlan]:
        """See `Recording`."""
        return self.plans

    @property
    def features(self) -> Mapping[str, Mapping[str, Any]]:
        """See `Recording`."""
        return self._features()

    def _features(self) -> dict[str, dict[str, Any]]:
        names = feature_names(self.spec)
        found: dict[str, dict[str, Any]] = {}
        for name, size in self.spec.cameras.items():
            shape = {"shape": [*size, 3], "names": ["height", "width", "channels"]}
            found[names[name]] = {"dtype": self.cameras, **shape}
        for name, length in {**self.spec.state, **self.spec.privileged}.items():
            found[names[name]] = _vector([f"{name}_{number}" for number in range(length)])
        return found | {ACTION: _vector(_action_names(self.spec.actions))}

    def part(self, first: int, stop: int) -> SourceRecording:
        """See `Recording`."""
        rows = ((source, np.arange(sample.first, sample.stop)) for source, sample in self.samples[first:stop])
        readers = tuple(source.reader(each) for source, each in rows)
        return replace(self, samples=(), plans=self.plans[first:stop], readers=readers)

    def frames(self, episode: int) -> Iterator[Mapping[str, np.ndarray]]:
        """See `Recording`."""
        names = feature_names(self.spec)
        for frame in self.readers[episode].frames(tuple(names)):
            if isinstance(frame, DataError):
                raise frame
            yield {names[name]: value for name, value in frame.arrays.items()}


@dataclass(frozen=True)
class CalvinRecording(SourceRecording):
    """The segments of a CALVIN folder, with all its numbers as they were recorded.

    Attributes:
        types: dtype of every recorded vector that is taken, by CALVIN's name.
        sizes: numbers of each.
    """

    types: Mapping[str, str]
    sizes: Mapping[str, int]

    def _features(self) -> dict[str, dict[str, Any]]:
        found = super()._features()
        for name, key in self._keys.items():
            old = found.get(key) or _vector([f"{name}_{number}" for number in range(self.sizes[name])])
            found[key] = {**old, "dtype": self.types[name]}
        return found | {FRAME_ID: {"dtype": "int64", "shape": [1], "names": None}}

    @property
    def _keys(self) -> dict[str, str]:
        """The feature of every recorded vector, by CALVIN's name."""
        names = feature_names(self.spec)
        vectors = {name: names[name] for name in (*self.spec.state, *self.spec.privileged)}
        return {**vectors, "rel_actions": ACTION, "actions": ABSOLUTE}

    def frames(self, episode: int) -> Iterator[Mapping[str, np.ndarray]]:
        """See `Recording`. The blocks of scene_obs come in canonical order."""
        reader, keys, names = self.readers[episode], self._keys, feature_names(self.spec)
        assert isinstance(reader, CalvinReader)
        for place, (file, order) in enumerate(zip(reader.files, reader.block_order, strict=True)):
            if place in reader.missing:
                raise DataError(reader.missing[place])
            path = reader.folder / file
            raw = load_arrays(path, [*keys, *self.spec.cameras])
            values: dict[str, np.ndarray] = {}
            for name in self.spec.cameras:
                check_image(path, name, raw[name])
                values[names[name]] = raw[name]
            for name, key in keys.items():
                value = reordered(raw[name], order) if name == SCENE_OBS else raw[name]
                values[key] = value.astype(self.types[name])
            yield values | {FRAME_ID: np.array([frame_number(file)])}


def reordered(scene_obs: np.ndarray, order: np.ndarray) -> np.ndarray:
    """A scene_obs (24,) whose blocks stand in the order that `order` (3,) names."""
    return np.concatenate([scene_obs[:6], scene_obs[6:].reshape(3, 6)[order].ravel()])


def frame_number(file: str) -> int:
    """The number in the name of a frame's file."""
    stem = file.removesuffix(".npz")
    return int(stem[len(stem.rstrip("0123456789")) :])


def language_samples(source: Source) -> list[Sample]:
    """What is carried out on an instruction."""
    return [sample for sample in source.samples if sample.kind == "language"]


def record_source(
    sources: Sequence[Source], images: Literal["video", "png"], numbers: Literal["float32", "recorded"]
) -> SourceRecording:
    """A recording of splits of one data set.

    Args:
        sources: the splits.
        images: how they are kept.
        numbers: in which type.

    Raises:
        DataError: there are no language samples, or the splits differ in what they give. Says where.
    """
    spec = sources[0].spec
    for source in sources[1:]:
        if source.spec != spec:
            raise DataError(f"{sources[0].title} gives {spec}, and {source.title} {source.spec}; convert one at a time")
    samples = tuple((source, sample) for source in sources for sample in language_samples(source))
    plans = tuple(EpisodePlan(sample.stop - sample.first, sample.instruction) for _, sample in samples)
    if not plans:
        raise DataError(f"{sources[0].path} has no annotated segments; nothing would be converted")
    cameras: Literal["video", "image"] = "image" if images == "png" else "video"
    if not isinstance(sources[0], CalvinSource):
        return SourceRecording(samples, plans, (), spec, cameras)
    source, sample = samples[0]
    vectors = [*spec.state, *spec.privileged, "rel_actions", "actions"]
    arrays = load_arrays(Path(source.name(sample.first)), vectors)
    types = {name: str(arrays[name].dtype) if numbers == "recorded" else "float32" for name in vectors}
    sizes = {name: len(arrays[name]) for name in vectors}
    return CalvinRecording(samples, plans, (), spec, cameras, types, sizes)


def _vector(names: list[str]) -> dict[str, Any]:
    return {"dtype": "float32", "shape": [len(names)], "names": names}


def _action_names(spec: ActionSpec) -> list[str]:
    return [f"{part.name}_{n}" if part.size > 1 else part.name for part in spec.parts for n in range(part.size)]
