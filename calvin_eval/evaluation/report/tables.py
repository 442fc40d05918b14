"""Lines of a report's tables: each evaluation's figures, and how evaluations differ chain by chain."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np

from calvin_eval.benchmark.chains import LENGTH
from calvin_eval.benchmark.metrics import Difference, mean_interval, paired_difference, wilson
from calvin_eval.evaluation.report.protocol import Results, departures, other_chains
from calvin_eval.system.errors import UserError

MOST_COMPARED = 6
"""Evaluations of which every pair is compared; of more, each is with the first."""


def row(label: str, results: Results) -> dict[str, Any]:
    """A line of the table of results. Intervals are computed here, so that old results have the same kind."""
    low, high = length_interval(results)
    rates = [results["chain_sr"][str(k)] for k in range(1, LENGTH + 1)]
    bounds = [wilson(round(rate * results["chains"]), results["chains"]) for rate in rates]
    return {
        "label": label,
        "rates": [
            {"value": f"{100 * rate:.1f}", "interval": "{:.0f}-{:.0f}".format(*(100 * b for b in bound))}
            for rate, bound in zip(rates, bounds, strict=True)
        ],
        "length": f"{results['avg_seq_len']:.2f}",
        "interval": f"[{low:.2f}, {high:.2f}]",
        "chains": f"{results['chains']}{_which(results)}",
        "departures": departures(results),
    }


def _which(results: Results) -> str:
    """The set, where it is not the one that figures are reported on."""
    return " choosing" if results["settings"].get("set") == "choosing" else ""


def paired(first: Results, second: Results) -> Difference | None:
    """How many more tasks of a chain the first evaluation solves than the second; None where they share no chain.

    Raises:
        UserError: chains of one number are not the same: they are of another set, scene or world.
    """
    if different := other_chains(first, second):
        raise UserError(
            f"evaluations of {'; '.join(different)} cannot be compared chain by chain: evaluate both on the same chains"
        )
    lengths = [{int(k): n for k, n in results.get("lengths", {}).items()} for results in (first, second)]
    return paired_difference(lengths[0], lengths[1], LENGTH, second["settings"].get("seed", 0))


def _pairs(evaluations: Mapping[str, Results]) -> list[tuple[str, str]]:
    """Labels of what is compared."""
    pairs = list(itertools.combinations(evaluations, 2))
    if len(evaluations) > MOST_COMPARED:
        first = next(iter(evaluations))
        pairs = [pair for pair in pairs if pair[0] == first]
    return pairs


def not_compared(evaluations: Mapping[str, Results]) -> list[str]:
    """Which evaluations ran other chains than those beside them, and why, as "a and b: scene A and D"."""
    found = [(one, other, other_chains(evaluations[one], evaluations[other])) for one, other in _pairs(evaluations)]
    return [f"{one} and {other}: {'; '.join(why)}" for one, other, why in found if why]


def differences(evaluations: Mapping[str, Results]) -> list[dict[str, Any]]:
    """Average lengths compared chain by chain, for evaluations that ran the same chains."""
    rows = []
    for one, other in _pairs(evaluations):
        before, after = evaluations[one], evaluations[other]
        if not other_chains(before, after) and (found := paired(after, before)) is not None:
            low, high = found.interval
            rows.append(
                {
                    "first": other,
                    "second": one,
                    "value": f"{found.mean:+.2f}",
                    "interval": f"[{low:+.2f}, {high:+.2f}]",
                    "chains": found.episodes,
                    "certain": low > 0 or high < 0,
                }
            )
    return rows


def failed_tasks(results: Results) -> list[dict[str, str]]:
    """A line for each task, the least successful first: successes of attempts, and what was done where it failed.

    What was done instead is empty for results of earlier versions, which did not look.
    """
    lines, instead = [], results.get("done_instead", {})
    for task, entry in sorted(results["task_info"].items(), key=lambda item: (_rate(item[1]), item[0])):
        success, total = entry["success"], entry["total"]
        done = instead.get(task, {"nothing": 0, "tasks": {}})
        words = [f"{name} {count}" for name, count in done["tasks"].items()]
        words += [f"nothing {done['nothing']}"] if done["nothing"] else []
        low, high = wilson(success, total) if total else (0.0, 1.0)
        lines.append(
            {
                "task": task,
                "success": f"{success}/{total}",
                "rate": f"{100 * _rate(entry):.0f}",
                "interval": f"{100 * low:.0f}-{100 * high:.0f}",
                "instead": ", ".join(words),
            }
        )
    return lines


def _rate(entry: Mapping[str, int]) -> float:
    return entry["success"] / max(1, entry["total"])


def length_interval(results: Results) -> list[float]:
    """The interval of the average length, from how many chains reached each length."""
    chains = results["chains"]
    reached = [chains, *(round(results["chain_sr"][str(k)] * chains) for k in range(1, LENGTH + 1)), 0]
    lengths = np.repeat(np.arange(LENGTH + 1), [more - fewer for more, fewer in itertools.pairwise(reached)])
    return mean_interval(lengths, 0, LENGTH, results["settings"].get("seed", 0))
