"""An encoder of one matrix product, and its tokens of small packed splits, for tests."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from rich.console import Console

from roboflamingo.data.store.reading import PackedFolder
from roboflamingo.data.tokens.caching import WantedTokens, cache_tokens
from roboflamingo.data.tokens.making import TokenFolder
from roboflamingo.data.tokens.reading import FrameTokens
from roboflamingo.data.tokens.shifts import shifts_of
from synthetic import pack_split, view, write_split

QUIET = Console(quiet=True)
SHAPE = (3, 2)
"""V and D of the tokens here."""
CAMERAS = {"rgb_static": 6, "rgb_gripper": 4}


@dataclass
class Linear:
    """Numbers of an image, weighted."""

    scale: float = 1.0
    name: str = "linear"
    seen: list[int] = field(default_factory=list)

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(f"{self.name} {self.scale}".encode()).hexdigest()

    def __call__(self, images: np.ndarray) -> np.ndarray:
        self.seen.append(len(images))
        flat = images.reshape(len(images), -1).astype(np.float32)
        weights = np.random.default_rng(0).normal(size=(flat.shape[1], SHAPE[0] * SHAPE[1])).astype(np.float32)
        return (self.scale / 255) * (flat @ weights).reshape(-1, *SHAPE)


def small_packed(folder: Path) -> Path:
    """A packed split of a few frames."""
    write_split(folder / "set" / "training", lengths=[4, 3, 6], overlap=1)
    return pack_split(folder / "set" / "training", folder / "packed", view(6, 4, "robot_obs"))


def tokens_of(packed: Path, encode: Linear, count: int = 3, console: Console = QUIET, most: float = 1e9) -> FrameTokens:
    shifts = {camera: shifts_of(1, count) for camera in CAMERAS}
    wanted = WantedTokens(PackedFolder(packed, CAMERAS), dict.fromkeys(CAMERAS, SHAPE), shifts)
    return cache_tokens([wanted], packed.parent / "tokens", encode, most, console)[0]


def folder_of(packed: Path, encode: Linear) -> TokenFolder:
    where = packed.parent / "tokens"
    where.mkdir(exist_ok=True)
    return TokenFolder(PackedFolder(packed, CAMERAS), "rgb_static", (0, 0), SHAPE, encode, where)
