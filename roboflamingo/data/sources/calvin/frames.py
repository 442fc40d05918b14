"""Reads frames of a CALVIN split from their .npz files, and refuses what no policy could learn from."""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from calvin_eval.calvin import CALVIN_ACTIONS, CONTROL_RATE_HZ, ROBOT_OBS, SCENE_OBS
from calvin_eval.specs import ActionPart, ActionSpec, RobotSpec
from roboflamingo.data.checks import as_action, as_vector, check_image
from roboflamingo.data.errors import DataError
from roboflamingo.data.sources.base import ACTIONS, DIGEST_BYTES, Frame, Reader

VECTORS = {ROBOT_OBS: 15, SCENE_OBS: 24}
"""Length of each state in a frame's file (CALVIN SPEC 1.12)."""
RECORDED = {"relative": "rel_actions", "absolute": "actions"}
"""CALVIN's names of its two kinds of actions."""
ABSOLUTE_ACTIONS = ActionSpec(
    (ActionPart("pose", size=6, units=("m", "m", "m", "rad", "rad", "rad")), ActionPart("gripper", "binary"))
)
LARGEST_STATE = 1e3
"""No length (m) or angle (rad) of robot and table comes near."""
FARTHEST, TURNS = 10.0, 4 * np.pi
"""Absolute poses lie within so many metres of the origin, their angles within so many rad of zero."""


@dataclass(frozen=True)
class CalvinReader(Reader):
    """Some frames of a split folder.

    Attributes:
        folder: the split's.
        files: n names of files.
        block_order: (n, 3) places of the red, blue and pink block in the recorded scene_obs.
        lengths: numbers of every vector.
        actions: which of CALVIN's two.
        out_of_range: what happens to relative actions beyond [-1, 1].
        missing: why a file is needed, by the place of each file that is not there.
    """

    folder: Path
    files: tuple[str, ...]
    block_order: np.ndarray
    lengths: Mapping[str, int]
    actions: Literal["relative", "absolute"]
    out_of_range: Literal["error", "clip"]
    missing: Mapping[int, str]

    def frames(self, names: tuple[str, ...]) -> Iterator[Frame | DataError]:
        """See `Reader`."""
        for place, (file, order) in enumerate(zip(self.files, self.block_order, strict=True)):
            try:
                if place in self.missing:
                    raise DataError(self.missing[place])
                yield self._frame(self.folder / file, names, order)
            except DataError as error:
                yield error

    def digests(self) -> Iterator[np.ndarray]:
        """See `Reader`."""
        for file in self.files:
            try:
                yield file_digest((self.folder / file).read_bytes())
            except OSError:
                yield np.zeros(DIGEST_BYTES, np.uint8)

    def _frame(self, path: Path, names: tuple[str, ...], order: np.ndarray) -> Frame:
        """One frame: numbers in float32, blocks in canonical order.

        Raises:
            DataError: the file is broken, or a value is not what CALVIN SPEC 1.12 says. Names file and key.
        """
        content = _bytes(path)
        recorded = RECORDED[self.actions]
        raw = load_arrays(path, [recorded if name == ACTIONS else name for name in names], content)
        arrays: dict[str, np.ndarray] = {}
        beyond = 0.0
        for name in names:
            if name == ACTIONS:
                arrays[name], beyond = self._action(path, recorded, raw[recorded])
            elif name.startswith("rgb_"):
                check_image(path, name, raw[name])
                arrays[name] = raw[name]
            else:
                arrays[name] = as_vector(path, name, raw[name], self.lengths[name])
        for name in VECTORS:
            if name in arrays and np.abs(arrays[name]).max() > LARGEST_STATE:
                largest = np.abs(arrays[name]).max()
                raise DataError(f"{path}: {name} holds {largest:g}, which is no length (m) and no angle (rad)")
        if SCENE_OBS in arrays:
            blocks = arrays[SCENE_OBS][6:].reshape(3, 6)[order]
            arrays[SCENE_OBS] = np.concatenate([arrays[SCENE_OBS][:6], blocks.ravel()])
        return Frame(arrays, file_digest(content), beyond)

    def _action(self, path: Path, key: str, value: np.ndarray) -> tuple[np.ndarray, float]:
        spec = CALVIN_ACTIONS if self.actions == "relative" else ABSOLUTE_ACTIONS
        action, beyond = as_action(path, key, value, spec, self.out_of_range)
        pose = action[:6]
        if self.actions == "absolute" and (np.abs(pose[:3]).max() > FARTHEST or np.abs(pose[3:]).max() > TURNS):
            raise DataError(f"{path}: {key} {pose.tolist()} is no pose: it should be metres, then rad")
        return action, beyond


