"""`roboflamingo train`: trains a policy on CALVIN data sets."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from calvin_eval.system.errors import UsageError, UserError
from roboflamingo.cli.arguments import Given, parse_given
from roboflamingo.cli.fields import leaves
from roboflamingo.training.config import TrainConfig
from roboflamingo.training.train import TrainingStopped, train
from roboflamingo.weights.checkpoint import CONFIG, read_config

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
    summary = "Trains a policy on data sets of any kind; a run that was stopped or killed is continued."
    given = parse_given(TrainConfig, "train", arguments, summary=summary, examples=EXAMPLES)
    check_start(given)
    try:
        train(given.config)
    except TrainingStopped as stopped:
        raise SystemExit(128 + stopped.signal) from None


FILLED_IN = frozenset({"policy.statistics", "policy.stride", "policy.backbone.language.words"})
"""Keys that training fills in from its data."""


def check_start(given: Given[TrainConfig]) -> None:
    """Makes sure that nobody asks for another policy than the one that training starts from.

    Raises:
        UserError: `start_from` holds no policy.
        UsageError: a key was given that differs from its policy's. Names the key.
    """
    start = given.config.start_from
    if start is None:
        return
    if not (Path(start) / CONFIG).is_file():
        raise UserError(f"start_from {start} holds no policy: {CONFIG} is missing")
    theirs = dict(leaves(read_config(Path(start) / CONFIG), "policy."))
    ours = dict(leaves(given.config.policy, "policy."))
    for key in sorted((given.keys & theirs.keys()) - FILLED_IN):
        if ours[key] != theirs[key]:
            raise UsageError(
                f"{key} is {ours[key]}, but training starts from {start}, where it is {theirs[key]} and stays so; "
                "leave the key out, or train without start_from"
            )
