"""Where the files of a LeRobotDataset v3.0 lie, and what `meta/info.json` says of them.

    meta/info.json                                 fps, features (dtype, shape, names), patterns of paths, counts
    meta/stats.json                                statistics of every feature
    meta/tasks.parquet                             task texts, each with its task_index
    meta/episodes/chunk-000/file-000.parquet       a row an episode: its tasks, length, files, times in the videos
    data/chunk-000/file-000.parquet                a row a frame: numbers, and images that are kept as PNG
    videos/KEY/chunk-000/file-000.mp4              the frames of a camera; several episodes one after another

A feature is a column of the data, or a video. Cameras are features of dtype `video` or `image`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from calvin_eval.system.errors import MissingExtraError
from calvin_eval.system.files import read_json
from roboflamingo.data.errors import DataError

VERSION = "v3.0"
INFO, STATS, TASKS = "meta/info.json", "meta/stats.json", "meta/tasks.parquet"
NAMES, CHECKSUMS = "meta/roboflamingo.json", "meta/checksums.json"
"""Files of our own, which `lerobot` passes over: what states and parts of the action are called; SHA-256 of files."""
EPISODES = "meta/episodes/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
DATA = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEOS = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
CHUNK = 1000
"""Files in a chunk, a folder."""

INDEX_FEATURES: dict[str, dict[str, Any]] = {
    "timestamp": {"dtype": "float32", "shape": [1], "names": None},
    "frame_index": {"dtype": "int64", "shape": [1], "names": None},
    "episode_index": {"dtype": "int64", "shape": [1], "names": None},
    "index": {"dtype": "int64", "shape": [1], "names": None},
    "task_index": {"dtype": "int64", "shape": [1], "names": None},
}
"""Features that every set has; seconds and frames are counted from the episode's start, `index` from the set's."""

NUMBERS = ("float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "bool")
"""Types of which vectors may be."""


def need(module: str) -> ModuleType:
    """One of the libraries that this format needs.

    Args:
        module: `pyarrow`, `pyarrow.parquet` or `av`.

    Raises:
        MissingExtraError: it is not installed.
    """
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.split(".")[0]
        raise MissingExtraError(
            f"LeRobot data sets need the {package} package: pip install 'roboflamingo[lerobot]'"
        ) from error


@dataclass(frozen=True)
class Feature:
    """One feature as `meta/info.json` describes it.

    Attributes:
        key: its name.
        dtype: `video`, `image`, or a type of numbers or text.
        shape: of one frame's value.
        names: of a vector's numbers, where the set says them.
        depth: whether a camera's pixels are distances.
    """

    key: str
    dtype: str
    shape: tuple[int, ...]
    names: tuple[str, ...] = ()
    depth: bool = False

    @property
    def camera(self) -> bool:
        """Whether it is images of colours."""
        return self.dtype in ("video", "image") and not self.depth

    @property
    def vector(self) -> bool:
        """Whether it is a row of numbers."""
        return self.dtype in NUMBERS and len(self.shape) == 1

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of a camera's images; sets write the channels first or last."""
        first, second, third = self.shape
        return (second, third) if self.names[:1] in (("channel",), ("channels",)) or third > 4 else (first, second)


@dataclass(frozen=True)
class Info:
    """`meta/info.json`.

    Attributes:
        folder: of the set.
        fps: frames a second.
        features: by name, in the file's order.
        episodes: how many.
        frames: how many, of all episodes.
        splits: first episode and the one after the last, by name.
        data_path: pattern of the tables' paths.
        video_path: pattern of the videos' paths.
        robot: the robot's name; empty where unknown.
    """

    folder: Path
    fps: float
    features: Mapping[str, Feature]
    episodes: int
    frames: int
    splits: Mapping[str, tuple[int, int]]
    data_path: str = DATA
    video_path: str = VIDEOS
    robot: str = ""

    def data_file(self, chunk: int, file: int) -> Path:
        """The table at a place."""
        return self.folder / self.data_path.format(chunk_index=chunk, file_index=file)

    def video_file(self, key: str, chunk: int, file: int) -> Path:
        """The video of a camera at a place."""
        return self.folder / self.video_path.format(video_key=key, chunk_index=chunk, file_index=file)


