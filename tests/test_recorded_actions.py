"""Policies for actions that are not CALVIN's: trained, saved, loaded, validated, and acting."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from calvin_eval.calvin import CALVIN_ACTIONS, calvin_observation
from calvin_eval.specs import ActionPart, ActionSpec
from calvin_eval.system.errors import UserError
from policies import SENTENCES, a_batch, head_config, small_config
from roboflamingo.heads import HEADS
from roboflamingo.policy.config import PolicyConfig
from roboflamingo.policy.control import PolicyController
from roboflamingo.policy.roboflamingo import RoboFlamingo
from roboflamingo.training.train import train
from roboflamingo.weights.checkpoint import load_policy, save_policy
from runs import metrics, tiny_policy, tiny_run
from synthetic import write_dataset

GRID = (ActionPart("move", "categorical", choices=7),)
ARM = (
    ActionPart("way", size=3, units=("m",) * 3, one=(0.02,) * 3, normalise="deviation"),
    ActionPart("turn", size=3, normalise="range"),
    ActionPart("gripper", "binary"),
)
"""What CALVIN's data hold, as if they were another robot's."""


def a_policy(parts: tuple[ActionPart, ...], kind: str = "lstm", **changes: Any) -> RoboFlamingo:
    torch.manual_seed(0)
    head = head_config(kind, hidden=16, sample_steps=2, bins=8)
    return RoboFlamingo(small_config(head=head, actions="recorded", action_parts=parts, **changes)).eval()


def act(policy: RoboFlamingo, **execution: Any) -> np.ndarray:
    """The actions (steps, A) of four calls."""
    controller, random = PolicyController(policy, **execution), np.random.default_rng(0)
    memory, given = controller.start(SENTENCES[0]), []
    for _ in range(4):
        images = random.integers(0, 256, (2, 32, 32, 3), np.uint8)
        seen = calvin_observation(*images, random.normal(size=15))
        actions, (memory,) = controller.act([seen], [memory])
        given.append(actions[0])
        for _ in range(controller.execute - 1 if controller.watches else 0):
            memory = controller.watch(seen, memory)
    return np.concatenate(given)


@pytest.mark.parametrize("kind", sorted(HEADS))
def test_a_grid_world_s_policy_learns_and_moves_in_whole_steps(tmp_path: Path, kind: str) -> None:
    policy = a_policy(GRID, kind)
    batch = a_batch(policy.config)
    shape = batch["action_mask"].shape
    batch["actions"] = torch.randint(7, (*shape, 1), generator=torch.Generator().manual_seed(0)).float()
    loss = policy.loss(batch)
    loss["loss"].backward()
    assert set(loss) == {"loss", "move", "auxiliary"}
    save_policy(policy, tmp_path / "policy")
    policy = load_policy(tmp_path / "policy")
    assert policy.config.action_parts == GRID
    for execution in ({}, {"execute": 4}, {"ensemble": 0.1}):
        actions = act(policy, **execution)
        assert actions.shape == (4 * execution.get("execute", 1), 1)
        assert ActionSpec(GRID).problem(actions) is None


@pytest.mark.parametrize("kind", ["lstm", "diffusion", "bins"])
def test_statistics_are_filled_in_saved_and_used(tmp_path: Path, kind: str) -> None:
    dataset = write_dataset(tmp_path / "data")
    head = head_config(kind, hidden=16, sample_steps=2, bins=8)
    wanted = tiny_policy(head=head, actions="recorded", action_parts=ARM)
    train(tiny_run(tmp_path / "run", dataset, policy=wanted, max_steps=2), console=Console(quiet=True))
    policy = load_policy(tmp_path / "run" / "policy")
    way, turn, gripper = policy.config.action_parts
    assert (replace(way, centre=(), scale=()), replace(turn, centre=(), scale=()), gripper) == ARM
    assert len(way.scale) == len(turn.centre) == 3
    (line,) = [line for line in metrics(tmp_path / "run") if "val_loss" in line]
    assert {"val_way_m", "val_turn_error", "val_gripper_accuracy"} <= line.keys()
    actions = act(policy, execute=3)
    assert actions.shape == (12, 7) and set(np.unique(actions[:, 6])) <= {-1.0, 1.0}
    near = np.array(way.centre) + 8 * np.array(way.scale) * np.array([[-1], [1]])
    assert ((near[0] < actions[:, :3]) & (actions[:, :3] < near[1])).all()


def test_recorded_actions_of_calvin_are_its_relative_ones() -> None:
    recorded = a_policy(CALVIN_ACTIONS.parts)
    torch.manual_seed(0)
    relative = RoboFlamingo(small_config(head=recorded.config.head)).eval()
    batch = a_batch(recorded.config)
    assert torch.equal(recorded.loss(batch)["loss"], relative.loss(batch)["loss"])
    np.testing.assert_array_equal(act(recorded), act(relative))


def test_parts_belong_to_recorded_actions_and_those_to_parts() -> None:
    with pytest.raises(UserError, match=r"policy\.action_parts does nothing with policy\.actions relative"):
        PolicyConfig(action_parts=GRID)
    with pytest.raises(UserError, match=r"recorded actions need policy\.action_parts"):
        RoboFlamingo(small_config(actions="recorded"))
