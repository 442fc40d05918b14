"""What an HDF5 file in robomimic's layout holds, before any frame is read."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from roboflamingo.data.errors import DataError
from roboflamingo.data.sources.hdf5 import array_of

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


def read_demonstrations(path: Path, file: Any, split: str) -> list[str]:
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


def read_environment(path: Path, file: Any) -> tuple[str, str, float]:
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


def read_demonstration(path: Path, group: Any, instruction: str) -> Demonstration:
    """One demonstration; its own sentence goes before the file's."""
    own = _json(path, group.attrs.get("ep_meta"), "ep_meta").get("lang")
    length = array_of(path, group, "actions").shape[0]
    name = group.name.rsplit("/", 1)[-1]
    if not length:
        raise DataError(f"{path}: data/{name} has no steps")
    return Demonstration(name, length, str(own or instruction))


def read_layout(path: Path, demonstration: Any) -> Layout:
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


def _json(path: Path, text: Any, what: str) -> dict[str, Any]:
    """An attribute that holds JSON; empty where there is none."""
    if text is None:
        return {}
    try:
        value = json.loads(text)
    except (TypeError, ValueError) as error:
        raise DataError(f"{path}: the attribute {what} is no JSON: {error}") from error
    return value if isinstance(value, dict) else {}
