"""What chains amount to (CALVIN SPEC 1.11)."""

from __future__ import annotations

import numpy as np
import pytest

from calvin_eval.metrics import ChainResult, bootstrap_mean, summarize, wilson

TASKS = ("a", "b", "c", "d", "e")
RESULTS = [
    ChainResult(0, TASKS, 5, (10, 20, 30, 40, 50)),
    ChainResult(1, TASKS, 2, (12, 22, 360)),
    ChainResult(2, TASKS, 0, (360,)),
    ChainResult(3, ("b", "a", "c", "d", "e"), 1, (24, 360)),
]


def test_rates_count_chains_that_got_at_least_so_far() -> None:
    summary = summarize(RESULTS)
    assert summary["chain_sr"] == {"1": 0.75, "2": 0.5, "3": 0.25, "4": 0.25, "5": 0.25}
    assert summary["avg_seq_len"] == 2.0
    assert summary["avg_seq_len"] == pytest.approx(sum(summary["chain_sr"].values()))


def test_tasks_count_successes_and_first_failures_but_not_what_came_after() -> None:
    info = summarize(RESULTS)["task_info"]
    assert info["a"] == {"success": 2, "total": 4}
    assert info["b"] == {"success": 3, "total": 3}
    assert info["c"] == {"success": 1, "total": 2}
    assert info["e"] == {"success": 1, "total": 1}


def test_steps_are_averaged_over_solved_tasks_alone() -> None:
    summary = summarize(RESULTS)
    assert summary["task_steps"]["b"] == pytest.approx((20 + 22 + 24) / 3)
    assert summary["task_steps"]["c"] == 30
    assert summary["steps_per_solved_task"] == pytest.approx((150 + 34 + 24) / 8)
    assert summarize(RESULTS[2:3])["steps_per_solved_task"] is None


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [(0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (50, 100, 0.4038, 0.5962), (81, 263, 0.2553, 0.3662)],
)
def test_wilson_intervals_equal_the_published_formula(successes: int, trials: int, low: float, high: float) -> None:
    assert wilson(successes, trials) == pytest.approx([low, high], abs=5e-5)
    z, p = 1.959963985, successes / trials
    centre = (p + z**2 / (2 * trials)) / (1 + z**2 / trials)
    half = z / (1 + z**2 / trials) * np.sqrt(p * (1 - p) / trials + z**2 / (4 * trials**2))
    assert wilson(successes, trials) == pytest.approx([centre - half, centre + half], abs=1e-6)


def test_the_bootstrap_is_seeded_and_agrees_with_the_normal_approximation() -> None:
    lengths = np.random.default_rng(0).integers(0, 6, 400)
    assert bootstrap_mean(lengths, seed=1) == bootstrap_mean(lengths, seed=1)
    assert bootstrap_mean(lengths, seed=1) != bootstrap_mean(lengths, seed=2)
    half = 1.96 * lengths.std() / np.sqrt(len(lengths))
    expected = [lengths.mean() - half, lengths.mean() + half]
    assert bootstrap_mean(lengths, seed=1) == pytest.approx(expected, abs=0.02)


def test_without_chains_there_is_nothing_to_summarize() -> None:
    with pytest.raises(ValueError, match="no chain was evaluated"):
        summarize([])
