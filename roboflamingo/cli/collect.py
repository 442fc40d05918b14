"""`roboflamingo collect`: records demonstrations, or checks the scripted experts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from calvin_eval.demonstrations.check import check_experts, print_check
from calvin_eval.demonstrations.collect import CollectSettings, check_scenes, collect
from calvin_eval.protocol import Policy
from calvin_eval.system.errors import UsageError
from calvin_eval.system.ranges import COUNT, check_ranges
from roboflamingo.cli.arguments import Given, parse_given
from roboflamingo.cli.policies import EXPERT, check_policy, open_policy, policy_facts

EXAMPLES = """
roboflamingo collect --out data --settings.scenes D --settings.episodes 800
roboflamingo collect --out data --settings.scenes ABC --settings.episodes 6000      # CALVIN's ABC->D
roboflamingo collect --out data/round2 --policy runs/demo/train1/policy             # DAgger: the policy acts first
roboflamingo collect --check --starts 50                                            # how good the scripted experts are
"""


@dataclass
class CollectConfig:
    """What to record.

    Attributes:
        out: parent folder of the data set.
        settings: scenes, episodes, noise, seed.
        workers: processes; one per core by default.
        policy: folder of a policy that acts for a first part of every task, which the scripted expert labels and
            then finishes (DAgger).
        execute: E, the actions of a chunk that this policy executes.
        check: instead of recording, runs every scripted expert from random starts and prints success rates.
        starts: random starts per task and scene for the check.
        scenes: scenes of the check.
    """

    out: str = "data"
    settings: CollectSettings = field(default_factory=CollectSettings)
    workers: int | None = None
    policy: str | None = None
    execute: int = 4
    check: bool = False
    starts: int = 50
    scenes: str = "ABCD"

    def __post_init__(self) -> None:
        check_ranges(self, workers=COUNT, execute=COUNT, starts=COUNT)
        check_scenes("scenes", self.scenes)


def main(arguments: Sequence[str]) -> None:
    """Records or checks."""
    summary = "Records demonstrations as a CALVIN data set; a collection that was killed is continued."
    given = parse_given(CollectConfig, "collect", arguments, summary=summary, examples=EXAMPLES)
    check_keys(given)
    config = given.config
    if config.check:
        print_check(check_experts(config.scenes, config.starts, workers=config.workers))
        return
    maker, about = (None, None) if config.policy is None else acting_first(config.policy, config.execute)
    collect(Path(config.out), config.settings, workers=config.workers, make_policy=maker, about=about)


def acting_first(folder: str, execute: int) -> tuple[partial[Policy], dict[str, Any]]:
    """What `collect` needs of a policy that acts first (DAgger): how to make it, and what it is known by.

    Args:
        folder: of the policy.
        execute: E, the actions of a chunk that it executes.

    Raises:
        FileNotFoundError, UsageError: there is no policy that can be run so; see `check_policy`.
    """
    if folder == EXPERT:
        raise UsageError(f"policy is {EXPERT}; the scripted experts act in any case, so leave it out")
    check_policy(folder, execute, None, "cpu")
    return partial(open_policy, folder, execute), {**policy_facts(folder), "execute": execute}


def check_keys(given: Given[CollectConfig]) -> None:
    """Refuses keys of the check without it, and those of a collection beside it.

    Raises:
        UsageError: there is one. Names the key that was meant.
    """
    if given.config.check:
        for key in sorted(given.typed):
            if key in ("out", "policy", "execute") or key.startswith("settings."):
                raise UsageError(f"--{key} does nothing beside --check, which has --starts and --scenes")
        return
    for key, meant in (("scenes", "--settings.scenes"), ("starts", "--settings.episodes")):
        if key in given.changed:
            raise UsageError(f"--{key} is of --check; what is recorded is up to {meant}")
    if given.config.policy is None and "execute" in given.changed:
        raise UsageError("--execute is of the policy that acts first; name it with --policy, or leave it out")
