"""Whether what the reference claims holds, by one rule that is stated beside every verdict.

Two members are compared by the average length of their chains. Where both ran the same chains, the difference is taken
chain by chain and its interval is `benchmark.metrics.paired_difference`'s; else it is put together from the intervals
of the two averages (Newcombe's way: the distances from the averages to the bounds, as root of the sum of squares).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from calvin_eval.evaluation.report.protocol import other_chains
from calvin_eval.evaluation.report.tables import paired
from roboflamingo.cli.ablations.grid import Comparison

RULE = (
    "a claimed order holds if the 95 % interval of the difference lies above 0, is reversed if it lies below 0, and is "
    "within noise else; a claimed equality holds unless the interval leaves out 0"
)
HOLDS, NOISE, REVERSED, DIFFERS = "holds", "within noise", "reversed", "differs"


@dataclass(frozen=True)
class Found:
    """What came of a comparison.

    Attributes:
        first: a member. second: another. relation: that is claimed.
        difference: how many more tasks of a chain the first solves.
        interval: of it, 95 %.
        paired: whether it is of the same chains.
        outcome: by `RULE`.
    """

    first: str
    relation: str
    second: str
    difference: float
    interval: tuple[float, float]
    paired: bool
    outcome: str

    def __str__(self) -> str:
        low, high = self.interval
        how = "" if self.paired else ", other chains"
        return (
            f"{self.first} against {self.second} {self.difference:+.2f} [{low:+.2f}, {high:+.2f}{how}], {self.outcome}"
        )


def compare(results: Mapping[str, Any], comparison: Comparison) -> Found:
    """Two members by the average length of their chains.

    Args:
        results: what results.json holds, by member.
        comparison: which two, and what is claimed.
    """
    first, second = results[comparison.first], results[comparison.second]
    value, interval, paired = difference(first, second)
    names = (comparison.first, comparison.relation, comparison.second)
    return Found(*names, value, interval, paired, outcome(comparison.relation, interval))


def difference(first: Mapping[str, Any], second: Mapping[str, Any]) -> tuple[float, tuple[float, float], bool]:
    """How many more tasks of a chain the first solves, its interval, and whether chains were paired."""
    if not other_chains(first, second) and (found := paired(first, second)) is not None:
        return found.mean, (found.interval[0], found.interval[1]), True
    ours, theirs = first["avg_seq_len"], second["avg_seq_len"]
    (low, high), (their_low, their_high) = (each["intervals"]["avg_seq_len"] for each in (first, second))
    value = ours - theirs
    below, above = math.hypot(ours - low, their_high - theirs), math.hypot(high - ours, theirs - their_low)
    return value, (value - below, value + above), False


def outcome(relation: str, interval: tuple[float, float]) -> str:
    """What an interval of a difference says of a claimed relation (`RULE`)."""
    low, high = interval
    if relation == "~":
        return HOLDS if low <= 0 <= high else DIFFERS
    return HOLDS if low > 0 else REVERSED if high < 0 else NOISE


def verdict(found: Sequence[Found]) -> str:
    """All comparisons of a claim in a sentence."""
    if not found:
        return "Nothing was published that could hold or fail here."
    outcomes = [each.outcome for each in found]
    if set(outcomes) == {HOLDS}:
        return "The claim holds, beyond the interval in every comparison." if _ordered(found) else "The claim holds."
    if set(outcomes) == {NOISE}:
        return "Nothing can be said of the claim: all differences are within noise."
    if set(outcomes) <= {REVERSED, DIFFERS}:
        return "The claim does not hold: the order is reversed." if _ordered(found) else "The claim does not hold."
    counts = ", ".join(f"{outcomes.count(each)} {each}" for each in dict.fromkeys(outcomes))
    how = "holds in part" if HOLDS in outcomes else "does not hold where it can be told"
    return f"The claim {how}: of {len(outcomes)} comparisons {counts}."


def _ordered(found: Sequence[Found]) -> bool:
    return all(each.relation == ">" for each in found)
