"""What kept vision tokens save: frames a second of training, and windows a second of reading, with and without.

    python benchmarks/tokens.py [--frames 200] [--batch 4] [--shifts 4] [--rounds 3] [--steps 2]

Frames are drawn by the play table. The policy is the default one, `tiny`, with an LSTM head over 8 frames; vision
encoder and language model are frozen, and resampler, cross-attention and head train. Both ways read their windows from
the packed store and make the same optimizer steps; they take turns, and the fastest turn counts, as whatever else a
machine does only slows them down. All figures come from one run; the last line is one line of JSON:

    ratio            training frames a second from tokens over those from images
    windows_ratio    windows a second that are read as tokens over those as decoded images; compressed_ratio: over those
                     as JPEG. All lie in memory
    caching          images a second that are encoded and kept
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from facts import made_on
from rich.console import Console
from store import write_set
from torch import nn

from roboflamingo.data.windows import Windows, to_tensors
from roboflamingo.heads import HeadConfig
from roboflamingo.policy.base import LearnedPolicy, policy_kind
from roboflamingo.policy.config import PolicyConfig
from roboflamingo.training.config import TrainConfig
from roboflamingo.training.config_parts import DataConfig, TrainableConfig
from roboflamingo.training.datamodule import open_windows
from roboflamingo.training.trainable import choose_trainable
from roboflamingo.training.vision_tokens import with_vision_tokens

QUIET = Console(quiet=True)
READ = 32
"""Windows that are read at once."""


def best_rates(ways: dict[str, Callable[[], int]], rounds: int, calls: int) -> dict[str, float]:
    """What each way does in a second, the best of its turns; a call says how much it did."""
    best = dict.fromkeys(ways, 0.0)
    for turn in range(rounds + 1):
        for name, work in ways.items():
            started = time.perf_counter()
            done = sum(work() for _ in range(calls))
            if turn:  # the first one pays for what is made once
                best[name] = max(best[name], done / (time.perf_counter() - started))
    return best


def reader(windows: Windows) -> Callable[[], int]:
    """Reads windows at random and says how many."""
    random = np.random.default_rng(0)

    def read() -> int:
        places = random.integers(0, 1000, READ) * len(windows) if windows.variety else 0
        windows.__getitems__((places + random.integers(0, len(windows), READ)).tolist())
        return READ

    return read


def trainer(policy: LearnedPolicy, windows: Windows, batch: int) -> Callable[[], int]:
    """Makes an optimizer step and says how many frames it looked at."""
    trained = [p for p in policy.parameters() if p.requires_grad]
    optimizer, random = torch.optim.AdamW(trained, lr=1e-4), np.random.default_rng(0)

    def step() -> int:
        numbers = random.integers(0, len(windows), batch).tolist()
        policy.loss(to_tensors(windows.__getitems__(numbers)))["loss"].backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return batch * windows.window

    return step


def figures(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """All of them."""
    write_set(folder / "set", options.frames)
    data = DataConfig({str(folder / "set"): 1.0}, vision_tokens="always", token_shifts=options.shifts)
    config = TrainConfig(
        run=str(folder / "run"),
        data=data,
        policy=PolicyConfig(window=8, head=HeadConfig(kind="lstm")),
        trainable=TrainableConfig(everything=False),
        max_steps=1,
        validation_windows=0,
        accelerator="cpu",
    )
    images, _ = open_windows(config, QUIET)
    compressed, _ = open_windows(replace(config, data=replace(data, images="compressed")), QUIET)
    policy = policy_kind("roboflamingo").make(config.policy.with_words(images.wordings)).train()
    choose_trainable(policy, config)
    started = time.perf_counter()
    tokens, _ = with_vision_tokens(policy, config, (images, None), QUIET, continued=False)
    caching = images.folders[0].frames * len(policy.config.seen) * options.shifts / (time.perf_counter() - started)
    read = {"images": reader(images), "compressed": reader(compressed), "tokens": reader(tokens)}
    windows = best_rates(read, options.rounds, 5)
    train = {"images": trainer(policy, images, options.batch), "tokens": trainer(policy, tokens, options.batch)}
    frames = best_rates(train, options.rounds, options.steps)
    batch = tokens.__getitems__([0])
    return {
        "frames_per_s": {name: round(value, 1) for name, value in frames.items()},
        "ratio": round(frames["tokens"] / frames["images"], 2),
        "windows_per_s": {name: round(value) for name, value in windows.items()},
        "windows_ratio": round(windows["tokens"] / windows["images"], 2),
        "compressed_ratio": round(windows["tokens"] / windows["compressed"], 2),
        "caching_images_per_s": round(caching, 1),
        "token_bytes_a_frame": sum(batch[name].nbytes for name in policy.config.seen) // tokens.window,
        "shifts": options.shifts,
        "batch": options.batch,
    }


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=200, help="of the data set")
    parser.add_argument("--batch", type=int, default=4, help="windows of a training step")
    parser.add_argument("--shifts", type=int, default=4, help="of each image that are kept")
    parser.add_argument("--rounds", type=int, default=3, help="turns of every way")
    parser.add_argument("--steps", type=int, default=2, help="training steps of a turn")
    parser.add_argument("--threads", type=int, default=1, help="of the CPU")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as scratch:
        found = figures(Path(scratch), options)
    for name, value in found["frames_per_s"].items():
        print(f"training from {name:10s} {value:10.1f} frames/s")
    for name, value in found["windows_per_s"].items():
        print(f"reading {name:16s} {value:10.1f} windows/s")
    print(json.dumps(found | made_on(options.threads)))


if __name__ == "__main__":
    main()
