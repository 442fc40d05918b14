"""The learning rate over a run."""

from __future__ import annotations

import math
from typing import Any

from roboflamingo.training.config import TrainConfig
from roboflamingo.training.progress import Progress


def learning_rate(config: TrainConfig, progress: Progress) -> float:
    """Of the step to come: linear warm-up by steps, times the schedule by the fraction of the run that is done."""
    warmup = min(1.0, (progress.step + 1) / max(1, config.optimizer.warmup_steps))
    return (
        config.scaled_learning_rate
        * warmup
        * _decay(config.optimizer.schedule, progress.fraction(), config.optimizer.cycles)
    )


def _decay(schedule: str, fraction: float, cycles: int) -> float:
    """The schedule's factor, 1 at the start; but for `constant` it is 0 at the end."""
    if schedule == "constant":
        return 1.0
    if schedule == "linear":
        return 1.0 - fraction
    if schedule == "cosine_restarts" and fraction < 1.0:
        fraction = cycles * fraction % 1.0  # within the cycle
    return 0.5 * (1 + math.cos(math.pi * fraction))


def continued_at(config: TrainConfig, progress: Progress, saved: dict[str, Any]) -> str:
    """What to say at the start of a session whose learning rate is not the one that the last session ended with.

    Empty where the run's end is where it was, so that the schedule goes on, or where it makes no difference.

    Args:
        config: the run's.
        progress: how far it is.
        saved: its state; `limits` are the (max_steps, max_minutes) that it was saved under.
    """
    limits = tuple(saved.get("limits", ()))
    before, now = saved.get("learning_rate"), learning_rate(config, progress)
    if not limits or before is None or limits == (config.max_steps, config.max_minutes):
        return ""
    if abs(now - before) <= 0.02 * max(now, before):
        return ""
    old = f"{limits[0]} steps" if limits[0] is not None else f"{limits[1]:g} minutes"
    new = f"{config.max_steps} steps" if config.max_steps is not None else f"{config.max_minutes:g} minutes"
    return (
        f"the learning rate goes from {before:.3g} (last step before) to {now:.3g}: the run's end has moved from {old} "
        f"to {new}, and optimizer.schedule {config.optimizer.schedule} is laid over the whole length; to train on "
        "without a jump, set the final length from the start, or use schedule constant"
    )