def spec_of(path: Path, actions: Literal["relative", "absolute"]) -> RobotSpec:
    """What a frame's file holds: its images of three channels, and its rows of numbers.

    Raises:
        DataError: the file is broken.
    """
    cameras: dict[str, tuple[int, int]] = {}
    lengths: dict[str, int] = {}
    for name, (shape, kind) in _shapes(path).items():
        if name.startswith("rgb_") and len(shape) == 3 and shape[2] == 3:  # tactile images have 6
            cameras[name] = (shape[0], shape[1])
        elif len(shape) == 1 and shape[0] and kind in "fiu" and name not in RECORDED.values():
            lengths[name] = shape[0]
    return RobotSpec(
        cameras=dict(sorted(cameras.items(), reverse=True)),  # rgb_static first
        state={name: length for name, length in lengths.items() if name != SCENE_OBS},
        privileged={name: length for name, length in lengths.items() if name == SCENE_OBS},
        actions=CALVIN_ACTIONS if actions == "relative" else ABSOLUTE_ACTIONS,
        rate_hz=CONTROL_RATE_HZ,
    )


def file_digest(content: bytes) -> np.ndarray:
    """(16,) uint8 that tell the bytes of a frame's file from any others."""
    return np.frombuffer(hashlib.blake2b(content, digest_size=DIGEST_BYTES).digest(), np.uint8)


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error


def _shapes(path: Path) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape and kind of type of every array of an .npz file, from their headers alone."""
    content = _bytes(path)
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            found: dict[str, tuple[tuple[int, ...], str]] = {}
            for name in archive.namelist():
                with archive.open(name) as member:
                    version = np.lib.format.read_magic(member)
                    read = np.lib.format.read_array_header_1_0
                    shape, _, kind = (read if version == (1, 0) else np.lib.format.read_array_header_2_0)(member)
                    found[name.removesuffix(".npy")] = (shape, kind.kind)
            return found
    except Exception as error:  # damage makes zipfile, zlib and numpy raise almost anything
        raise DataError(f"{path}: the archive cannot be read: {error}") from error


def load_arrays(path: Path, keys: Sequence[str], content: bytes | None = None) -> dict[str, np.ndarray]:
    """The named arrays of an .npz file; nothing else in it is even decompressed.

    Each is read to its end, where the archive's checksum is compared (np.load stops just before it).

    Args:
        path: the file.
        keys: names of arrays.
        content: its bytes, where they are known.

    Raises:
        DataError: the file is damaged, or lacks an array. Names both.
    """
    content = _bytes(path) if content is None else content
    key = "the archive"
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            names = archive.namelist()
            raw = {}
            for key in keys:
                if f"{key}.npy" not in names:
                    held = ", ".join(name.removesuffix(".npy") for name in names)
                    raise DataError(f"{path} has no {key}; it holds {held}")
                member = io.BytesIO(archive.read(f"{key}.npy"))
                raw[key] = np.lib.format.read_array(member, allow_pickle=False)
            return raw
    except DataError:
        raise
    except Exception as error:  # damage makes zipfile, zlib and numpy raise almost anything
        raise DataError(f"{path}: {key} cannot be read: {error}") from error
