"""Finds what a CALVIN split folder (`training`, `validation`) holds, before any frame is read."""

from __future__ import annotations

import hashlib
import os
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml

from calvin_eval.protocol import BLOCKS
from roboflamingo.data.annotations import DataError, Segment, load_plain_dict, read_segments

SCENE_BLOCKS = {
    "A": ("block_pink", "block_blue", "block_red"),
    "B": ("block_red", "block_blue", "block_pink"),
    "C": ("block_blue", "block_red", "block_pink"),
    "D": ("block_red", "block_blue", "block_pink"),
}
"""The order in which each scene's recorded `scene_obs` lists them (CALVIN SPEC 1.3)."""


@dataclass(frozen=True)
class Split:
    """One split folder.

    Attributes:
        folder: where it lies.
        segments: what is annotated.
        frames: (N,) int64, ids of the frames that any segment covers, ascending, each once.
        block_order: (N, 3) int64, per frame the places of red, blue and pink among the three blocks of the
            recorded scene_obs.
        fingerprint: changes when an annotation or a needed frame does.
    """

    folder: Path
    segments: tuple[Segment, ...]
    frames: np.ndarray
    block_order: np.ndarray
    fingerprint: str

    def path(self, frame: int) -> Path:
        """The file of a frame."""
        return self.folder / frame_name(frame)


def frame_name(frame: int) -> str:
    """The file name that CALVIN gives a frame."""
    return f"episode_{frame:07d}.npz"


def read_split(folder: Path, language: str = "lang_annotations") -> Split:
    """Looks through a split folder.

    Raises:
        DataError: a file is missing, broken or contradicts another. Names it.
    """
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder; a CALVIN data set has training/ and validation/")
    segments = tuple(read_segments(folder, language))
    frames = np.unique(np.concatenate([np.arange(s.start, s.stop) for s in segments]))
    return Split(
        folder=folder,
        segments=segments,
        frames=frames,
        block_order=_block_order(folder, frames),
        fingerprint=_fingerprint(folder, language, segments, frames),
    )


def _fingerprint(folder: Path, language: str, segments: tuple[Segment, ...], frames: np.ndarray) -> str:
    """Digest of the annotation files' contents and of every needed frame's name, size and time of change."""
    digest = hashlib.sha256()
    for name in (f"{language}/auto_lang_ann.npy", "scene_info.npy", ".hydra/merged_config.yaml"):
        path = folder / name
        digest.update(f"{name}:".encode() + (path.read_bytes() if path.is_file() else b"none"))
    found = {entry.name: entry for entry in os.scandir(folder)}  # one listing, however many frames
    for frame in frames.tolist():
        entry = found.get(frame_name(frame))
        if entry is None:
            number = next(i for i, s in enumerate(segments) if s.start <= frame < s.stop)
            raise DataError(
                f"{folder / frame_name(frame)} is missing, but segment {number} of "
                f"{language}/auto_lang_ann.npy ({segments[number].task}) needs it"
            )
        status = entry.stat()
        digest.update(f"{frame},{status.st_size},{status.st_mtime_ns};".encode())
    return digest.hexdigest()


def _block_order(folder: Path, frames: np.ndarray) -> np.ndarray:
    """Where `BLOCKS` stand in each frame's scene_obs, from scene_info.npy or the merged config."""
    order = np.empty((len(frames), len(BLOCKS)), np.int64)
    ranges = _scene_ranges(folder)
    recorded = _configured_blocks(folder)
    if len(ranges) > 1 or (ranges and recorded is None):  # one config cannot describe several scenes
        order[:] = -1
        for scene, (first, last) in ranges.items():
            inside = (frames >= first) & (frames <= last)
            if (order[inside] >= 0).any():
                raise DataError(f"{folder / 'scene_info.npy'} puts frames into two scenes: {ranges}")
            order[inside] = _places(SCENE_BLOCKS[scene])
        if (order < 0).any():
            stray = frames[(order < 0).any(axis=1)][0]
            raise DataError(f"{folder / 'scene_info.npy'} puts frame {stray} into no scene: {ranges}")
    elif recorded is not None:
        order[:] = _places(recorded)
    else:
        warnings.warn(
            f"{folder} has neither .hydra/merged_config.yaml nor scene_info.npy: the blocks in scene_obs are "
            f"taken to be {', '.join(BLOCKS)}",
            stacklevel=2,
        )
        order[:] = _places(BLOCKS)
    return order


def _places(recorded: tuple[str, ...]) -> list[int]:
    return [recorded.index(block) for block in BLOCKS]


def _scene_ranges(folder: Path) -> dict[str, tuple[int, int]]:
    """First and last frame id of each scene, where scene_info.npy says so ("calvin_scene_A" or "A")."""
    path = folder / "scene_info.npy"
    if not path.is_file():
        return {}
    ranges = {}
    for name, (first, last) in load_plain_dict(path).items():
        scene = str(name)[-1]
        if scene not in SCENE_BLOCKS:
            raise DataError(f"{path} names the scene {name!r}; known are {', '.join(SCENE_BLOCKS)}")
        ranges[scene] = (int(first), int(last))
    return ranges


def _configured_blocks(folder: Path) -> tuple[str, ...] | None:
    """The blocks in the order of the merged config, which is the order of scene_obs (CALVIN SPEC 1.3)."""
    path = folder / ".hydra" / "merged_config.yaml"
    if not path.is_file():
        return None
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
        blocks = tuple(config["scene"]["objects"]["movable_objects"])
    except (yaml.YAMLError, KeyError, TypeError) as error:
        raise DataError(f"{path} lacks scene.objects.movable_objects: {error}") from error
    if sorted(blocks) != sorted(BLOCKS):
        raise DataError(f"{path}: movable_objects are {', '.join(blocks)}; expected are {', '.join(BLOCKS)}")
    return blocks
