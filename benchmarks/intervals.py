"""Coverage of the 95 % interval of the average length: how often it holds the true mean, for few chains and for many.

`python benchmarks/intervals.py [--samples 1000]` prints, for every kind of policy and number of chains, the coverage
of `calvin_eval.benchmark.metrics.mean_interval` and of the percentile bootstrap. For 3 and 10 chains the coverage is
exact (a sum over all possible outcomes); for more it is simulated. About 6 minutes on one core.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Callable, Iterator
from functools import cache

import numpy as np
from scipy.stats import multinomial

from calvin_eval.benchmark.metrics import LENGTH, mean_interval

Method = Callable[[tuple[int, ...]], tuple[float, float]]

LENGTHS = np.arange(LENGTH + 1)
EXACT = 10
"""Most chains whose outcomes are all counted: 3003 for ten."""


def chains_of(*chances: float) -> np.ndarray:
    """Probability of each length 0..5 where each task in a row is solved with that chance."""
    reached = np.cumprod([1.0, *chances])
    return np.append(reached[:-1] - reached[1:], reached[-1])


def policies() -> dict[str, np.ndarray]:
    """Probability of each length, by a description of the policy."""
    found = {f"each task {p:.2f}": chains_of(*[p] * LENGTH) for p in (0.02, 0.1, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98)}
    falling = np.array([1, 0.9, 0.8, 0.7, 0.6])
    found |= {f"falling from {p:.2f}": chains_of(*(p * falling)) for p in (0.5, 0.8, 0.95)}
    found["half 0.20, half 0.90"] = (chains_of(*[0.2] * LENGTH) + chains_of(*[0.9] * LENGTH)) / 2
    found |= {f"0 or 5, {p:.2f}": np.array([1 - p, 0, 0, 0, 0, p]) for p in (0.05, 0.2, 0.5, 0.8, 0.95)}
    return found


@cache
def ours(counts: tuple[int, ...]) -> tuple[float, float]:
    """The interval for so many chains of each length."""
    low, high = mean_interval(np.repeat(LENGTHS, counts), 0, LENGTH, seed=0)
    return low, high


@cache
def bootstrap(counts: tuple[int, ...], resamples: int = 2000) -> tuple[float, float]:
    """The percentile bootstrap's, for comparison."""
    total = sum(counts)
    means = np.random.default_rng(0).multinomial(total, np.array(counts) / total, size=resamples) @ LENGTHS / total
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def outcomes(chains: int) -> Iterator[tuple[int, ...]]:
    """Every way to share chains among the lengths."""
    for bars in itertools.combinations(range(chains + LENGTH), LENGTH):
        edges = (-1, *bars, chains + LENGTH)
        yield tuple(after - before - 1 for before, after in itertools.pairwise(edges))


def coverage(method: Method, probabilities: np.ndarray, chains: int, samples: int, rng: np.random.Generator) -> float:
    """How often a method's interval holds the true mean."""
    if chains <= EXACT:
        drawn = list(outcomes(chains))
        weights = multinomial.pmf(np.array(drawn), chains, probabilities)
    else:
        drawn = [tuple(map(int, row)) for row in rng.multinomial(chains, probabilities, size=samples)]
        weights = np.full(samples, 1 / samples)
    true = float(probabilities @ LENGTHS)
    slack = 1e-9  # of the sums
    held = [low - slack <= true <= high + slack for low, high in map(method, drawn)]
    return float(weights @ np.array(held))


def main() -> int:
    """Prints the table."""
    parser = argparse.ArgumentParser(description="Coverage of the interval of the average length.")
    parser.add_argument("--samples", type=int, default=1000, help="simulated evaluations where not all are counted")
    samples, rng = parser.parse_args().samples, np.random.default_rng(0)
    print(f"{'policy':22s} mean " + "".join(f"{f'n = {n}':>16s}" for n in (3, 10, 30, 100)) + "   (ours, bootstrap)")
    least = {n: [1.0, 1.0] for n in (3, 10, 30, 100)}
    for name, probabilities in policies().items():
        cells = []
        for chains, lowest in least.items():
            both = [coverage(method, probabilities, chains, samples, rng) for method in (ours, bootstrap)]
            least[chains] = [min(pair) for pair in zip(lowest, both, strict=True)]
            cells.append(f"{both[0]:9.3f} {both[1]:.3f} ")
        print(f"{name:22s} {probabilities @ LENGTHS:4.2f} " + "".join(cells), flush=True)
    print(f"{'least':27s} " + "".join(f"{a:9.3f} {b:.3f} " for a, b in least.values()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
