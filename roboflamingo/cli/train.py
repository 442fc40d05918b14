"""`roboflamingo train`: trains a policy on CALVIN data sets."""

from __future__ import annotations

from collections.abc import Sequence

from roboflamingo.cli.arguments import parse_config
from roboflamingo.training.config import TrainConfig
from roboflamingo.training.train import TrainingStopped, train

EXAMPLES = """
roboflamingo train --config configs/train_tiny.yaml --run runs/tiny
roboflamingo train --config configs/train_tiny.yaml --run runs/mine --data.folders '{my/calvin_data: 1.0}'
roboflamingo train --config configs/train_tiny.yaml --run runs/long --max_minutes 60 --optimizer.ema 0.999
roboflamingo train --config runs/tiny/config.yaml                 # continues a run that was killed
roboflamingo train --config configs/train_tiny.yaml --run runs/two --devices 2    # two processes
roboflamingo train --config configs/train_tiny.yaml --run runs/stop --validate_every_minutes 1 --patience 5
"""


def main(arguments: Sequence[str]) -> None:
    """Trains, and after SIGTERM or Ctrl-C leaves with the status that shells give to that signal."""
    summary = "Trains a policy on CALVIN data sets; a run that was stopped or killed is continued."
    config = parse_config(TrainConfig, "train", arguments, summary=summary, examples=EXAMPLES)
    try:
        train(config)
    except TrainingStopped as stopped:
        raise SystemExit(128 + stopped.signal) from None