def read_info(folder: Path) -> Info:
    """What `meta/info.json` says.

    Raises:
        DataError: it is missing, damaged or of another version. Names file and key.
    """
    path = folder / INFO
    if not path.is_file():
        raise DataError(f"{path} is missing; a LeRobot data set has it")
    content = read_json(path, "the description of a LeRobot data set")
    if not isinstance(content, dict):
        raise DataError(f"{path} holds a {type(content).__name__}, not a description of a data set")
    version = str(content.get("codebase_version"))
    if not re.fullmatch(r"v?3(\.\d+)*", version):
        raise DataError(
            f"{path}: codebase_version is {version}; v3.0 is read. Of v2.1, `python -m "
            "lerobot.scripts.convert_dataset_v21_to_v30` makes v3.0"
        )
    key = "features"
    try:
        features = {str(name): _feature(str(name), value) for name, value in content["features"].items()}
        key = "fps"
        fps = float(content["fps"])
        key = "total_episodes"
        episodes = int(content["total_episodes"])
        key = "total_frames"
        frames = int(content["total_frames"])
        key = "splits"
        splits = {str(name): _range(text, episodes) for name, text in (content.get("splits") or {}).items()}
        key = "data_path"
        patterns = str(content.get("data_path") or DATA), str(content.get("video_path") or VIDEOS)
        patterns[0].format(chunk_index=0, file_index=0)
        key = "video_path"
        patterns[1].format(video_key="", chunk_index=0, file_index=0)
    except (KeyError, ValueError, TypeError, AttributeError, IndexError) as error:
        raise DataError(f"{path}: {key} is missing or damaged: {type(error).__name__}: {error}") from error
    if not math.isfinite(fps) or fps <= 0 or episodes < 0 or frames < 0:
        raise DataError(f"{path}: fps {fps}, total_episodes {episodes} and total_frames {frames} cannot be")
    if any(Path(pattern).is_absolute() or ".." in Path(pattern).parts for pattern in patterns):
        raise DataError(f"{path}: data_path and video_path must stay within the data set")
    robot = str(content.get("robot_type") or "")
    return Info(folder, fps, features, episodes, frames, splits, *patterns, robot)


def _feature(key: str, value: Mapping[str, Any]) -> Feature:
    """One entry of `features`.

    Raises:
        ValueError: it is damaged. Says what is wrong.
    """
    shape = tuple(int(size) for size in value["shape"])
    names, dtype = value.get("names"), str(value["dtype"])
    if isinstance(names, Mapping):  # {"motors": [...]}: one list under a title
        names = next(iter(names.values()), None)
    if not isinstance(names, list):
        names = []
    if "/" in key or any(size < 1 for size in shape):
        raise ValueError(f"{key} of shape {list(shape)} cannot be")
    if dtype in ("video", "image") and len(shape) != 3:
        raise ValueError(f"{key} is a camera of shape {list(shape)}; height, width and channels are needed")
    notes = [value.get(place) or {} for place in ("info", "video_info")]
    depth = any(bool(note.get(name)) for note in notes for name in ("is_depth_map", "video.is_depth_map"))
    return Feature(key, dtype, shape, tuple(map(str, names)), depth)


def _range(text: str, episodes: int) -> tuple[int, int]:
    """Of "0:10"; either end may be left out."""
    first, stop = (int(end) if end else None for end in text.split(":"))
    bounds = (first or 0, episodes if stop is None else stop)
    if not 0 <= bounds[0] <= bounds[1] <= episodes:
        raise ValueError(f"{text} is outside of {episodes} episodes")
    return bounds


def info_json(info: Info, tasks: int, features: Mapping[str, Mapping[str, Any]]) -> str:
    """The text of `meta/info.json`.

    Args:
        info: what it says; the features are given besides, as they may hold more than is read.
        tasks: how many.
        features: name -> dtype, shape, names.
    """
    content = {
        "codebase_version": VERSION,
        "robot_type": info.robot or None,
        "total_episodes": info.episodes,
        "total_frames": info.frames,
        "total_tasks": tasks,
        "chunks_size": CHUNK,
        "data_files_size_in_mb": 100,
        "video_files_size_in_mb": 200,
        "fps": int(info.fps) if info.fps == int(info.fps) else info.fps,
        "splits": {name: f"{first}:{stop}" for name, (first, stop) in info.splits.items()},
        "data_path": info.data_path,
        "video_path": info.video_path if any(f["dtype"] == "video" for f in features.values()) else None,
        "features": features,
    }
    return json.dumps(content, indent=4) + "\n"
