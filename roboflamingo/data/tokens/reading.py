"""Reads the kept tokens of a packed split's images."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from calvin_eval.system.locks import hold_in_use
from roboflamingo.data.errors import DataError
from roboflamingo.data.store.arrays import Arrays, open_array
from roboflamingo.data.store.index import arrays_of, read_sealed

FORMAT = 1
"""Raised when the layout of a folder of tokens changes, so that older ones are made again."""
INDEX, TOKENS = "tokens.json", "tokens"


def read_token_index(folder: Path) -> dict[str, Any]:
    """The index of a folder of tokens.

    Raises:
        DataError: it is missing or damaged.
    """
    index = read_sealed(folder / INDEX)
    if index is None or index.get("format") != FORMAT:
        raise DataError(f"{folder / INDEX} is missing, damaged or of another version; delete {folder} and train again")
    return index


class _InUse:
    """Marks a file as used for as long as this object lives."""

    def __init__(self, path: Path) -> None:
        try:
            self._handle = hold_in_use(path)
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error.strerror or error}") from error

    def __del__(self) -> None:
        if hasattr(self, "_handle"):
            os.close(self._handle)


class FrameTokens:
    """Tokens of every image of one packed split, which nobody removes while they are read (see `evicting.py`).

    They travel to other processes without their arrays.

    Args:
        folders: by camera, one of tokens for each shift; the first is of images that were not moved.

    Attributes:
        cameras: how many shifts there are of each camera's images.

    Raises:
        DataError: a folder is missing or damaged.
    """

    def __init__(self, folders: Mapping[str, Sequence[Path]]) -> None:
        self.folders = {camera: tuple(shifts) for camera, shifts in folders.items()}
        self.cameras = {camera: len(shifts) for camera, shifts in self.folders.items()}
        self._arrays: dict[Path, Arrays] = {
            folder: arrays_of(read_token_index(folder)) for shifts in self.folders.values() for folder in shifts
        }
        self._open()

    def _open(self) -> None:
        self._used = [_InUse(folder / INDEX) for folder in self._arrays]
        self._maps = {
            camera: [open_array(folder, TOKENS, *self._arrays[folder][TOKENS]) for folder in shifts]
            for camera, shifts in self.folders.items()
        }

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_maps", "_used")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()

    def take(self, camera: str, rows: np.ndarray, moved: np.ndarray | None = None) -> np.ndarray:
        """Tokens (..., V, D) fp16 of a camera's images in `rows` (...).

        Args:
            camera: its name.
            rows: of the packed split, (B, ...).
            moved: (B,) number of the shift of each of the B; None for images that were not moved.
        """
        maps = self._maps[camera]
        if moved is None or len(maps) == 1:
            taken: np.ndarray = np.take(maps[0], rows, axis=0)
            return taken
        taken = np.empty((*rows.shape, *maps[0].shape[1:]), maps[0].dtype)
        for place, number in enumerate(moved.tolist()):  # a window at a time stays in the processor's cache
            taken[place] = maps[number][rows[place]]
        return taken
