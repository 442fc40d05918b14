"""A policy of a user's own robot depends on all that it sees, and is refused what its data lack."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from calvin_eval.protocol import Observation
from calvin_eval.specs import RobotSpec
from calvin_eval.system.errors import UserError
from roboflamingo.cli.arguments import parse_config
from roboflamingo.data.sources import open_source
from roboflamingo.data.sources.base import SourceOptions
from roboflamingo.policy.control import PolicyController
from roboflamingo.training.config import TrainConfig
from roboflamingo.training.train import train
from roboflamingo.weights.checkpoint import load_policy
from robots import FRONT, TASKS, WRIST, Robot, write_robot

QUIET = Console(quiet=True)
CONFIG = Path(__file__).parents[1] / "configs" / "any_robot.yaml"


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "my_robot"
    write_robot(folder, Robot(images="image"))
    return folder


def a_run(run: Path, dataset: Path, *words: str) -> TrainConfig:
    """The configuration of the page, for a few steps on the set of the tests."""
    given = ("--config", str(CONFIG), "--run", str(run), f"--data.folders={json.dumps({str(dataset): 1.0})}")
    few = ("--max_steps=3", "--batch_size=4", "--log_every_steps=1", "--accelerator=cpu", "--data.pack_processes=1")
    return parse_config(TrainConfig, "train", [*given, *few, *words], summary="", examples="roboflamingo x")


def seen(random: np.random.Generator) -> Observation:
    images = {
        name: random.integers(0, 256, (*size, 3), np.uint8) for name, size in (("front", FRONT), ("wrist", WRIST))
    }
    return Observation(images, {"state": random.normal(size=8)})


def acts(folder: Path, robot: RobotSpec) -> None:
    """The policy fits the robot, and what it does depends on all that it sees and on what it is told."""
    policy = load_policy(folder)
    parts = policy.config.action_parts
    assert [(part.name, part.kind, part.size) for part in parts] == [("arm", "continuous", 7), ("gripper", "binary", 1)]
    assert len(parts[0].centre) == 7 and parts[0].units == ("rad",) * 7
    controller = PolicyController(policy, execute=1)
    controller.spec.check(robot, "my robot")
    observation = seen(np.random.default_rng(0))
    actions, (memory,) = controller.act([observation], [controller.start(TASKS[0])])
    assert actions.shape == (1, 1, 8) and np.isfinite(actions).all() and robot.actions.problem(actions) is None
    controller.act([observation], [memory])
    for name in ("front", "wrist"):
        other = replace(observation, images={**observation.images, name: 255 - observation.images[name]})
        assert not np.array_equal(controller.act([other], [controller.start(TASKS[0])])[0], actions)
    with pytest.raises(UserError, match="the policy reads wrist; of images the observation has front"):
        controller.act([replace(observation, images={"front": observation.images["front"]})], [memory])


def test_a_robots_set_is_trained_on_validated_and_acted_from(tmp_path: Path, dataset: Path) -> None:
    config = a_run(tmp_path / "run", dataset)
    folder = train(config, console=QUIET)
    robot = open_source(dataset, "training", SourceOptions(columns=config.data.columns)).spec
    acts(folder, robot)
    line = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert {"val_loss", "val_arm_rad", "val_gripper_accuracy"} <= line.keys()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--policy.cameras={rgb_static: {}}"], "looks through rgb_static, and .*my_robot has front, wrist"),
        (["--policy.vectors=[joints]"], "policy.vectors names joints, and .*my_robot has state"),
        (["--policy.robot_obs=pose"], r"reads the state robot_obs \(15 numbers\), and .*my_robot has state"),
        (["--policy.actions=relative"], "actions relative is for actions like CALVIN's, .*set it to recorded"),
        (["--policy.auxiliary_weight=0.5"], "auxiliary_weight 0.5 trains on CALVIN's robot_obs and scene_obs"),
    ],
)  # fmt: skip
def test_what_the_set_lacks_is_named_before_anything_is_packed(
    words: list[str], message: str, tmp_path: Path, dataset: Path
) -> None:
    config = a_run(tmp_path / "run", dataset, *words, f"--data.cache={tmp_path}/packed")
    with pytest.raises(UserError, match=message):
        train(config, console=QUIET)
    assert not (tmp_path / "packed").exists()
