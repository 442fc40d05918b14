"""The real-robot data of the reference system as a source.

    train/data.hdf5    robot_status/robot_status_0 (N, 31 or more): tool position 10:13, quaternion xyzw 13:17, gripper
                       position 30; vive_control/vive_control_0 (N, 2 or more): gripper command 1 (2 open, 3 close);
                       rgb/rgb_1 the static camera, rgb/rgb_0 the hand's, (N, H, W, 3)
    train/meta.json    num_trajectories, and by number [instruction, frames, video, first row, row after last]

What the reference makes of it is made here, too: poses are turned by a quarter about z and moved into its work space;
the state is position, Euler angles (roll from 0 to 2 pi) and gripper (-1 closed, 1 open); an action leads to the next
frame's pose in the tool's own frame, in units of 1/50 m and 1/33 rad. A trajectory opens or closes the gripper once;
its last frame has no next one and is no row. The files do not say at which rate they were recorded.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from scipy.spatial.transform import Rotation

from calvin_eval.calvin import GRIPPER, STATIC
from calvin_eval.specs import ActionPart, ActionSpec, RobotSpec
from calvin_eval.system.files import read_json
from roboflamingo.data.checks import as_action, as_vector, check_image
from roboflamingo.data.errors import DataError
from roboflamingo.data.sources.base import ACTIONS, Reader, SourceOptions
from roboflamingo.data.sources.hdf5 import array_of, blocks, opened
from roboflamingo.data.sources.trajectories import Make, TrajectoryReader, TrajectorySource

FOLDERS = {"training": ("train",), "validation": ("val", "valid", "test")}
STATE = "robot_state"
STATUS, CONTROL = "robot_status/robot_status_0", "vive_control/vive_control_0"
IMAGES = {STATIC: "rgb/rgb_1", GRIPPER: "rgb/rgb_0"}
CROP = (slice(190, 700), slice(250, 1050))
"""Rows and columns of the static camera's images that are kept, where they are as large: the work space."""
OPEN, CLOSE = 2, 3
"""Commands of the gripper."""
MOVED = 5.0
"""By how much the gripper's position changes at least when it opens or closes."""
TURN = Rotation.from_euler("z", np.pi / 2)
SHIFT = np.array([0.15, -0.75, -0.9])
METRES, RADIANS = 1 / 50, 1 / 33
"""What 1 in an action stands for."""
RATE_HZ = 30.0
"""Assumed."""

ACTION_SPEC = ActionSpec(
    (
        ActionPart("pose", size=6, units=("m",) * 3 + ("rad",) * 3, one=(METRES,) * 3 + (RADIANS,) * 3),
        ActionPart("gripper", "binary"),
    )
)


@dataclass(frozen=True)
class Trajectory:
    """One of the file: rows `start` to `stop` - 1, the last of which has no action."""

    number: int
    instruction: str
    start: int
    stop: int

    @property
    def length(self) -> int:
        """Frames that have an action."""
        return self.stop - self.start - 1


