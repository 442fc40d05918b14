"""Does a policy understand sentences that it was not trained on?

    python benchmarks/wordings.py runs/demo/train1/policy --data runs/demo/data/round1/task_D_D

For every task, held-out frames are shown with each sentence of the training, validation and enriched splits, and the
predicted chunk is compared with what the scripted expert did. A sentence counts as misread where the error is 1.4 times
that of the task's training sentences or more. The last line is one line of JSON.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from facts import made_on
from rich.console import Console

from calvin_eval.benchmark.instructions import SPLITS, sentences
from calvin_eval.benchmark.tasks import TASKS
from roboflamingo.data.windows import to_tensors
from roboflamingo.policy.roboflamingo import RoboFlamingo
from roboflamingo.training.config import TrainConfig
from roboflamingo.training.config_parts import DataConfig
from roboflamingo.training.datamodule import open_windows
from roboflamingo.weights.checkpoint import load_policy

MISREAD = 1.4


@torch.no_grad()
def error(policy: RoboFlamingo, batch: dict[str, torch.Tensor], sentence: str) -> float:
    """Mean absolute error of the last frame's poses, in action units."""
    prediction = policy.predict(batch | {"instruction": [sentence] * len(batch["actions"])})
    inside = batch["action_mask"][:, -1]
    return (prediction["pose"][:, -1][inside] - policy.targets(batch)[:, -1][inside][:, :6]).abs().mean().item()


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("policy", type=Path)
    parser.add_argument("--data", required=True, help="a CALVIN data set with a validation split")
    parser.add_argument("--frames", type=int, default=30, help="of each task")
    given = parser.parse_args()
    policy = load_policy(given.policy)
    config = TrainConfig(run="", data=DataConfig({given.data: 1.0}), policy=policy.config, max_steps=1)
    _, windows = open_windows(config, Console(stderr=True))
    assert windows is not None
    errors: dict[str, list[float]] = {split: [] for split in SPLITS}
    misread: dict[str, list[bool]] = {split: [] for split in SPLITS[1:]}
    for task in TASKS:
        numbers = windows.of_task(task)
        if not len(numbers):
            continue
        chosen = numbers[np.linspace(0, len(numbers) - 1, min(given.frames, len(numbers))).astype(int)]
        batch = to_tensors(windows.__getitems__(chosen))
        measured = {split: [error(policy, batch, sentence) for sentence in sentences(task, split)] for split in SPLITS}
        usual = float(np.mean(measured["training"]))
        wrong = [
            s
            for s, e in zip(sentences(task, "validation"), measured["validation"], strict=True)
            if e >= MISREAD * usual
        ]
        print(
            f"{task:28s}"
            + "".join(f" {np.mean(measured[split]):.3f}" for split in SPLITS)
            + "".join(f"  {s!r}" for s in wrong)
        )
        for split in SPLITS:
            errors[split] += measured[split]
        for split in misread:
            misread[split] += [e >= MISREAD * usual for e in measured[split]]
    print(
        json.dumps(
            {
                "error": {split: round(float(np.mean(values)), 4) for split, values in errors.items()},
                "misread": {split: round(float(np.mean(values)), 4) for split, values in misread.items()},
                "policy": str(given.policy),
                **made_on(torch.get_num_threads()),
            }
        )
    )


if __name__ == "__main__":
    main()
