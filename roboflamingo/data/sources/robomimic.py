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
from roboflamingo.data.sources.base import ACTIONS, Reader, SourceOptions
from roboflamingo.data.sources.columns import ActionColumns, Columns, StateColumns
from roboflamingo.data.sources.hdf5 import array_of, blocks, is_hdf5, opened
from roboflamingo.data.sources.robomimic_layout import (
    MASKS,
    Layout,
    read_demonstration,
    read_demonstrations,
    read_environment,
    read_layout,
)
from roboflamingo.data.sources.trajectories import Make, TrajectoryReader, TrajectorySource


class RobomimicSource(TrajectorySource):
    """The demonstrations of one split. See `Source`."""

    kind = "robomimic"

    def __init__(self, path: Path, split: str, options: SourceOptions) -> None:
        with opened(path) as file:
            names = read_demonstrations(path, file, split)
            task, common, self.rate_hz = read_environment(path, file)
            self.demonstrations = [read_demonstration(path, file["data"][name], common or task) for name in names]
            if not names:
                raise DataError(f"{path} holds no demonstrations for {split}")
            self.layout = read_layout(path, file["data"][names[0]])
        super().__init__(path, split, options, path, self.demonstrations)
        self.actions, self.states = _readers(self.layout, options.columns, str(path))

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

    def name(self, row: int) -> str:
        """See `Source`."""
        number, step = self.place(row)
        return f"{self.path}: data/{self.demonstrations[number].name}, step {step}"

    @cached_property
    def notes(self) -> str:
        """See `Source`."""
        known = [(each.name, each.length, each.instruction) for each in self.demonstrations]
        described = [known, self.split, self.rate_hz, [dict(vars(self.layout)[key]) for key in ("cameras", "state")]]
        return hashlib.sha256(json.dumps(described).encode()).hexdigest()

    def reader(self, rows: np.ndarray) -> Reader:
        """See `Source`."""
        parts = tuple((self.demonstrations[number].name, steps) for number, steps in self.steps(rows))
        return RobomimicReader(self.path, parts, self.layout, self.options.columns, self.options.out_of_range)


@dataclass(frozen=True)
class RobomimicReader(TrajectoryReader):
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

    def maker(self, names: tuple[str, ...]) -> Make:
        """See `TrajectoryReader`."""
        actions, states = _readers(self.layout, self.columns, str(self.path))

        def make(where: str, values: Mapping[str, np.ndarray]) -> tuple[dict[str, np.ndarray], float]:
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
            return arrays, beyond

        return make

    def rows(self) -> Iterator[tuple[str, dict[str, np.ndarray] | DataError]]:
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
