"""Small data sets of a robot that is not CALVIN's: cameras `front` and `wrist`, 8 numbers of state and 8 of action."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from roboflamingo.data.lerobot.files import EpisodePlan, WriteSettings
from roboflamingo.data.lerobot.writing import write_dataset

FPS = 10
TASKS = ("put the cup on the plate", "close the box")
JOINTS = [f"joint_{i}.pos" for i in range(7)] + ["gripper.pos"]
FRONT, WRIST = (48, 64), (32, 32)


def image(size: tuple[int, int], episode: int, frame: int) -> np.ndarray:
    """A smooth picture in which a square moves, so that no two frames of a data set are alike."""
    rows, columns = np.mgrid[: size[0], : size[1]]
    picture = np.stack([rows * 3, columns * 3, np.full_like(rows, 40 * episode)], axis=-1) % 256
    place = (3 * frame) % (size[1] - 8)
    picture[8:16, place : place + 8] = (250, 20 * (frame % 12), 30)
    return picture.astype(np.uint8)


@dataclass(frozen=True)
class Robot:
    """A `Recording` made of arithmetic.

    Attributes:
        lengths: frames of every episode.
        first: number of the first episode.
        images: dtype of the cameras.
        fps: frames a second.
    """

    lengths: Sequence[int] = (7, 5, 9)
    first: int = 0
    images: str = "video"
    fps: float = FPS

    @property
    def features(self) -> Mapping[str, Mapping[str, Any]]:
        names = ["height", "width", "channels"]
        return {
            "observation.images.front": {"dtype": self.images, "shape": [*FRONT, 3], "names": names},
            "observation.images.wrist": {"dtype": self.images, "shape": [*WRIST, 3], "names": names},
            "observation.state": {"dtype": "float32", "shape": [8], "names": JOINTS},
            "action": {"dtype": "float32", "shape": [8], "names": JOINTS},
            "next.done": {"dtype": "bool", "shape": [1], "names": None},
        }

    @cached_property
    def episodes(self) -> list[EpisodePlan]:
        return [EpisodePlan(n, TASKS[(self.first + i) % len(TASKS)]) for i, n in enumerate(self.lengths)]

    def part(self, first: int, stop: int) -> Robot:
        return replace(self, lengths=self.lengths[first:stop], first=self.first + first)

    def frames(self, episode: int) -> Iterator[Mapping[str, np.ndarray]]:
        for frame in range(self.lengths[episode]):
            yield self.frame(episode, frame) | {"next.done": np.array([frame + 1 == self.lengths[episode]])}

    def frame(self, episode: int, frame: int) -> dict[str, np.ndarray]:
        episode += self.first
        numbers = np.sin(np.arange(8) + frame / 5 + episode).astype(np.float32)
        return {
            "observation.images.front": image(FRONT, episode, frame),
            "observation.images.wrist": image(WRIST, episode, frame + 3),
            "observation.state": numbers,
            "action": np.append(numbers[:7] / 2, np.float32(frame % 2)),
        }


def write_robot(folder: Path, robot: Robot | None = None, *, validation: int = 1, **settings: Any) -> Robot:
    """Writes a data set, whose last episodes are for validation, and returns what is in it."""
    robot = robot or Robot()
    kept = len(robot.lengths) - validation
    splits = {"train": (0, kept)} | ({"val": (kept, len(robot.lengths))} if validation else {})
    write_dataset(
        folder,
        robot,
        WriteSettings(images="png" if robot.images == "image" else "video", **settings),
        content="a robot",
        splits=splits,
        robot="made up",
        processes=1,
    )
    return robot
