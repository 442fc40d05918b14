"""HDF5 files in robomimic's layout as a source.

    data/demo_0/actions            (T, A)
    data/demo_0/obs/KEY            (T, H, W, 3) uint8 images, (T, n) vectors, (T,) numbers
    data.attrs["env_args"]         JSON: the environment's name, and `env_kwargs.control_freq`
    mask/train, mask/valid         names of the demonstrations of each split; all are for training without them

Instructions come from where such files have them: `lang` in a demonstration's attribute `ep_meta`, or
`language_instruction` in `data`'s attribute `problem_info`; else the environment's name in words. `obs/object` is what
no robot measures, and privileged.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from calvin_eval.specs import RobotSpec
from roboflamingo.data.checks import as_action, as_vector, check_image
from roboflamingo.data.errors import DataError
from roboflamingo.data.sources.base import ACTIONS, DIGEST_BYTES, Frame, Reader, Sample, Source, SourceOptions
from roboflamingo.data.sources.columns import ActionColumns, Columns, StateColumns
from roboflamingo.data.sources.hdf5 import array_of, blocks, is_hdf5, opened, row_digest

MASKS = {"training": "train", "validation": "valid"}
PRIVILEGED = ("object",)
RATE_HZ = 20.0
"""Control steps a second where the file says nothing: robosuite's default."""


@dataclass(frozen=True)
class Demonstration:
    """One of the file.

    Attributes:
        name: its group.
        length: control steps.
        instruction: the sentence.
    """

    name: str
    length: int
    instruction: str


@dataclass(frozen=True)
class Layout:
    """What the demonstrations hold, as the first one does.

    Attributes:
        cameras: height and width by key.
        state: numbers by key.
        privileged: likewise.
        action: numbers of an action.
    """

    cameras: Mapping[str, tuple[int, int]]
    state: Mapping[str, int]
    privileged: Mapping[str, int]
    action: int

    @property
    def vectors(self) -> dict[str, int]:
        """Numbers of everything that is no image."""
        return {**self.state, **self.privileged}


class RobomimicSource(Source):
    """The demonstrations of one split. See `Source`."""

    kind = "robomimic"

    def __init__(self, path: Path, split: str, options: SourceOptions) -> None:
        super().__init__(path, split, options)
        with opened(path) as file:
            names = _demonstrations(path, file, split)
            task, common, rate = _environment(path, file)
            self.task, self.rate_hz = task, rate
            self.demonstrations = [_demonstration(path, file["data"][name], common or task) for name in names]
            if not names:
                raise DataError(f"{path} holds no demonstrations for {split}")
            self.layout = _layout(path, file["data"][names[0]])
        self.actions, self.states = _readers(self.layout, options.columns, str(path))
        ends = np.cumsum([each.length for each in self.demonstrations])
        self._episodes = np.stack([np.append(0, ends[:-1]), ends], axis=1).astype(np.int64)

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """See `Source`."""
        return path.suffix in (".hdf5", ".h5") and is_hdf5(path)

    @classmethod
    def splits(cls, path: Path) -> tuple[str, ...]:
        """See `Source`."""
        with opened(path) as file:
            return tuple(s for s, mask in MASKS.items() if s == "training" or f"mask/{mask}" in file)

    @cached_property
    def spec(self) -> RobotSpec:
        """See `Source`."""
        return RobotSpec(
            cameras=self.layout.cameras,
            state=self.states.sizes,
            privileged=self.layout.privileged,
            actions=self.actions.spec,
            rate_hz=self.rate_hz,
        )

    def __len__(self) -> int:
        return int(self._episodes[-1, 1])

    @property
    def episodes(self) -> np.ndarray:
        """See `Source`."""
        return self._episodes

    @property
    def samples(self) -> tuple[Sample, ...]:
        """See `Source`."""
        pairs = zip(self._episodes.tolist(), self.demonstrations, strict=True)
        return tuple(Sample(a, b, instruction=each.instruction, task=each.instruction) for (a, b), each in pairs)

    def _place(self, row: int) -> tuple[Demonstration, int]:
        number = int(np.searchsorted(self._episodes[:, 1], row, side="right"))
        return self.demonstrations[number], row - int(self._episodes[number, 0])

    def name(self, row: int) -> str:
        """See `Source`."""
        demonstration, step = self._place(row)
        return f"{self.path}: data/{demonstration.name}, step {step}"

    @cached_property
    def notes(self) -> str:
        """See `Source`."""
        known = [(each.name, each.length, each.instruction) for each in self.demonstrations]
        described = [known, self.split, self.rate_hz, [dict(vars(self.layout)[key]) for key in ("cameras", "state")]]
        return hashlib.sha256(json.dumps(described).encode()).hexdigest()

    def stamps(self, rows: np.ndarray) -> np.ndarray:
        """See `Source`."""
        status = self.path.stat()
        stamp = np.array([status.st_size, status.st_mtime_ns, status.st_ctime_ns], np.int64)
        return np.tile(stamp, (len(rows), 1))

    def stamp(self) -> str:
        """See `Source`."""
        return f"{self.notes} {self.stamps(np.zeros(1))[0].tolist()}"

    def reader(self, rows: np.ndarray) -> Reader:
        """See `Source`."""
        places = np.searchsorted(self._episodes[:, 1], rows, side="right")
        parts = tuple(
            (self.demonstrations[place].name, tuple((rows[places == place] - self._episodes[place, 0]).tolist()))
            for place in np.unique(places).tolist()
        )
        return RobomimicReader(self.path, parts, self.layout, self.options.columns, self.options.out_of_range)


