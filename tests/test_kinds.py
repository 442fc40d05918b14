"""A policy of another kind is trained, continued, saved, validated and run by the same code as RoboFlamingo."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cloning import KIND, Cloning, CloningConfig
from rich.console import Console

from calvin_eval.calvin import calvin_observation
from calvin_eval.system.errors import UserError
from roboflamingo.cli.arguments import parse_config
from roboflamingo.data.windows import to_tensors
from roboflamingo.policy.base import POLICIES, policy_kind, register_policy
from roboflamingo.policy.base_config import BasePolicyConfig, CameraConfig, calvin_cameras
from roboflamingo.policy.config import PolicyConfig
from roboflamingo.policy.control import PolicyController
from roboflamingo.policy.roboflamingo import RoboFlamingo
from roboflamingo.training.config import TrainConfig
from roboflamingo.training.config_parts import ConfigError, OptimizerConfig, TrainableConfig
from roboflamingo.training.datamodule import open_windows
from roboflamingo.training.train import train
from roboflamingo.weights.checkpoint import load_policy, read_config
from runs import losses, metrics, tiny_run, without_clocks
from synthetic import write_dataset

QUIET = Console(quiet=True)


@pytest.fixture(autouse=True)
def cloning() -> Iterator[None]:
    register_policy("cloning", KIND)
    yield
    del POLICIES["cloning"]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data"))


def a_run(run: Path, dataset: Path, **changed: Any) -> TrainConfig:
    policy = CloningConfig(hidden=8, window=2, chunk=3, cameras=calvin_cameras(24, 16))
    return tiny_run(run, dataset, **{"policy": policy} | changed)


def test_it_trains_is_validated_saved_and_acts(tmp_path: Path, dataset: Path) -> None:
    config = a_run(tmp_path / "run", dataset, max_steps=30)
    policy = load_policy(train(config, console=QUIET))
    assert isinstance(policy, Cloning) and policy.config.hidden == 8 and not policy.training
    assert losses(tmp_path / "run")[-1] < losses(tmp_path / "run")[0]
    assert {"val_loss", "val_pose_m", "val_gripper_accuracy"} <= metrics(tmp_path / "run")[-1].keys()
    windows, _ = open_windows(config, QUIET)
    batch = to_tensors(windows.__getitems__([5]))
    controller = PolicyController(policy, rows=2)
    seen = calvin_observation(*(batch[name][0, -1].numpy() for name in ("rgb_static", "rgb_gripper", "robot_obs")))
    actions, (memory,) = controller.act([seen], [controller.start("any words")])
    with torch.no_grad():
        predicted = policy.predict(batch)["pose"][0, -1]
    np.testing.assert_allclose(actions[0, 0, :6], predicted[0], atol=1e-6)
    assert controller.spec.cameras == ("rgb_static", "rgb_gripper") and controller.spec.state == {"robot_obs": 15}
    controller.act([seen], [memory])


def test_a_run_of_it_is_continued_to_the_last_bit(tmp_path: Path, dataset: Path) -> None:
    steady = OptimizerConfig(schedule="constant", warmup_steps=0)
    whole, halves = (a_run(tmp_path / name, dataset, optimizer=steady) for name in ("whole", "halves"))
    train(whole, console=QUIET)
    train(replace(halves, max_steps=3), console=QUIET)
    train(halves, console=QUIET)
    one, other = (without_clocks(metrics(tmp_path / name)) for name in ("whole", "halves"))
    assert one[-1] == other[-1]
    with pytest.raises(ConfigError, match=r"began with policy\.hidden = 8, now it is 9"):
        train(replace(halves, policy=replace(halves.policy, hidden=9)), console=QUIET)


def test_it_is_trained_on_from_its_folder(tmp_path: Path, dataset: Path) -> None:
    first = train(a_run(tmp_path / "one", dataset), console=QUIET)
    second = a_run(tmp_path / "two", dataset, start_from=str(first), max_steps=1)
    assert load_policy(train(second, console=QUIET)).config == read_config(first / "config.yaml")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"trainable": TrainableConfig(vision=True)}, r"trainable\.vision True does nothing with policy\.kind cloning"),
        ({"trainable": TrainableConfig(everything=False)}, r"trainable\.everything False does nothing"),
        ({"compile": True}, r"compile does nothing with policy\.kind cloning"),
        ({"checkpoint_activations": True}, r"checkpoint_activations does nothing with policy\.kind cloning"),
    ],
)
def test_what_it_cannot_be_asked_is_named(changed: dict[str, Any], message: str, tmp_path: Path, dataset: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        train(a_run(tmp_path / "run", dataset, **changed), console=QUIET)


def test_it_has_no_vision_tokens_to_keep(tmp_path: Path, dataset: Path) -> None:
    config = a_run(tmp_path / "run", dataset)
    with pytest.raises(ConfigError, match=r"vision_tokens is always, and policy\.kind cloning has no vision encoder"):
        train(replace(config, data=replace(config.data, vision_tokens="always")), console=QUIET)


def test_a_config_is_of_one_kind() -> None:
    with pytest.raises(UserError, match=r"policy\.kind is 'cloning', and PolicyConfig is the config"):
        PolicyConfig(kind="cloning")
    with pytest.raises(UserError, match=r"policy\.hidden is 0; it must be a whole number, at least 1"):
        CloningConfig(hidden=0)
    with pytest.raises(UserError, match=r"policy\.window is 0"):
        CloningConfig(window=0)


def test_roboflamingo_is_a_kind_among_others() -> None:
    kind = policy_kind("roboflamingo")
    assert kind.config is PolicyConfig and kind.policy is RoboFlamingo
    with pytest.raises(UserError, match=r"policy\.kind 'act' does not exist; choose one of cloning, roboflamingo"):
        policy_kind("act")


# --- on the command line -----------------------------------------------------------------------

NEEDED = ("--run=r", "--max_steps=1", "--data.folders={a: 1.0}")


def parsed(*words: str) -> BasePolicyConfig:
    return parse_config(TrainConfig, "train", [*NEEDED, *words], summary="", examples="roboflamingo x").policy


def test_the_kind_says_which_keys_there_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("policy: {kind: cloning, hidden: 12}\n")
    for words in (["--policy.kind=cloning", "--policy.hidden=12"], ["--config", str(file)], [f"--config={file}"]):
        assert parsed(*words) == CloningConfig(hidden=12)
    file.write_text("policy.kind: cloning\npolicy.hidden: 12\n")
    changed = parsed("--config", str(file), "--policy.hidden", "3", "--policy.cameras.rgb_static.size=48")
    assert changed == CloningConfig(hidden=3, cameras=calvin_cameras(48))
    assert parsed("--policy.kind", "roboflamingo", "--policy.pooling=mean") == PolicyConfig(pooling="mean")
    for words, named in (
        (["--policy.kind=cloning", "--policy.pooling=mean"], "--policy.pooling"),
        (["--policy.kind=cloning", "--policy.backbone.preset=mpt-1b"], "--policy.backbone.preset"),
        (["--policy.hidden=3"], "--policy.hidden"),
        (["--config", str(file), "--policy.kind=roboflamingo"], "hidden"),
        (["--policy.kind=act"], "policy.kind 'act' does not exist; choose one of cloning, roboflamingo"),
    ):
        with pytest.raises(SystemExit):
            parsed(*words)
        assert named in capsys.readouterr().err


@dataclass
class Unranged(BasePolicyConfig):
    kind: str = "unranged"
    width: int = 3


def test_a_kind_s_number_without_a_range_is_a_fault_of_the_kind() -> None:
    with pytest.raises(TypeError, match="Unranged: either no range or no such number: width"):
        Unranged()
    with pytest.raises(UserError, match=r"policy\.cameras\.front\.size is 0"):
        CloningConfig(cameras={"front": CameraConfig(0)})
