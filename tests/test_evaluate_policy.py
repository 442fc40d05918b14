"""Learned policies in evaluation: the same chains in any company, results of the weights that are there."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from acting import run_chains
from calvin_eval.demonstrations.episodes import EpisodeSettings, demonstrate_task
from calvin_eval.evaluation.chains import ChainSettings, evaluate_chains
from calvin_eval.system.errors import UsageError, UserError
from calvin_eval.worlds.playtable.world import PlayTable
from policies import small_policy
from roboflamingo.cli import evaluate as verb
from roboflamingo.cli.policies import make_env, open_policy
from roboflamingo.policy.config import CameraConfig
from roboflamingo.policy.control import PolicyController
from roboflamingo.weights.checkpoint import load_policy, save_policy


class Tracked(PlayTable):
    """A play table that notes what it was told to do, chain by chain."""

    def __init__(self, told: list[list[bytes]]) -> None:
        super().__init__("D", "tinyrenderer")
        self.told = told

    def reset(self, *arguments: Any, **options: Any) -> Any:
        self.chain: list[bytes] = []
        self.told.append(self.chain)
        return super().reset(*arguments, **options)

    def step(self, action: Any, **options: Any) -> Any:
        self.chain.append(np.asarray(action).tobytes())
        return super().step(action, **options)


def actions_of_chains(policy: Any, environments: int, tmp_path: Path, execute: int) -> set[tuple[bytes, ...]]:
    """Every chain's actions, to the bit, with so many environments side by side."""
    told: list[list[bytes]] = []
    tables = [Tracked(told) for _ in range(environments)]
    settings = ChainSettings(chains=5, max_steps=6, sentences="enriched")
    list(run_chains(PolicyController(policy, execute, rows=12), tables, range(5), settings, tmp_path))
    for table in tables:
        table.close()
    return {tuple(chain) for chain in told}


@pytest.mark.parametrize(("window", "execute"), [(1, 1), (3, 1), (3, 2)])  # the last watches between its actions
def test_how_many_environments_share_a_pass_changes_no_action(window: int, execute: int, tmp_path: Path) -> None:
    policy = small_policy(window=window)
    alone = actions_of_chains(policy, 1, tmp_path, execute)
    assert len(alone) == 5
    assert actions_of_chains(policy, 3, tmp_path, execute) == alone


def test_a_policy_that_begins_a_task_of_a_demonstration_sees_the_frames_between_its_chunks() -> None:
    policy, seen = PolicyController(small_policy(window=3), execute=2), list[int]()

    class Counting(PolicyController):
        def act(self, observations: Any, memories: Any) -> Any:
            seen.append(1 + len(memories[0].unseen))
            return super().act(observations, memories)

    rng = np.random.default_rng(0)
    with PlayTable("D", "tinyrenderer") as table:
        counting = Counting(policy.policy, execute=2)
        settings = EpisodeSettings(max_steps=16)
        demonstrate_task(table, table.reset(), "open_drawer", "open the drawer", settings, rng, counting)
    assert seen[0] == 1 and len(seen) > 2 and set(seen[1:]) == {2}


@pytest.fixture()
def config(tmp_path: Path) -> verb.EvaluateConfig:
    save_policy(small_policy(window=2, stride=2), tmp_path / "policy")
    return verb.EvaluateConfig(
        policy=str(tmp_path / "policy"), out=str(tmp_path / "chains"), execute=2, renderer="tinyrenderer", workers=1,
        settings=ChainSettings(chains=1, max_steps=4), batch=2,
    )  # fmt: skip


def test_results_are_of_the_weights_that_are_there(config: verb.EvaluateConfig) -> None:
    first: dict[str, Any] = verb.run(config)
    assert {key: first[key] for key in ("execute", "window", "stride", "batch", "device")} == {
        **{"execute": 2, "window": 2, "stride": 2, "batch": 2, "device": "cpu"},
    }
    policy = load_policy(config.policy)
    with torch.no_grad():
        next(policy.head.parameters()).add_(0.01)
    save_policy(policy, Path(config.policy))
    with pytest.raises(UserError, match=r"holds an evaluation with other policy_fingerprint .*--fresh true"):
        verb.run(config)
    second: dict[str, Any] = verb.run(replace(config, fresh=True))
    assert second["policy_fingerprint"] != first["policy_fingerprint"]
    stored = json.loads((Path(config.out) / "results.json").read_text())["0"]
    assert stored["policy_fingerprint"] == second["policy_fingerprint"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"execute": 5}, r"execute=5 is not in 1\.\.4"),
        ({"ensemble": 0.1}, "needs execute=1"),
        ({"policy": "nowhere"}, r"nowhere holds no policy \(config\.yaml is missing\)"),
        ({"device": "cuda"}, "no GPU here: choose cpu"),
    ],
)
def test_what_cannot_be_is_said_before_any_process_starts(
    config: verb.EvaluateConfig, change: dict[str, Any], message: str
) -> None:
    if "device" in change and torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    with pytest.raises((UserError, FileNotFoundError), match=message):
        verb.run(replace(config, **change))
    assert not Path(config.out).exists()


def test_a_policy_that_cannot_act_there_is_refused_by_the_parent_or_at_the_latest_by_the_worker(
    config: verb.EvaluateConfig,
) -> None:
    save_policy(small_policy(cameras={"front": CameraConfig(32, 2)}), Path(config.policy))
    there = "and the play table with renderer tinyrenderer has rgb_static, rgb_gripper"
    with pytest.raises(UsageError, match=f"looks through front, {there}"):
        verb.run(config)
    with pytest.raises(UserError, match="looks through front, and the environment of CALVIN has rgb_static"):
        evaluate_chains(
            partial(make_env, "D", "tinyrenderer"), partial(open_policy, config.policy), Path(config.out),
            config.settings, workers=1,
        )  # fmt: skip
    assert not (Path(config.out) / "settings.json").exists()
