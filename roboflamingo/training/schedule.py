"""The learning rate over a run."""

from __future__ import annotations

import math

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
