"""Writes small data sets in CALVIN's format (CALVIN SPEC 1.12) whose frames are noise."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from rich.console import Console

from roboflamingo.data.sources import open_source
from roboflamingo.data.sources.base import SourceOptions
from roboflamingo.data.sources.calvin.source import CalvinSource
from roboflamingo.data.store.packing import pack
from roboflamingo.data.store.settings import PackSettings

QUIET = Console(quiet=True)
TASKS = ("open_drawer", "close_drawer", "push_red_block_left", "turn_on_led")


def write_frame(path: Path, random: np.random.Generator, **replaced: np.ndarray) -> None:
    """One frame's file; `replaced` gives keys other contents than noise."""
    action = random.uniform(-1, 1, 7)
    action[6] = random.choice([-1.0, 1.0])
    frame = {
        "actions": action * [0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 1],
        "rel_actions": action,
        "robot_obs": random.uniform(-1, 1, 15),
        "scene_obs": random.uniform(-1, 1, 24),
        "rgb_static": random.integers(0, 256, (40, 40, 3), np.uint8),
        "rgb_gripper": random.integers(0, 256, (24, 24, 3), np.uint8),
    }
    np.savez_compressed(path, **(frame | replaced))  # type: ignore[arg-type]


def write_split(
    folder: Path,
    *,
    lengths: Sequence[int] = (9, 5, 12, 7),
    seed: int = 0,
    first_frame: int = 100,
    overlap: int = 0,
    block_order: Sequence[str] = ("block_red", "block_blue", "block_pink"),
    language: str = "lang_annotations",
) -> list[tuple[int, int]]:
    """Writes a split with one segment of each length and returns their bounds (start, stop).

    Between segments lie two frames that belong to none, or, with `overlap`, frames that belong to both.
    """
    random = np.random.default_rng(seed)
    (folder / ".hydra").mkdir(parents=True)
    (folder / language).mkdir()
    bounds, start = [], first_frame
    for length in lengths:
        bounds.append((start, start + length))
        start += length - overlap if overlap else length + 2
    for frame in range(first_frame, bounds[-1][1] + 2):
        write_frame(folder / f"episode_{frame:07d}.npz", random)
    tasks = [TASKS[i % len(TASKS)] for i in range(len(lengths))]
    annotations = {
        "language": {
            "ann": [f"please {task.replace('_', ' ')} {i}" for i, task in enumerate(tasks)],
            "task": tasks,
            "emb": random.normal(size=(len(tasks), 1, 8)).astype(np.float32),
        },
        "info": {"episodes": [], "indx": bounds},
    }
    np.save(folder / language / "auto_lang_ann.npy", annotations, allow_pickle=True)  # type: ignore[arg-type]
    config: dict[str, Any] = {"scene": {"objects": {"movable_objects": {block: {} for block in block_order}}}}
    (folder / ".hydra" / "merged_config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    return bounds


def write_dataset(folder: Path, *, seed: int = 0, lengths: Sequence[int] = (9, 5, 12, 7)) -> Path:
    """A data set with a training and a validation split."""
    write_split(folder / "training", seed=seed, lengths=lengths)
    write_split(folder / "validation", seed=seed + 1, lengths=lengths[:2], first_frame=9000)
    return folder


def view(static: int, gripper: int | None, *vectors: str, **options: Any) -> PackSettings:
    """Settings for decoded images of these edges, and the states that CALVIN has unless some are named."""
    cameras = {"rgb_static": static} | ({} if gripper is None else {"rgb_gripper": gripper})
    chosen = SourceOptions(**options)
    return PackSettings(cameras=cameras, vectors=vectors or ("robot_obs", "scene_obs"), options=chosen)


def source_of(split: Path, **options: Any) -> CalvinSource:
    """A split folder as a source."""
    return CalvinSource(split.parent, split.name, SourceOptions(**options))


def pack_split(split: Path, cache: Path, settings: PackSettings, processes: int = 1, console: Console = QUIET) -> Path:
    """The packed folder of a split."""
    source = open_source(split.parent, split.name, settings.options)
    return pack(source, cache, settings, processes=processes, console=console)
