"""In which order a CALVIN split's `scene_obs` lists the blocks, frame by frame."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from calvin_eval.calvin import BLOCKS
from roboflamingo.data.errors import DataError
from roboflamingo.data.sources.calvin.plain import load_plain_dict, whole_number

SCENE_BLOCKS = {
    "A": ("block_pink", "block_blue", "block_red"),
    "B": ("block_red", "block_blue", "block_pink"),
    "C": ("block_blue", "block_red", "block_pink"),
    "D": ("block_red", "block_blue", "block_pink"),
}
"""The order in which each scene's recorded `scene_obs` lists them (CALVIN SPEC 1.3)."""


class BlockOrder:
    """The order of the blocks in a split's frames, from scene_info.npy or the merged config.

    Args:
        folder: the split's.

    Raises:
        DataError: a file is damaged.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / "scene_info.npy"
        ranges, recorded = _scene_ranges(folder), _configured_blocks(folder)
        self._ranges: dict[str, tuple[int, int]] = {}
        if len(ranges) > 1 or (ranges and recorded is None):  # one config cannot describe several scenes
            self._ranges = ranges
        elif recorded is None:
            warnings.warn(
                f"{folder} has neither .hydra/merged_config.yaml nor scene_info.npy: the blocks in scene_obs are "
                f"taken to be {', '.join(BLOCKS)}",
                stacklevel=2,
            )
        self._recorded = recorded or BLOCKS

    def of(self, frames: np.ndarray) -> np.ndarray:
        """Where `BLOCKS` stand in the scene_obs of frames (n,), (n, 3) int64.

        Raises:
            DataError: a frame is in no scene, or in two.
        """
        order = np.empty((len(frames), len(BLOCKS)), np.int64)
        order[:] = -1 if self._ranges else _places(self._recorded)
        for scene, (first, last) in self._ranges.items():
            inside = (frames >= first) & (frames <= last)
            if (order[inside] >= 0).any():
                raise DataError(f"{self._path} puts frames into two scenes: {self._ranges}")
            order[inside] = _places(SCENE_BLOCKS[scene])
        if (order < 0).any():
            stray = frames[(order < 0).any(axis=1)][0]
            raise DataError(f"{self._path} puts frame {stray} into no scene: {self._ranges}")
        return order


def _places(recorded: tuple[str, ...]) -> list[int]:
    return [recorded.index(block) for block in BLOCKS]


def _scene_ranges(folder: Path) -> dict[str, tuple[int, int]]:
    """First and last frame id of each scene, where scene_info.npy says so ("calvin_scene_A" or "A")."""
    path = folder / "scene_info.npy"
    if not path.is_file():
        return {}
    ranges = {}
    for name, bounds in load_plain_dict(path).items():
        match = re.fullmatch(r"(?:.*scene_)?([A-Z])", str(name))
        scene = match[1] if match else ""
        if scene not in SCENE_BLOCKS:
            raise DataError(f"{path} names the scene {name!r}; known are {', '.join(SCENE_BLOCKS)}")
        try:
            first, last = (whole_number(bound) for bound in bounds)
        except (ValueError, TypeError) as error:
            raise DataError(f"{path}: the frames of {name} should be the first and the last: {error}") from error
        if not 0 <= first <= last:
            raise DataError(f"{path}: {name} has no frames: {first} to {last}")
        ranges[scene] = (first, last)
    return ranges


def _configured_blocks(folder: Path) -> tuple[str, ...] | None:
    """The blocks in the order of the merged config, which is the order of scene_obs (CALVIN SPEC 1.3)."""
    path = folder / ".hydra" / "merged_config.yaml"
    if not path.is_file():
        return None
    try:
        config: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
        blocks = tuple(map(str, config["scene"]["objects"]["movable_objects"]))
    except Exception as error:  # damaged YAML makes its reader raise almost anything
        raise DataError(
            f"{path} lacks scene.objects.movable_objects, or is damaged: {type(error).__name__}: {error}"
        ) from error
    if sorted(blocks) != sorted(BLOCKS):
        raise DataError(f"{path}: movable_objects are {', '.join(blocks)}; expected are {', '.join(BLOCKS)}")
    return blocks
