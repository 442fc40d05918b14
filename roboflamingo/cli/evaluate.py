"""`roboflamingo evaluate`: runs CALVIN's chains with a policy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Literal

from calvin_eval.evaluation.chains import ChainSettings, evaluate_chains
from calvin_eval.evaluation.report import print_table
from calvin_eval.system.errors import UsageError, UserError
from calvin_eval.system.ranges import AMOUNT, COUNT, check_ranges
from calvin_eval.worlds.playtable.world import PlayTable
from roboflamingo.cli.arguments import parse_given
from roboflamingo.cli.policies import EXPERT, check_policy, how_to_act, make_env, open_policy, policy_facts, torch_facts

EXAMPLES = """
roboflamingo evaluate --policy runs/demo/train1/policy --out runs/demo/again --settings.chains 100
roboflamingo evaluate --policy runs/demo/train1/policy --out runs/open --execute 8           # open loop
roboflamingo evaluate --policy runs/demo/train1/policy --out runs/try --settings.set choosing --settings.chains 100
roboflamingo evaluate --policy runs/demo/train1/policy --out runs/mean --ensemble 0.01       # temporal ensemble
roboflamingo evaluate --policy expert --out runs/expert --settings.chains 100 --renderer none
"""


@dataclass
class EvaluateConfig:
    """How a policy is evaluated.

    Attributes:
        policy: its folder, or "expert" for the scripted experts.
        out: folder for results, finished chains and videos.
        scene: where the chains run.
        settings: which chains, and by which rules. While anything is still being chosen by what comes out (a recipe,
            a checkpoint, E, the leash), give --settings.set choosing; what is reported in the end is of the official
            chains, --settings.set reporting, which is the default. Of settings.leash, the default is what is saved
            with the policy; 0 is none.
        execute: E, actions executed of each predicted chunk: 1 is closed loop, the chunk's length open loop. By default
            what is saved with the policy, else 1.
        ensemble: decay of a temporal ensemble, with execute 1.
        renderer: what draws the images.
        device: what computes the policy. A GPU is shared by all processes, each with a copy of the policy.
        workers: processes; by default one per core, or one in all with a GPU.
        batch: environments of a process that share a forward pass. Another batch rounds differently, so now and then
            a chain of a learned policy goes another way; results name it.
        fresh: removes what the folder holds of another evaluation (other weights, other settings), which is
            otherwise refused.
    """

    policy: str
    out: str
    scene: Literal["A", "B", "C", "D"] = "D"
    settings: ChainSettings = field(default_factory=ChainSettings)
    execute: int | None = None
    ensemble: float | None = None
    renderer: Literal["panda3d", "tinyrenderer", "none"] = "panda3d"
    device: Literal["cpu", "cuda"] = "cpu"
    workers: int | None = None
    batch: int = 8
    fresh: bool = False

    def __post_init__(self) -> None:
        check_ranges(self, execute=COUNT, ensemble=AMOUNT, workers=COUNT, batch=COUNT)
        if self.ensemble is not None and self.execute not in (None, 1):
            raise UserError(f"a temporal ensemble predicts at every step: ensemble needs execute=1, not {self.execute}")
        for key in ("videos", "failure_videos"):
            if (count := getattr(self.settings, key)) and self.renderer == "none":
                raise UserError(f"settings.{key} is {count}, but renderer none draws nothing to film; choose another")


def main(arguments: Sequence[str]) -> None:
    """Evaluates and prints the table."""
    summary = "Runs CALVIN's chains of five tasks with a policy; an evaluation that was killed is continued."
    given = parse_given(EvaluateConfig, "evaluate", arguments, summary=summary, examples=EXAMPLES)
    config = given.config
    if config.policy == EXPERT and (idle := sorted(given.typed & {"execute", "ensemble", "device"})):
        raise UsageError(f"--{idle[0]} does nothing with {EXPERT}, which predicts no chunks and needs no device")
    results = run(config)
    print_table({config.policy: results})
    print(f"results in {Path(config.out) / 'results.json'}")


def run(config: EvaluateConfig, label: str = "Evaluating", *, here: bool = False) -> dict[str, object]:
    """Evaluates as configured; see `calvin_eval.evaluation.chains.evaluate_chains`.

    Args:
        config: see `EvaluateConfig`.
        label: of the progress bar.
        here: runs the chains in this process, whatever `workers` says.

    Raises:
        FileNotFoundError: there is no policy in the folder.
        UsageError: the policy cannot be run so (see `check_policy`).
        UserError: the folder holds an evaluation of something else, and `fresh` is off (see `evaluate`).
    """
    acting = how_to_act(config.policy, config.execute, config.settings.leash, config.ensemble)
    shape = check_policy(config.policy, acting.execute, config.ensemble, config.device, config.renderer)
    batch = min(config.batch, PlayTable.most)
    ways = (config.policy, acting.execute, config.ensemble, config.scene, config.device, batch)
    return evaluate_chains(
        partial(make_env, config.scene, config.renderer),
        partial(open_policy, *ways),
        Path(config.out),
        replace(config.settings, leash=acting.leash),
        workers=1 if config.workers is None and config.device == "cuda" else config.workers,
        batch=batch,
        label=label,
        about={
            "policy": config.policy,
            **policy_facts(config.policy),
            **shape,
            "scene": config.scene,
            "renderer": config.renderer,
            "execute": acting.execute,
            "ensemble": config.ensemble,
            "device": config.device,
            "acting_from": acting.origins,
            "hardware": torch_facts(config.policy),
        },
        fresh=config.fresh,
        here=here,
    )
