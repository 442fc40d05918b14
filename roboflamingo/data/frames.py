"""Reads frames of a CALVIN split from their .npz files, and refuses what no policy could learn from."""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from roboflamingo.data.errors import DataError
from roboflamingo.data.images import resize_image

VECTORS = {"robot_obs": 15, "scene_obs": 24, "rel_actions": 7, "actions": 7}
"""Length of each vector in a frame's file (CALVIN SPEC 1.12)."""
LARGEST_STATE = 1e3
"""No length (m) or angle (rad) of robot and table comes near."""
FARTHEST, TURNS = 10.0, 4 * np.pi
"""Absolute poses lie within so many metres of the origin, their angles within so many rad of zero."""
ROUNDING = 1e-6
"""By how much relative actions may pass 1: CALVIN clips them in arithmetic of its own."""
HASH_BYTES = 16


@dataclass(frozen=True)
class PackSettings:
    """What is taken from a frame.

    Attributes:
        static_size: pixels a side of the static camera's images, 200 in CALVIN.
        gripper_size: pixels a side of the gripper camera's images, 84 in CALVIN.
        actions: `rel_actions` (relative, what CALVIN's simulator executes) or `actions` (absolute poses).
        language: the sub-folder with the annotations.
        vectors: length of each further vector that is taken.
        gripper: whether the gripper camera's images are taken.
        scene: whether scene_obs is.
        out_of_range: what happens to relative actions beyond [-1, 1]: error, or clip.
    """

    static_size: int = 96
    gripper_size: int = 64
    actions: str = "rel_actions"
    language: str = "lang_annotations"
    vectors: dict[str, int] = field(default_factory=dict)
    gripper: bool = True
    scene: bool = True
    out_of_range: Literal["error", "clip"] = "error"

    def __post_init__(self) -> None:
        if self.actions not in ("rel_actions", "actions"):
            raise DataError(f"actions must be rel_actions or actions, not {self.actions!r}")
        if self.out_of_range not in ("error", "clip"):
            raise DataError(f"data.out_of_range must be error or clip, not {self.out_of_range!r}")
        if min(self.static_size, self.gripper_size) < 1:
            raise DataError(f"images of {self.static_size} and {self.gripper_size} pixels are impossible")
        if taken := self.vectors.keys() & {"rgb_static", "rgb_gripper", *VECTORS}:
            raise DataError(f"policy.vectors names {', '.join(sorted(taken))}, which a policy cannot read as vectors")

    @property
    def keys(self) -> tuple[str, ...]:
        """What of a frame's file is read: images, then vectors."""
        cameras = ("rgb_static", "rgb_gripper") if self.gripper else ("rgb_static",)
        states = ("robot_obs", "scene_obs") if self.scene else ("robot_obs",)
        return (*cameras, *states, self.actions, *self.vectors)

    def arrays(self, frames: int) -> dict[str, tuple[tuple[int, ...], type[np.generic]]]:
        """Shape and type of each packed array of so many frames."""
        S, G = self.static_size, self.gripper_size
        arrays: dict[str, tuple[tuple[int, ...], type[np.generic]]] = {
            "rgb_static": ((frames, S, S, 3), np.uint8),
            "rgb_gripper": ((frames, G, G, 3), np.uint8),
            "robot_obs": ((frames, 15), np.float32),
            "scene_obs": ((frames, 24), np.float32),
            "actions": ((frames, 7), np.float32),
            **{name: ((frames, length), np.float32) for name, length in self.vectors.items()},
        }
        left_out = {"rgb_gripper": self.gripper, "scene_obs": self.scene}
        return {name: array for name, array in arrays.items() if left_out.get(name, True)}


class Frame(NamedTuple):
    """One frame as it is packed.

    Attributes:
        arrays: by name, as `PackSettings.arrays` says.
        digest: (16,) uint8, of the bytes of its file.
        beyond: the largest absolute value of a relative action that was clipped; 0 where none was.
    """

    arrays: dict[str, np.ndarray]
    digest: np.ndarray
    beyond: float


