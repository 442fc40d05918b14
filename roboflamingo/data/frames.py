"""Reads frames of a CALVIN split from their .npz files and writes them into packed arrays."""

from __future__ import annotations

import zipfile
import zlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from roboflamingo.data.annotations import DataError
from roboflamingo.data.images import resize_image
from roboflamingo.data.split import frame_name

VECTORS = {"robot_obs": 15, "scene_obs": 24, "rel_actions": 7, "actions": 7}
"""Length of each vector in a frame's file (CALVIN SPEC 1.12)."""


@dataclass(frozen=True)
class PackSettings:
    """What is taken from a frame.

    Attributes:
        static_size: pixels a side of the static camera's images, 200 in CALVIN.
        gripper_size: pixels a side of the gripper camera's images, 84 in CALVIN.
        actions: `rel_actions` (relative, what CALVIN's simulator executes) or `actions` (absolute poses).
        language: the sub-folder with the annotations.
        vectors: length of each further vector that is taken.
    """

    static_size: int = 96
    gripper_size: int = 64
    actions: str = "rel_actions"
    language: str = "lang_annotations"
    vectors: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.actions not in ("rel_actions", "actions"):
            raise ValueError(f"actions must be rel_actions or actions, not {self.actions!r}")
        if min(self.static_size, self.gripper_size) < 1:
            raise ValueError(f"images of {self.static_size} and {self.gripper_size} pixels are impossible")

    def arrays(self, frames: int) -> dict[str, tuple[tuple[int, ...], type[np.generic]]]:
        """Shape and type of each packed array of so many frames."""
        S, G = self.static_size, self.gripper_size
        return {
            "rgb_static": ((frames, S, S, 3), np.uint8),
            "rgb_gripper": ((frames, G, G, 3), np.uint8),
            "robot_obs": ((frames, 15), np.float32),
            "scene_obs": ((frames, 24), np.float32),
            "actions": ((frames, 7), np.float32),
            **{name: ((frames, length), np.float32) for name, length in self.vectors.items()},
        }


@dataclass(frozen=True)
class FrameJob:
    """Consecutive rows of the packed arrays that one process fills.

    Attributes:
        source: the split folder. target: the folder of the packed arrays.
        first_row: where the first of `frames` goes.
        frames: (n,) frame ids.
        block_order: (n, 3) places of the red, blue and pink block in the recorded scene_obs.
    """

    source: Path
    target: Path
    settings: PackSettings
    first_row: int
    frames: np.ndarray
    block_order: np.ndarray

    def run(self) -> FrameJob:
        """Fills the rows and returns itself.

        Raises:
            DataError: a frame's file is broken. Names file and key.
        """
        names = self.settings.arrays(0)
        arrays = {name: np.load(self.target / f"{name}.npy", mmap_mode="r+") for name in names}
        for i, (frame, order) in enumerate(zip(self.frames.tolist(), self.block_order, strict=True)):
            packed = read_frame(self.source / frame_name(frame), self.settings, order)
            for name, array in arrays.items():
                array[self.first_row + i] = packed[name]
        for array in arrays.values():
            array.flush()
        return self


def read_frame(path: Path, settings: PackSettings, block_order: np.ndarray) -> dict[str, np.ndarray]:
    """One frame as it is packed: images resized, blocks in canonical order.

    Raises:
        DataError: the file is broken, or a value is not what CALVIN SPEC 1.12 says. Names file and key.
    """
    keys = ("rgb_static", "rgb_gripper", "robot_obs", "scene_obs", settings.actions, *settings.vectors)
    lengths = VECTORS | settings.vectors
    raw = _load(path, keys)
    for key in keys[:2]:
        if raw[key].dtype != np.uint8 or raw[key].ndim != 3 or raw[key].shape[2] != 3:
            raise DataError(f"{path}: {key} is {raw[key].dtype} {raw[key].shape}; expected is uint8 (H, W, 3)")
    for key in keys[2:]:
        if raw[key].shape != (lengths[key],) or not np.isfinite(raw[key]).all():
            raise DataError(f"{path}: {key} of shape {raw[key].shape} is not {lengths[key]} finite numbers")
    action = raw[settings.actions]
    if action[6] not in (-1, 1):
        raise DataError(f"{path}: {settings.actions}[6] is {action[6]}; a gripper command is -1 (close) or 1 (open)")
    blocks = raw["scene_obs"][6:].reshape(3, 6)[block_order]
    return {
        "rgb_static": resize_image(raw["rgb_static"], settings.static_size),
        "rgb_gripper": resize_image(raw["rgb_gripper"], settings.gripper_size),
        "robot_obs": raw["robot_obs"],
        "scene_obs": np.concatenate([raw["scene_obs"][:6], blocks.ravel()]),
        "actions": action,
        **{name: raw[name] for name in settings.vectors},
    }


def vector_length(path: Path, name: str) -> int:
    """How many numbers a vector of a frame has.

    Raises:
        DataError: the file is broken, or has no such vector.
    """
    value = _load(path, (name,))[name]
    if value.ndim != 1 or not np.issubdtype(value.dtype, np.number):
        raise DataError(f"{path}: {name} is {value.dtype} {value.shape}; policy.vectors names rows of numbers")
    return len(value)


def _load(path: Path, keys: tuple[str, ...]) -> dict[str, np.ndarray]:
    """The named arrays of an .npz file; nothing else in it is even decompressed."""
    key = "the archive"
    try:
        with np.load(path, allow_pickle=False) as file:
            raw = {}
            for key in keys:
                raw[key] = file[key]
            return raw
    except KeyError:
        raise DataError(f"{path} has no {key}; it holds {', '.join(file.files)}") from None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{path}: {key} cannot be read: {error}") from error
