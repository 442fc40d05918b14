"""What chains amount to: success rates, average length, counts per task, each with its uncertainty."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import binomtest

LENGTH = 5
RESAMPLES = 10_000


@dataclass(frozen=True)
class ChainResult:
    """One chain.

    Attributes:
        index: its number among the official chains.
        tasks: its five tasks.
        solved: how many were solved, 0..5, before the first failure.
        steps: control steps spent on each attempted task.
    """

    index: int
    tasks: tuple[str, ...]
    solved: int
    steps: tuple[int, ...]


def summarize(results: Sequence[ChainResult], seed: int = 0) -> dict[str, Any]:
    """CALVIN's figures, in its own layout, with 95 % intervals beside them (CALVIN SPEC 1.11).

    Rates get Wilson's interval, the average length a bootstrap over chains.

    Args:
        results: at least one chain.
        seed: of the bootstrap.

    Raises:
        ValueError: there are no results.
    """
    if not results:
        raise ValueError("no chain was evaluated, so there is nothing to summarize")
    lengths = np.array([result.solved for result in results])
    reached = {str(k): int((lengths >= k).sum()) for k in range(1, LENGTH + 1)}
    count = len(results)
    return {
        "avg_seq_len": float(lengths.mean()),
        "chain_sr": {k: n / count for k, n in reached.items()},
        "task_info": _per_task(results),
        "chains": count,
        "intervals": {
            "avg_seq_len": bootstrap_mean(lengths, seed),
            "chain_sr": {k: wilson(n, count) for k, n in reached.items()},
        },
        "steps_per_solved_task": _mean_steps(results),
        "task_steps": _mean_steps_per_task(results),
    }


def wilson(successes: int, trials: int) -> list[float]:
    """Wilson's 95 % interval of a rate."""
    interval = binomtest(successes, trials).proportion_ci(confidence_level=0.95, method="wilson")
    return [float(interval.low), float(interval.high)]


def bootstrap_mean(values: np.ndarray, seed: int) -> list[float]:
    """The percentile bootstrap's 95 % interval of a mean."""
    rng = np.random.default_rng(seed)
    means = values[rng.integers(len(values), size=(RESAMPLES, len(values)))].mean(axis=1)
    return [float(bound) for bound in np.quantile(means, [0.025, 0.975])]


def _per_task(results: Sequence[ChainResult]) -> dict[str, dict[str, int]]:
    """Successes and attempts: tasks after a chain's first failure were never attempted."""
    counts: dict[str, dict[str, int]] = {}
    for result in results:
        for position, task in enumerate(result.tasks[: result.solved + 1]):
            entry = counts.setdefault(task, {"success": 0, "total": 0})
            entry["total"] += 1
            entry["success"] += int(position < result.solved)
    return dict(sorted(counts.items()))


def _mean_steps(results: Sequence[ChainResult]) -> float | None:
    steps = [step for result in results for step in result.steps[: result.solved]]
    return float(np.mean(steps)) if steps else None


def _mean_steps_per_task(results: Sequence[ChainResult]) -> dict[str, float]:
    """Control steps that each task took where it was solved."""
    steps: dict[str, list[int]] = {}
    for result in results:
        for task, count in zip(result.tasks[: result.solved], result.steps, strict=False):
            steps.setdefault(task, []).append(count)
    return {task: float(np.mean(counts)) for task, counts in sorted(steps.items())}