@dataclass(frozen=True)
class RobomimicReader(Reader):
    """Some steps of a file.

    Attributes:
        path: of the file.
        parts: demonstrations, each with its steps that are wanted, ascending.
        layout: what every demonstration holds.
        columns: what the columns of vectors mean.
        out_of_range: what happens to actions beyond their bounds.
    """

    path: Path
    parts: tuple[tuple[str, tuple[int, ...]], ...]
    layout: Layout
    columns: Columns
    out_of_range: Literal["error", "clip"]

    def frames(self, names: tuple[str, ...]) -> Iterator[Frame | DataError]:
        """See `Reader`."""
        actions, states = _readers(self.layout, self.columns, str(self.path))
        for where, values in self._rows():
            try:
                if isinstance(values, DataError):
                    raise values
                yield self._frame(where, values, names, actions, states)
            except DataError as error:
                yield error

    def _frame(
        self,
        where: str,
        values: Mapping[str, np.ndarray],
        names: tuple[str, ...],
        actions: ActionColumns,
        states: StateColumns,
    ) -> Frame:
        """One step, checked.

        Raises:
            DataError: a value is not what it should be. Names it.
        """
        arrays, beyond = dict[str, np.ndarray](), 0.0
        vectors = {key: values[f"obs/{key}"].reshape(1, -1) for key in self.layout.vectors}
        for name in names:
            if name in self.layout.cameras:
                check_image(where, name, values[f"obs/{name}"])
                arrays[name] = values[f"obs/{name}"]
            elif name == ACTIONS:
                taken = actions.take(values["actions"].reshape(1, -1))[0]
                arrays[name], beyond = as_action(where, "actions", taken, actions.spec, self.out_of_range)
            elif name in states.sizes:
                arrays[name] = as_vector(where, name, states.take(name, vectors)[0], states.sizes[name])
            else:
                arrays[name] = as_vector(where, name, vectors[name][0], self.layout.privileged[name])
        return Frame(arrays, row_digest(values), beyond)

    def digests(self) -> Iterator[np.ndarray]:
        """See `Reader`."""
        for _, values in self._rows():
            yield np.zeros(DIGEST_BYTES, np.uint8) if isinstance(values, DataError) else row_digest(values)

    def _rows(self) -> Iterator[tuple[str, dict[str, np.ndarray] | DataError]]:
        """Every step's place, and all that is recorded of it or what is wrong."""
        with opened(self.path) as file:
            for name, steps in self.parts:
                demonstration = file["data"][name]
                try:
                    arrays = self._arrays(demonstration, steps[-1] + 1)
                except DataError as error:
                    yield from ((f"{self.path}: data/{name}, step {step}", error) for step in steps)
                    continue
                for step, values in zip(steps, blocks(self.path, arrays, steps), strict=True):
                    yield f"{self.path}: data/{name}, step {step}", values

    def _arrays(self, demonstration: Any, length: int) -> dict[str, Any]:
        """The arrays of a demonstration by name.

        Raises:
            DataError: one is missing, too short, or has other rows than the layout says.
        """
        shapes: dict[str, tuple[int, ...]] = {f"obs/{k}": (*size, 3) for k, size in self.layout.cameras.items()}
        shapes |= {f"obs/{key}": (size,) for key, size in self.layout.vectors.items()}
        shapes["actions"] = (self.layout.action,)
        arrays = {}
        for key, shape in shapes.items():
            array = array_of(self.path, demonstration, key)
            if array.shape[0] < length or (array.shape[1:] or (1,)) != shape:
                raise DataError(f"{self.path}: {array.name} is {array.shape}; ({length}, {shape}) was expected")
            arrays[key] = array
        return arrays


