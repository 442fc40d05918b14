"""`roboflamingo watch`: a video of one instruction being carried out."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from calvin_eval.evaluation.watching import told, watch, wish_for
from calvin_eval.protocol import EpisodeResult
from calvin_eval.system.errors import UsageError
from calvin_eval.system.ranges import AMOUNT, COUNT, SEED, check_ranges
from calvin_eval.worlds.leash import leashed
from roboflamingo.cli.arguments import parse, verb_parser
from roboflamingo.cli.policies import EXPERT, check_policy, how_to_act, make_env, open_policy

EXAMPLES = """
roboflamingo watch --policy runs/tiny/policy "open the drawer"
roboflamingo watch --policy runs/tiny/policy "push the sliding door to the left" --scene A --seed 3 --out door.mp4
roboflamingo watch --policy runs/tiny/policy "tidy up" --steps 300        # any sentence; nobody says if it was solved
roboflamingo watch --policy runs/tiny/policy --task stack_block --execute 8 --leash 0.05
roboflamingo watch --policy expert --task lift_red_block_table
"""


@dataclass(frozen=True)
class WatchConfig:
    """What is watched; see the help of the verb."""

    policy: str
    instruction: str | None = None
    task: str | None = None
    scene: Literal["A", "B", "C", "D"] = "D"
    seed: int = 0
    steps: int = 360
    out: str = "watch.mp4"
    execute: int | None = None
    leash: float | None = None
    renderer: Literal["panda3d", "tinyrenderer"] = "panda3d"
    device: Literal["cpu", "cuda"] = "cpu"

    def __post_init__(self) -> None:
        check_ranges(self, seed=SEED, steps=COUNT, execute=COUNT, leash=AMOUNT)


def main(arguments: Sequence[str]) -> None:
    """Watches, and says where the video is and what the oracle saw."""
    parser = verb_parser(
        "watch",
        "Lets a policy carry out one instruction from a random start on the play table, writes a video of it (both "
        "cameras, instruction, step and action), and says whether the oracle saw it solved. The policy acts with the E "
        "and the leash that are saved with it unless others are given.",
        EXAMPLES,
        '--policy FOLDER ["INSTRUCTION"] [--KEY VALUE ...]',
    )
    parser.add_argument("instruction", nargs="?", type=str, default=None, help="any sentence, of a task or not")
    parser.add_argument("--policy", type=str, required=True, help=f"its folder, or {EXPERT} for the scripted experts")
    parser.add_argument("--task", type=str, default=None, help="one of the 34 tasks, instead of its sentence")
    parser.add_argument("--scene", type=Literal["A", "B", "C", "D"], default="D", help="where")
    parser.add_argument("--seed", type=int, default=0, help="of the start; the same one begins and goes the same way")
    parser.add_argument("--steps", type=int, default=360, help="most control steps, 30 a second")
    parser.add_argument("--out", type=str, default="watch.mp4", help="where the video goes")
    parser.add_argument("--execute", type=int | None, default=None, help="E; by default what is saved with the policy")
    parser.add_argument(
        "--leash",
        type=float | None,
        default=None,
        help="how far (m) the target may lead the arm; by default what is saved with the policy; 0 for no bound",
    )
    parser.add_argument("--renderer", type=Literal["panda3d", "tinyrenderer"], default="panda3d", help="what draws")
    parser.add_argument("--device", type=Literal["cpu", "cuda"], default="cpu", help="what computes the policy")
    run(WatchConfig(**vars(parse(parser, arguments))))


def run(config: WatchConfig) -> EpisodeResult:
    """Watches as configured, and prints where the video is and what the oracle saw.

    Raises:
        FileNotFoundError: there is no policy in the folder.
        UsageError: the policy cannot be run so; or the experts are given E, or a sentence that they do not know.
        UserError: there is no such task, or no instruction.
    """
    wish, path = wish_for(config.instruction, config.task), Path(config.out).expanduser()
    if path.is_dir():
        raise UsageError(f"{path} is a folder; say which file in it, as --out {path / 'watch.mp4'}")
    if config.policy == EXPERT and config.execute is not None:
        raise UsageError(f"--execute does nothing with {EXPERT}, which predicts no chunks")
    acting = how_to_act(config.policy, config.execute, config.leash)
    check_policy(config.policy, acting.execute, None, config.device, config.renderer)
    if config.policy == EXPERT:
        if wish.task is None:
            raise UsageError(
                f"the scripted experts know the 34 tasks by their own sentences, and {wish.instruction!r} is none; "
                "name the task, as --task open_drawer"
            )
        wish = wish_for(None, wish.task)
    with (
        closing(open_policy(config.policy, acting.execute, None, config.scene, config.device)) as policy,
        closing(leashed(lambda: make_env(config.scene, config.renderer), acting.leash)) as env,
    ):
        result = watch(policy, env, wish, config.steps, config.seed, path)
    leash = "no leash" if acting.leash is None else f"leash {acting.leash} m"
    how = leash if config.policy == EXPERT else f"E {acting.execute}, {leash}"
    print(f'"{wish.instruction}" in scene {config.scene}, start {config.seed}, {how}')
    print(told(result, wish))
    print(f"video in {path}")
    return result
