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
from roboflamingo.data.sources.robomimic_layout import (
    MASKS,
    Demonstration,
    Layout,
    read_demonstration,
    read_demonstrations,
    read_environment,
    read_layout,
)


class RobomimicSource(Source):
    """The demonstrations of one split. See `Source`."""

    kind = "robomimic"

    def __init__(self, path: Path, split: str, options: SourceOptions) -> None:
        super().__init__(path, split, options)
        with opened(path) as file:
            names = read_demonstrations(path, file, split)
            task, common, rate = read_environment(path, file)
            self.task, self.rate_hz = task, rate
            self.demonstrations = [read_demonstration(path, file["data"][name], common or task) for name in names]
            if not names:
                raise DataError(f"{path} holds no demonstrations for {split}")
            self.layout = read_layout(path, file["data"][names[0]])
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


def _readers(layout: Layout, columns: Columns, where: str) -> tuple[ActionColumns, StateColumns]:
    """What makes actions and states of recorded vectors."""
    return ActionColumns(columns, layout.action, (), f"actions of {where}"), StateColumns(
        columns, layout.state, {}, where
    )
