"""Evaluates a policy on CALVIN's chains (CALVIN SPEC 1.11)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from calvin_eval.benchmark.calvin import MAX_STEPS, CalvinChains
from calvin_eval.benchmark.chains import CHAINS, ChainSet
from calvin_eval.calvin import CalvinEnv
from calvin_eval.evaluation.evaluate import MakePolicy, evaluate
from calvin_eval.system.errors import UserError
from calvin_eval.system.ranges import AMOUNT, COUNT, SEED, Range, check_ranges
from calvin_eval.worlds.leash import leashed


@dataclass(frozen=True)
class ChainSettings:
    """How chains are run.

    Attributes:
        set: of chains. "reporting", the official 1000: for figures that are reported. "choosing", 1000 others by the
            same rules: for whatever is chosen by looking at results, as a recipe, a checkpoint or E, so that what is
            reported was chosen without the chains that it is reported on.
        chains: how many of the set's 1000, from the first.
        max_steps: control steps a task may take.
        sentences: split of the instructions; "validation" is the benchmark's one sentence per task,
            "enriched" takes another wording for every chain, "numbers" says "task 17" and no more.
        leash: how far (m) the target pose may lead the measured one (`TargetLeash`); None, or 0, as CALVIN does.
        videos: how many chains are filmed, from the first.
        failure_videos: how many chains that were not solved whole are filmed as well, from the first. Chains repeat
            themselves exactly, so these are run again for it.
        seed: for the bootstrap of the intervals.
    """

    set: ChainSet = "reporting"
    chains: int = CHAINS
    max_steps: int = MAX_STEPS
    sentences: str = "validation"
    leash: float | None = None
    videos: int = 0
    failure_videos: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        check_ranges(
            self,
            "settings",
            chains=Range(1, CHAINS),
            max_steps=COUNT,
            leash=AMOUNT,
            videos=AMOUNT,
            failure_videos=AMOUNT,
            seed=SEED,
        )
        if self.videos > self.chains:
            raise UserError(f"settings.videos is {self.videos}, but there are only {self.chains} chains to film")
        self.benchmark()  # which knows the splits

    @property
    def episodes(self) -> int:
        """Chains are episodes (see `evaluation.evaluate.Settings`)."""
        return self.chains

    def benchmark(self) -> CalvinChains:
        """The chains under these rules."""
        return CalvinChains(self.max_steps, self.sentences, self.set)


def evaluate_chains(
    make_env: Callable[[], CalvinEnv],
    make_policy: MakePolicy,
    out: Path,
    settings: ChainSettings,
    *,
    workers: int | None = None,
    batch: int = 8,
    label: str = "Evaluating",
    about: dict[str, Any] | None = None,
    fresh: bool = False,
    here: bool = False,
) -> dict[str, Any]:
    """Evaluates a policy on CALVIN's chains; see `evaluation.evaluate.evaluate`.

    Returns:
        What results.json holds: CALVIN's `avg_seq_len`, `chain_sr` and `task_info`, and ours beside them (see
        `benchmark.calvin.summarize_chains`).
    """
    return evaluate(
        settings.benchmark(),
        partial(leashed, make_env, settings.leash or None),
        make_policy,
        out,
        settings,
        workers=workers,
        batch=batch,
        label=label,
        about=about,
        fresh=fresh,
        here=here,
    )