def _demonstrations(path: Path, file: Any, split: str) -> list[str]:
    """Names of a split's demonstrations, by number."""
    if "data" not in file:
        raise DataError(f"{path} has no group data; robomimic's files keep demonstrations there. It has {list(file)}")
    there = sorted((name for name in file["data"] if name.startswith("demo")), key=_number)
    mask = f"mask/{MASKS[split]}"
    if mask not in file:
        return there
    wanted = [name.decode() if isinstance(name, bytes) else str(name) for name in file[mask][()].ravel().tolist()]
    if lost := sorted(set(wanted) - set(there)):
        raise DataError(f"{path}: {mask} names {lost[0]}, which is not in data")
    return sorted(wanted, key=_number)


def _number(name: str) -> tuple[int, str]:
    match = re.search(r"\d+", name)
    return (int(match[0]) if match else -1, name)


def _environment(path: Path, file: Any) -> tuple[str, str, float]:
    """The task's name in words, the file's instruction ("" if it has none), and control steps a second."""
    attributes = file["data"].attrs
    arguments = _json(path, attributes.get("env_args"), "env_args")
    name = str(arguments.get("env_name") or arguments.get("env") or path.stem)
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|_+", " ", name).lower().strip()
    problem = _json(path, attributes.get("problem_info"), "problem_info")
    instruction = problem.get("language_instruction") or ""
    if isinstance(instruction, list):  # some write its words as a list
        instruction = " ".join(map(str, instruction))
    rate = (arguments.get("env_kwargs") or {}).get("control_freq", RATE_HZ)
    if not isinstance(rate, int | float) or not 0 < rate < float("inf"):
        raise DataError(f"{path}: control_freq of env_args is {rate!r}; it is steps a second")
    return words, str(instruction).strip(), float(rate)


def _demonstration(path: Path, group: Any, instruction: str) -> Demonstration:
    """One demonstration; its own sentence goes before the file's."""
    own = _json(path, group.attrs.get("ep_meta"), "ep_meta").get("lang")
    length = array_of(path, group, "actions").shape[0]
    name = group.name.rsplit("/", 1)[-1]
    if not length:
        raise DataError(f"{path}: data/{name} has no steps")
    return Demonstration(name, length, str(own or instruction))


def _layout(path: Path, demonstration: Any) -> Layout:
    """What a demonstration holds."""
    cameras: dict[str, tuple[int, int]] = {}
    state: dict[str, int] = {}
    privileged: dict[str, int] = {}
    if "obs" not in demonstration:
        raise DataError(f"{path}: {demonstration.name} has no obs; convert the states to observations first")
    for key in demonstration["obs"]:
        array = array_of(path, demonstration["obs"], key)
        if array.ndim == 4 and array.shape[3] == 3 and array.dtype == np.uint8:
            cameras[key] = (array.shape[1], array.shape[2])
        elif array.ndim <= 2:  # depth and the like are left aside
            (privileged if key in PRIVILEGED else state)[key] = array.shape[1] if array.ndim == 2 else 1
    actions = array_of(path, demonstration, "actions")
    if actions.ndim != 2:
        raise DataError(f"{path}: {actions.name} is {actions.shape}; an action is a row of numbers")
    return Layout(cameras, state, privileged, actions.shape[1])


def _readers(layout: Layout, columns: Columns, where: str) -> tuple[ActionColumns, StateColumns]:
    """What makes actions and states of recorded vectors."""
    return ActionColumns(columns, layout.action, (), f"actions of {where}"), StateColumns(
        columns, layout.state, {}, where
    )


def _json(path: Path, text: Any, what: str) -> dict[str, Any]:
    """An attribute that holds JSON; empty where there is none."""
    if text is None:
        return {}
    try:
        value = json.loads(text)
    except (TypeError, ValueError) as error:
        raise DataError(f"{path}: the attribute {what} is no JSON: {error}") from error
    return value if isinstance(value, dict) else {}