def read_frame(path: Path, settings: PackSettings, block_order: np.ndarray) -> Frame:
    """One frame: images resized, vectors in float32, blocks in canonical order.

    Raises:
        DataError: the file is broken, or a value is not what CALVIN SPEC 1.12 says. Names file and key.
    """
    content = _bytes(path)
    raw = _load(path, content, settings.keys)
    arrays: dict[str, np.ndarray] = {}
    for key, value in raw.items():
        if key.startswith("rgb_"):
            _check_image(path, key, value)
            arrays[key] = resize_image(value, settings.static_size if key == "rgb_static" else settings.gripper_size)
        else:
            arrays[key] = _vector(path, key, value, (VECTORS | settings.vectors)[key])
    for key in ("robot_obs", "scene_obs"):
        if key in arrays and np.abs(arrays[key]).max() > LARGEST_STATE:
            largest = np.abs(arrays[key]).max()
            raise DataError(f"{path}: {key} holds {largest:g}, which is no length (m) and no angle (rad)")
    if "scene_obs" in arrays:
        blocks = arrays["scene_obs"][6:].reshape(3, 6)[block_order]
        arrays["scene_obs"] = np.concatenate([arrays["scene_obs"][:6], blocks.ravel()])
    arrays["actions"], beyond = _action(path, arrays.pop(settings.actions), settings)
    return Frame(arrays, file_digest(content), beyond)


def vector_length(path: Path, name: str) -> int:
    """How many numbers a vector of a frame has.

    Raises:
        DataError: the file is broken, or has no such vector.
    """
    value = _load(path, _bytes(path), (name,))[name]
    if value.ndim != 1 or not len(value) or value.dtype.kind not in "fiu":
        raise DataError(f"{path}: {name} is {value.dtype} {value.shape}; policy.vectors names rows of numbers")
    return len(value)


def file_digest(content: bytes) -> np.ndarray:
    """(16,) uint8 that tell the bytes of a frame's file from any others."""
    return np.frombuffer(hashlib.blake2b(content, digest_size=HASH_BYTES).digest(), np.uint8)


def _check_image(path: Path, key: str, value: np.ndarray) -> None:
    if value.dtype != np.uint8 or value.ndim != 3 or value.shape[2] != 3 or 0 in value.shape:
        raise DataError(f"{path}: {key} is {value.dtype} {value.shape}; expected is uint8 (H, W, 3)")


def _vector(path: Path, key: str, value: np.ndarray, length: int) -> np.ndarray:
    """A vector in float32: numbers that are finite there, too."""
    if value.dtype.kind not in "fiu" or value.shape != (length,):
        raise DataError(f"{path}: {key} of shape {value.shape} and type {value.dtype} is not {length} finite numbers")
    with np.errstate(over="ignore"):  # it is looked for in the next line
        single = value.astype(np.float32)
    if not np.isfinite(single).all():
        place = int(np.flatnonzero(~np.isfinite(single))[0])
        raise DataError(
            f"{path}: {key} of shape {value.shape} is not {length} finite numbers in float32: "
            f"[{place}] is {value[place]}"
        )
    return single


def _action(path: Path, action: np.ndarray, settings: PackSettings) -> tuple[np.ndarray, float]:
    """A recorded action that a head can say, and how far beyond [-1, 1] it was where it was clipped."""
    key, pose = settings.actions, action[:6]
    if action[6] not in (-1, 1):
        raise DataError(f"{path}: {key}[6] is {action[6]}; a gripper command is -1 (close) or 1 (open)")
    if key == "actions":
        if np.abs(pose[:3]).max() > FARTHEST or np.abs(pose[3:]).max() > TURNS:
            raise DataError(f"{path}: {key} {pose.tolist()} is no pose: it should be metres, then rad")
        return action, 0.0
    largest = float(np.abs(pose).max())
    if largest <= 1 + ROUNDING:
        return action, 0.0
    if settings.out_of_range == "error":
        place = int(np.abs(pose).argmax())
        raise DataError(
            f"{path}: {key}[{place}] is {pose[place]:g}; relative actions lie in [-1, 1] (0.02 m, 0.05 rad), and no "
            "policy can say more; correct the data, or set data.out_of_range to clip"
        )
    return np.append(pose.clip(-1, 1), action[6]), largest


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error


def _load(path: Path, content: bytes, keys: Sequence[str]) -> dict[str, np.ndarray]:
    """The named arrays of an .npz file; nothing else in it is even decompressed.

    Each is read to its end, where the archive's checksum is compared (np.load stops just before it).
    """
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