class RealRobotSource(TrajectorySource):
    """One split of such a data set. See `Source`."""

    kind = "real_robot"

    def __init__(self, path: Path, split: str, options: SourceOptions) -> None:
        folder = _folder(path, split)
        if folder is None:
            raise DataError(f"{path} has no data.hdf5 for {split}")
        self.meta = folder / "meta.json"
        self.trajectories = _trajectories(self.meta)
        super().__init__(path, split, options, folder / "data.hdf5", self.trajectories)
        with opened(self.file) as file:
            self._sizes = {name: array_of(self.file, file, key).shape for name, key in IMAGES.items()}
            rows = array_of(self.file, file, STATUS).shape[0]
        if self.trajectories[-1].stop > rows:
            raise DataError(f"{self.meta} counts rows up to {self.trajectories[-1].stop}, and {self.file} has {rows}")

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """See `Source`."""
        return path.is_dir() and any(_folder(path, split) is not None for split in FOLDERS)

    @classmethod
    def splits(cls, path: Path) -> tuple[str, ...]:
        """See `Source`."""
        return tuple(split for split in FOLDERS if _folder(path, split) is not None)

    @cached_property
    def spec(self) -> RobotSpec:
        """See `Source`."""
        cameras = {name: cropped(np.empty(shape[1:], np.uint8), name).shape for name, shape in self._sizes.items()}
        sizes = {name: (shape[0], shape[1]) for name, shape in cameras.items()}
        return RobotSpec(sizes, {STATE: 7}, ACTION_SPEC, RATE_HZ)

    def name(self, row: int) -> str:
        """See `Source`."""
        number, step = self.place(row)
        return f"{self.file}, row {self.trajectories[number].start + step}"

    @cached_property
    def notes(self) -> str:
        """See `Source`."""
        return hashlib.sha256(self.meta.read_bytes()).hexdigest()

    def reader(self, rows: np.ndarray) -> Reader:
        """See `Source`."""
        parts = tuple((self.trajectories[number], steps) for number, steps in self.steps(rows))
        return RealRobotReader(self.file, parts, self.options.out_of_range)


@dataclass(frozen=True)
class RealRobotReader(TrajectoryReader):
    """Some frames of a file.

    Attributes:
        path: of the file.
        parts: trajectories, each with its frames that are wanted, ascending.
        out_of_range: what happens to actions beyond their bounds.
    """

    path: Path
    parts: tuple[tuple[Trajectory, tuple[int, ...]], ...]
    out_of_range: Literal["error", "clip"]

    def maker(self, names: tuple[str, ...]) -> Make:
        """See `TrajectoryReader`."""

        def make(where: str, values: Mapping[str, np.ndarray]) -> tuple[dict[str, np.ndarray], float]:
            arrays, beyond = dict[str, np.ndarray](), 0.0
            for name in names:
                if name in IMAGES:
                    check_image(where, name, values[name])
                    arrays[name] = cropped(values[name], name)
                elif name == ACTIONS:
                    arrays[name], beyond = as_action(where, name, values[name], ACTION_SPEC, self.out_of_range)
                else:
                    arrays[name] = as_vector(where, name, values[name], 7)
            return arrays, beyond

        return make

    def rows(self) -> Iterator[tuple[str, dict[str, np.ndarray] | DataError]]:
        """Every frame's place, and its images, state and action or what is wrong."""
        with opened(self.path) as file:
            images = {name: array_of(self.path, file, key) for name, key in IMAGES.items()}
            for trajectory, frames in self.parts:
                where = [f"{self.path}, row {trajectory.start + frame}" for frame in frames]
                try:
                    states = trajectory_states(self.path, file, trajectory)
                    actions = actions_between(states)
                except DataError as error:
                    yield from ((place, error) for place in where)
                    continue
                wanted = [trajectory.start + frame for frame in frames]
                for frame, place, values in zip(frames, where, blocks(self.path, images, wanted), strict=True):
                    if not isinstance(values, DataError):
                        values |= {STATE: states[frame], ACTIONS: actions[frame]}
                    yield place, values


def trajectory_states(path: Path, file: Any, trajectory: Trajectory) -> np.ndarray:
    """(n, 7) states of all frames of a trajectory.

    Raises:
        DataError: the arrays are too narrow, or the gripper does not open or close just once. Names trajectory.
    """
    where = f"{path}: trajectory {trajectory.number}"
    status = array_of(path, file, STATUS)[trajectory.start : trajectory.stop].astype(np.float64)
    control = array_of(path, file, CONTROL)[trajectory.start : trajectory.stop]
    if status.ndim != 2 or status.shape[1] < 31 or control.ndim != 2 or control.shape[1] < 2:
        raise DataError(f"{where}: {STATUS} needs 31 columns and {CONTROL} 2; they are {status.shape}, {control.shape}")
    if not np.isfinite(status[:, 10:17]).all() or not np.linalg.norm(status[:, 13:17], axis=1).all():
        raise DataError(f"{where}: positions and quaternions must be finite, and no quaternion zero")
    euler = (TURN * Rotation.from_quat(status[:, 13:17])).as_euler("xyz")
    euler[:, 0] %= 2 * np.pi
    try:
        gripper = gripper_states(status[:, 30], control[:, 1])
    except ValueError as error:
        raise DataError(f"{where}: {error}") from error
    return np.concatenate([TURN.apply(status[:, 10:13]) + SHIFT, euler, gripper[:, None]], axis=1)


