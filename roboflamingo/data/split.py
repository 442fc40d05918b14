"""Finds what a CALVIN split folder (`training`, `validation`) holds, before any frame is read."""

from __future__ import annotations

import hashlib
import os
import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from calvin_eval.calvin import BLOCKS
from roboflamingo.data.annotations import Segment, read_segments
from roboflamingo.data.errors import DataError
from roboflamingo.data.plain import load_plain_dict, whole_number

SCENE_BLOCKS = {
    "A": ("block_pink", "block_blue", "block_red"),
    "B": ("block_red", "block_blue", "block_pink"),
    "C": ("block_blue", "block_red", "block_pink"),
    "D": ("block_red", "block_blue", "block_pink"),
}
"""The order in which each scene's recorded `scene_obs` lists them (CALVIN SPEC 1.3)."""

FRAME = re.compile(r"(.*?)(\d+)\.npz")
"""A frame's file name: CALVIN's own loader takes any prefix and any number of digits."""


@dataclass(frozen=True)
class Split:
    """One split folder.

    Attributes:
        folder: where it lies.
        segments: what is annotated.
        frames: (N,) int64, ids of the frames that any segment covers, ascending, each once.
        names: N, their files' names.
        stamps: (N, 3) int64, size (bytes), times of change of content and of anything (ns) of each file.
        block_order: (N, 3) int64, per frame the places of red, blue and pink among the three blocks of the
            recorded scene_obs.
        notes: digest of the contents of the files that describe the frames: annotations, scenes.
    """

    folder: Path
    segments: tuple[Segment, ...]
    frames: np.ndarray
    names: tuple[str, ...]
    stamps: np.ndarray
    block_order: np.ndarray
    notes: str

    def path(self, frame: int) -> Path:
        """The file of a frame."""
        return self.folder / self.names[int(np.searchsorted(self.frames, frame))]


def folder_at(text: str | Path) -> Path:
    """The folder that a user names: `~` is the home, relative ones start here, a trailing slash means nothing."""
    return Path(os.path.abspath(Path(text).expanduser()))


def read_split(folder: Path, language: str = "lang_annotations") -> Split:
    """Looks through a split folder.

    Raises:
        DataError: a file is missing, broken or contradicts another. Names it.
    """
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder; a CALVIN data set has training/ and validation/")
    segments = tuple(read_segments(folder, language))
    files = _frame_files(folder)
    _check_frames(folder, language, segments, files)
    frames = np.unique(np.concatenate([np.arange(s.start, s.stop) for s in segments]))
    entries = [files[frame] for frame in frames.tolist()]
    try:
        status = [entry.stat() for entry in entries]
    except FileNotFoundError as error:  # a link that leads nowhere, say
        raise DataError(f"{error.filename} cannot be read: {error.strerror}") from error
    return Split(
        folder=folder,
        segments=segments,
        frames=frames,
        names=tuple(entry.name for entry in entries),
        stamps=np.array([(s.st_size, s.st_mtime_ns, s.st_ctime_ns) for s in status], np.int64),
        block_order=_block_order(folder, frames),
        notes=_notes(folder, language),
    )


def _frame_files(folder: Path) -> dict[int, os.DirEntry[str]]:
    """All frames of a folder by id, found in one listing. Where several kinds of names lie there, "episode_" counts.

    Raises:
        DataError: two files have the same id.
    """
    found: dict[str, dict[int, os.DirEntry[str]]] = {}
    for entry in os.scandir(folder):
        if (match := FRAME.fullmatch(entry.name)) and not entry.name.startswith("."):
            known = found.setdefault(match[1], {}).setdefault(int(match[2]), entry)
            if known is not entry:
                raise DataError(f"{folder} holds frame {int(match[2])} twice, as {known.name} and {entry.name}")
    if len(found) > 1 and "episode_" not in found:
        raise DataError(f"{folder} holds frames of several names: {', '.join(sorted(found))}; CALVIN's begin episode_")
    return found.get("episode_") or next(iter(found.values()), {})


def _check_frames(
    folder: Path, language: str, segments: tuple[Segment, ...], files: dict[int, os.DirEntry[str]]
) -> None:
    """Refuses segments whose frames are not all there."""
    if not files:
        raise DataError(f"{folder} holds no frames; CALVIN's are episode_0000000.npz and so on")
    some = next(iter(files.values())).name
    prefix, digits = FRAME.fullmatch(some).groups()  # type: ignore[union-attr]  # it matched before
    for number, segment in enumerate(segments):
        for frame in range(segment.start, segment.stop):
            if frame not in files:
                raise DataError(
                    f"{folder / f'{prefix}{frame:0{len(digits)}d}.npz'} is missing, but segment {number} of "
                    f"{language}/auto_lang_ann.npy ({segment.task}) needs it"
                )


def _notes(folder: Path, language: str) -> str:
    """Digest of the contents of the files beside the frames that are read."""
    digest = hashlib.sha256()
    for name in (f"{language}/auto_lang_ann.npy", "scene_info.npy", ".hydra/merged_config.yaml"):
        path = folder / name
        # the folder of the language is no content: another of the same sentences is the same
        digest.update(f"{name.rsplit('/', 1)[-1]}:".encode() + (path.read_bytes() if path.is_file() else b"none"))
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
