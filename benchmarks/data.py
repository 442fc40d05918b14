"""How fast windows of demonstrations are read: from the packed cache, and from CALVIN's own files.

    python benchmarks/data.py [--data task_D_D] [--seconds 5]

Without --data, a few episodes are collected first. All figures come from one run on one core; the last line is one
line of JSON. `loading_share` is the part of a training step of the small policy that goes into reading its batch.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import torch
from facts import made_on

from calvin_eval.demonstrations.collect import CollectSettings, collect
from calvin_eval.demonstrations.episodes import EpisodeSettings
from roboflamingo.data.sources import open_source
from roboflamingo.data.store.packing import pack
from roboflamingo.data.store.settings import PackSettings
from roboflamingo.data.windows import Windows, to_tensors
from roboflamingo.policy.config import PolicyConfig
from roboflamingo.policy.roboflamingo import RoboFlamingo

BATCH = 32


def rate(seconds: float, read: Callable[[np.ndarray], object], count: int) -> float:
    """Windows a second that `read` manages, given numbers of `BATCH` windows at a time."""
    rng, done, started = np.random.default_rng(0), 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        read(rng.integers(0, count, BATCH))
        done += BATCH
    return done / (time.perf_counter() - started)


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a CALVIN data set")
    parser.add_argument("--seconds", type=float, default=5.0, help="for each figure")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        if options.data is None:
            collected = CollectSettings(
                scenes="D", validation_scene="D", episodes=16, validation_episodes=1, episode=EpisodeSettings(tasks=3)
            )
            options.data = collect(Path(scratch), collected)
        config = PolicyConfig()
        split = options.data / "training"
        started = time.perf_counter()
        sizes = {name: camera.size for name, camera in config.cameras.items()}
        settings = PackSettings(cameras=sizes, vectors=("robot_obs", "scene_obs"))
        packed = pack(open_source(options.data), Path(scratch) / "packed", settings)
        seconds = time.perf_counter() - started
        files = sorted(split.glob("episode_*.npz"))

        def read_files(numbers: np.ndarray) -> None:
            for number in numbers:
                with np.load(files[number]) as frame:
                    _ = {key: frame[key] for key in frame.files}

        figures = {"calvin_files_T1": rate(options.seconds, read_files, len(files))}
        for window in (1, 12):
            windows = Windows([packed], window=window, chunk=config.chunk)
            figures[f"packed_T{window}"] = rate(options.seconds, windows.__getitems__, len(windows))
        windows = Windows([packed], window=1, chunk=config.chunk)
        policy = RoboFlamingo(config.with_words(windows.instructions)).train()
        optimizer = torch.optim.AdamW(policy.parameters())

        def train(numbers: np.ndarray) -> None:
            policy.loss(to_tensors(windows.__getitems__(numbers.tolist())))["loss"].backward()
            optimizer.step()
            optimizer.zero_grad()

        figures["training_T1"] = rate(options.seconds, train, len(windows))
    for name, figure in figures.items():
        print(f"{name:16s} {figure:10.1f} windows/s")
    print(
        json.dumps(
            {
                "windows_per_s": {name: round(figure, 1) for name, figure in figures.items()},
                "packed_over_calvin_files": round(figures["packed_T1"] / figures["calvin_files_T1"], 1),
                "loading_share": round(figures["training_T1"] / figures["packed_T1"], 4),
                "packing_frames_per_s": round(len(files) / seconds, 1),
                **made_on(1),
            }
        )
    )


if __name__ == "__main__":
    main()