def gripper_states(positions: np.ndarray, commands: np.ndarray) -> np.ndarray:
    """(n,) -1 closed or 1 open: from the frame on at which the gripper has moved after its one command.

    Args:
        positions: (n,) of the gripper.
        commands: (n,) `OPEN`, `CLOSE` or others.

    Raises:
        ValueError: there is not just one change to open or close, or it was so before.
    """
    changed = np.flatnonzero((commands[1:] != commands[:-1]) & np.isin(commands[1:], (OPEN, CLOSE))) + 1
    if len(changed) != 1:
        raise ValueError(f"the gripper is told {len(changed)} times to open or close; it should be once")
    change = int(changed[0])
    before, after = commands[change // 2], commands[change]
    if {int(before), int(after)} != {OPEN, CLOSE}:
        raise ValueError(f"the gripper's command goes from {before} to {after}; it should be from 2 to 3 or back")
    moved = np.flatnonzero(np.abs(positions - positions[change // 2]) > MOVED)
    moved = moved[moved > change]  # the position follows a frame behind the command
    first = int(moved[0]) if len(moved) else len(commands) - 1
    opens = after == OPEN
    return np.where((np.arange(len(commands)) >= first) == opens, 1.0, -1.0)


def actions_between(states: np.ndarray) -> np.ndarray:
    """(n - 1, 7) actions that lead from each state (n, 7) to the next, in the tool's frame."""
    rotations = Rotation.from_euler("xyz", states[:, 3:6])
    here, there = rotations[:-1], rotations[1:]
    moved = here.inv().apply(states[1:, :3] - states[:-1, :3])
    turned = (here.inv() * there).as_euler("xyz")
    return np.concatenate([moved / METRES, turned / RADIANS, states[1:, 6:]], axis=1)


def cropped(image: np.ndarray, camera: str) -> np.ndarray:
    """The part of an image (H, W, 3) that is kept."""
    if camera == STATIC and image.shape[0] >= CROP[0].stop and image.shape[1] >= CROP[1].stop:
        return image[CROP]
    return image


def _folder(path: Path, split: str) -> Path | None:
    """The folder of a split, if it has both files."""
    folders = (path / name for name in FOLDERS[split])
    return next((f for f in folders if (f / "data.hdf5").is_file() and (f / "meta.json").is_file()), None)


def _trajectories(path: Path) -> list[Trajectory]:
    """What `meta.json` lists, longer than one frame.

    Raises:
        DataError: it is damaged. Names the trajectory.
    """
    content = read_json(path, "the trajectories of a real-robot data set")
    found: list[Trajectory] = []
    number = "num_trajectories"
    try:
        for number in map(str, range(content["num_trajectories"])):
            text, frames, _, start, stop = content[number][:5]
            if not isinstance(text, str) or not 0 <= start < stop or stop - start != frames:
                raise ValueError(f"{content[number]} is no sentence and rows")
            if found and start < found[-1].stop:
                raise ValueError("its rows overlap those of the one before")
            found.append(Trajectory(int(number), text, start, stop))
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path}: trajectory {number} is missing or damaged: {error}") from error
    found = [each for each in found if each.length > 0]
    if not found:
        raise DataError(f"{path} lists no trajectory of two frames or more")
    return found
