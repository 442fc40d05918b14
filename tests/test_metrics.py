"""What chains amount to (CALVIN SPEC 1.11)."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy.stats import beta, binom, multinomial

from calvin_eval.benchmark.calvin import summarize_chains
from calvin_eval.benchmark.metrics import mean_interval, paired_difference, root_mean_square_jerk, wilson
from calvin_eval.protocol import EpisodeResult

TASKS = ("a", "b", "c", "d", "e")
RESULTS = [
    EpisodeResult(0, TASKS, 5, (10, 20, 30, 40, 50)),
    EpisodeResult(1, TASKS, 2, (12, 22, 360)),
    EpisodeResult(2, TASKS, 0, (360,)),
    EpisodeResult(3, ("b", "a", "c", "d", "e"), 1, (24, 360)),
]


def test_rates_count_chains_that_got_at_least_so_far() -> None:
    summary = summarize_chains(RESULTS)
    assert summary["chain_sr"] == {"1": 0.75, "2": 0.5, "3": 0.25, "4": 0.25, "5": 0.25}
    assert summary["avg_seq_len"] == 2.0
    assert summary["avg_seq_len"] == pytest.approx(sum(summary["chain_sr"].values()))


def test_tasks_count_successes_and_first_failures_but_not_what_came_after() -> None:
    info = summarize_chains(RESULTS)["task_info"]
    assert info["a"] == {"success": 2, "total": 4}
    assert info["b"] == {"success": 3, "total": 3}
    assert info["c"] == {"success": 1, "total": 2}
    assert info["e"] == {"success": 1, "total": 1}


def test_steps_are_averaged_over_solved_tasks_alone() -> None:
    summary = summarize_chains(RESULTS)
    assert summary["task_steps"]["b"] == pytest.approx((20 + 22 + 24) / 3)
    assert summary["task_steps"]["c"] == 30
    assert summary["steps_per_solved_task"] == pytest.approx((150 + 34 + 24) / 8)
    assert summarize_chains(RESULTS[2:3])["steps_per_solved_task"] is None


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


def test_the_interval_of_a_mean_is_seeded_and_agrees_with_the_normal_approximation_for_many_values() -> None:
    lengths = np.random.default_rng(0).integers(0, 6, 400)
    assert mean_interval(lengths, 0, 5, seed=1) == mean_interval(lengths, 0, 5, seed=1)
    assert mean_interval(lengths, 0, 5, seed=1) != mean_interval(lengths, 0, 5, seed=2)
    half = 1.96 * lengths.std() / np.sqrt(len(lengths))
    expected = [lengths.mean() - half, lengths.mean() + half]
    assert mean_interval(lengths, 0, 5, seed=1) == pytest.approx(expected, abs=0.02)


@pytest.mark.parametrize("count", [1, 3, 10, 100])
def test_chains_that_all_came_to_the_same_claim_no_certainty(count: int) -> None:
    """Values at an end give Jeffreys' interval of a rate, times five."""
    half_open = 5 * beta.ppf(0.975, 0.5, count)
    assert mean_interval(np.zeros(count), 0, 5, seed=0) == pytest.approx([0, half_open], rel=0.06)
    assert mean_interval(np.full(count, 5), 0, 5, seed=0) == pytest.approx([5 - half_open, 5], rel=0.06)
    low, high = mean_interval(np.full(count, 2), 0, 5, seed=0)
    assert 0 <= low < 2 < high <= 5


@pytest.mark.parametrize(("count", "least"), [(3, 0.97), (10, 0.96), (30, 0.93), (100, 0.93)])
def test_the_interval_covers_the_mean_of_chains_of_0_or_5_tasks(count: int, least: float) -> None:
    """Exactly: over all numbers of solved chains. `benchmarks/intervals.py` does so for other policies."""
    solved = np.arange(count + 1)
    bounds = np.array([mean_interval(5.0 * (np.arange(count) < k), 0, 5, seed=0) for k in solved])
    for rate in (0.05, 0.2, 0.5, 0.8, 0.95):
        held = (bounds[:, 0] <= 5 * rate) & (5 * rate <= bounds[:, 1])
        assert binom.pmf(solved, count, rate) @ held >= least, rate


def test_the_interval_covers_the_mean_of_few_chains() -> None:
    """Exactly, over the 56 outcomes of three chains, for tasks that are solved with the same chance each."""
    outcomes = [c for c in itertools.product(range(4), repeat=6) if sum(c) == 3]
    bounds = [mean_interval(np.repeat(np.arange(6), counts), 0, 5, seed=0) for counts in outcomes]
    for chance in (0.02, 0.1, 0.3, 0.5, 0.8, 0.95, 0.99):
        reached = chance ** np.arange(6)
        lengths = np.append(reached[:-1] - reached[1:], reached[-1])
        mean = lengths @ np.arange(6)
        held = np.array([low <= mean <= high for low, high in bounds])
        assert multinomial.pmf(outcomes, 3, lengths) @ held >= 0.96, chance


def test_evaluations_are_compared_over_the_chains_that_both_ran() -> None:
    rng = np.random.default_rng(0)
    first = {index: int(rng.integers(0, 5)) for index in range(200)}
    second = {index: solved + int(rng.random() < 0.3) for index, solved in first.items() if index < 150}
    found = paired_difference(second, first, 5)
    assert found is not None and found.episodes == 150
    assert found.mean == pytest.approx(np.mean([second[i] - first[i] for i in second]))
    low, high = found.interval
    assert 0 < low < found.mean < high and high - low < 0.25  # two averages of 150 are uncertain by 0.45 each
    reverse = paired_difference(first, second, 5)
    assert reverse is not None and reverse.mean == -found.mean


def test_equal_chains_do_not_prove_that_policies_are_equal() -> None:
    found = paired_difference({0: 1, 1: 5, 2: 0}, {0: 1, 1: 5, 2: 0}, 5)
    assert found is not None and found.mean == 0
    assert found.interval[0] < -1.5 and found.interval[1] > 1.5
    assert paired_difference({0: 1}, {1: 1}, 5) is None


def test_results_hold_each_chains_length() -> None:
    assert summarize_chains(RESULTS)["lengths"] == {"0": 5, "1": 2, "2": 0, "3": 1}


def test_without_chains_there_is_nothing_to_summarize() -> None:
    with pytest.raises(ValueError, match="no chain was evaluated"):
        summarize_chains([])


def test_jerk_is_the_third_derivative_of_the_tools_path() -> None:
    seconds = np.arange(60) / 30
    cubic = np.stack([0.5 * seconds**3, 2 * seconds**2, 7 * seconds], axis=1)  # third derivatives 3, 0, 0
    assert root_mean_square_jerk(cubic, 30) == pytest.approx(3)
    assert root_mean_square_jerk(cubic[:3], 30) is None and root_mean_square_jerk(np.array([]), 30) is None


def test_calls_are_counted_by_the_robots_time_and_jerk_by_the_chain() -> None:
    measured = [
        EpisodeResult(0, TASKS, 1, (30, 90), calls=(30, 30), jerk=2.0),
        EpisodeResult(1, TASKS, 0, (60,), calls=(15,), jerk=4.0),
    ]
    summary = summarize_chains(measured)
    assert summary["calls_per_second"] == pytest.approx(30 * 75 / 180) and summary["jerk"] == 3.0
    assert summarize_chains(RESULTS)["calls_per_second"] is None and summarize_chains(RESULTS)["jerk"] is None
