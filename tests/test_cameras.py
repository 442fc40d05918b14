"""Any robot's cameras and states: one, two or three of any name, trained on, acted with, and refused by name."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from calvin_eval.calvin import CALVIN_ACTIONS, calvin_robot
from calvin_eval.protocol import Observation
from calvin_eval.specs import ActionPart, ActionSpec, RobotSpec
from calvin_eval.system.errors import UserError
from policies import SENTENCES, a_batch, small_config
from roboflamingo.cli.arguments import parse_config
from roboflamingo.policy.actions import Statistics
from roboflamingo.policy.config import CameraConfig, PolicyConfig, calvin_cameras
from roboflamingo.policy.control import PolicyController
from roboflamingo.policy.roboflamingo import RoboFlamingo
from roboflamingo.training.config import TrainConfig
from roboflamingo.training.layers import repeated_layers
from roboflamingo.weights.checkpoint import load_policy, save_policy
from roboflamingo.weights.presets import preset

CAMERAS = ("front", "wrist.left", "wrist.right")
"""Names with dots, as LeRobot's data sets have them."""
SIZES = (32, 16, 24)


def robot_config(count: int = 3, fusion: str = "post", separate: bool = True, **changed: Any) -> PolicyConfig:
    """A policy of a robot that knows nothing of CALVIN."""
    named = {name: CameraConfig(size, 2) for name, size in zip(CAMERAS[:count], SIZES, strict=False)}
    joints = Statistics((0.0,) * 8, (1.0,) * 8)
    given = {"cameras": named, "robot_obs": "none", "vectors": ("joints",), "statistics": {"joints": joints}}
    config = small_config(**given | {"auxiliary_weight": 0.0} | changed)
    resampler = replace(config.backbone.resampler, separate=separate)
    return replace(config, backbone=replace(config.backbone, fusion=fusion, resampler=resampler))


def robot_batch(config: PolicyConfig) -> dict[str, Any]:
    """A batch that has the robot's arrays only."""
    batch = a_batch(config)
    del batch["robot_obs"], batch["scene_obs"]
    return batch | {"joints": torch.randn(2, config.window, 8)}


def made(config: PolicyConfig, seed: int = 0) -> RoboFlamingo:
    torch.manual_seed(seed)
    return RoboFlamingo(config).eval()


BEFORE = {
    ("post", True): (2.53230667, 0.914889, 196.234619),
    ("post", False): (2.51480532, 0.893427, 191.817184),
    ("pre", True): (2.56060648, 0.672625, 191.862839),
    ("pre", False): (2.56060648, 0.672625, 191.862839),
    ("two_way", True): (2.60284281, 0.956318, 223.801193),
    ("two_way", False): (2.50202179, 0.857826, 234.467270),
    ("vit_concat", True): (2.48719311, 0.924795, 77.380569),
    ("vit_concat", False): (2.47225642, 0.911607, 75.907890),
    ("first_only", True): (2.56190443, 0.671447, 191.665100),
    ("first_only", False): (2.56190443, 0.671447, 191.665100),
}
"""Of a small policy in training, with fusion and separate resamplers: loss, norm of its gradient and sum of its
features in evaluation, as they were when two cameras were all that there could be."""


@pytest.mark.parametrize(("fusion", "separate"), BEFORE)
def test_calvins_two_cameras_give_what_they_gave_before_there_were_others(fusion: str, separate: bool) -> None:
    config = small_config(word_dropout=0.3)
    resampler = replace(config.backbone.resampler, separate=separate)
    config = replace(config, backbone=replace(config.backbone, fusion=fusion, resampler=resampler))
    policy, batch = made(config, seed=3), a_batch(config, seed=1)
    torch.manual_seed(5)  # shifts and words that are left out
    loss = policy.train().loss(batch)["loss"]
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(policy.parameters(), float("inf"))
    with torch.no_grad():
        features = policy.eval().features(batch).sum()
    assert (loss.item(), norm.item(), features.item()) == pytest.approx(BEFORE[fusion, separate], rel=2e-5)


@pytest.mark.parametrize("separate", [True, False])
@pytest.mark.parametrize("cameras", [1, 2, 3])
@pytest.mark.parametrize("fusion", ["post", "pre", "two_way", "vit_concat", "first_only"])
def test_every_fusion_looks_through_as_many_cameras_as_there_are(fusion: str, cameras: int, separate: bool) -> None:
    config = robot_config(cameras, fusion, separate)
    policy, batch = made(config), robot_batch(config)
    with torch.no_grad():
        features = policy.features(batch)
        assert features.shape == (2, 1 if fusion == "vit_concat" else config.window, config.features)
        for name in config.cameras:
            other = policy.features(batch | {name: 255 - batch[name]})
            assert torch.equal(features, other) == (fusion == "first_only" and name != "front")
    policy.train().loss(batch)["loss"].backward()
    assert all(p.grad is not None for name, p in policy.named_parameters() if "perceiver" in name)
    resamplers = cameras if separate and fusion not in ("pre", "first_only") else 1
    assert len(policy.backbone.perceiver_further) == resamplers - 1


def test_cameras_of_one_size_share_a_pass_and_see_what_they_see_alone() -> None:
    config = robot_config(
        3, cameras={name: CameraConfig(size) for name, size in zip(CAMERAS, (32, 16, 32), strict=True)}
    )
    policy, batch = made(config), robot_batch(config)
    images = [batch[name].flatten(0, 1) for name in CAMERAS]
    alone = [policy.backbone.vision_encoder(each) for each in images]
    for one, other in zip(policy.backbone._encoded(images), alone, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_two_way_lets_the_text_look_at_each_camera_in_a_pass_of_its_own() -> None:
    config = robot_config(3, "two_way", vectors=(), statistics={})
    policy, batch = made(config), robot_batch(config)
    with torch.no_grad():
        features = policy.features(batch)
        other = policy.features(batch | {"wrist.left": 255 - batch["wrist.left"]})
    width = policy.backbone.width
    same = [
        torch.equal(features[..., i * width :][..., :width], other[..., i * width :][..., :width]) for i in range(3)
    ]
    assert same == [True, False, True]


def test_a_list_of_further_resamplers_is_sharded_layer_by_layer() -> None:
    policy = made(robot_config(3))
    names = {id(module): name for name, module in policy.named_modules()}
    layers = [names[id(layer)] for layer in repeated_layers(policy)]
    assert "backbone.perceiver_further.1.layers.0.0" in layers and "backbone.perceiver_further.1" not in layers


def observed(config: PolicyConfig, random: np.random.Generator) -> Observation:
    images = {name: random.integers(0, 256, (40, 30, 3), np.uint8) for name in config.cameras}
    return Observation(images, {"joints": random.normal(size=8)})


def test_a_robot_without_robot_obs_is_saved_loaded_and_acts(tmp_path) -> None:
    config = robot_config(3)
    save_policy(made(config), tmp_path / "policy")
    policy = load_policy(tmp_path / "policy")
    assert list(policy.config.cameras) == list(CAMERAS) and policy.config == config
    controller, random = PolicyController(policy, 2, rows=2), np.random.default_rng(0)
    assert controller.spec.cameras == CAMERAS and controller.spec.state == {"joints": 8}
    seen = observed(config, random)
    memory = controller.start(SENTENCES[0])
    controller = PolicyController(policy)
    actions, _ = controller.act([seen], [memory])
    assert actions.shape == (1, 1, 7)
    for name in CAMERAS:
        other = replace(seen, images={**seen.images, name: 255 - seen.images[name]})
        assert not np.array_equal(controller.act([other], [memory])[0], actions)
    moved = replace(seen, state={"joints": seen.state["joints"] + 1})
    assert not np.array_equal(controller.act([moved], [memory])[0], actions)


@pytest.mark.parametrize(
    ("images", "state", "message"),
    [
        (CAMERAS[:2], {"joints": 8}, "reads wrist.right; of images the observation has front, wrist.left"),
        ((), {"joints": 8}, "of images the observation has none: choose a renderer"),
        (CAMERAS, {"robot_obs": 15}, "reads joints; of states the observation has robot_obs"),
        (CAMERAS, {}, "reads joints; of states the observation has none"),
        (CAMERAS, {"joints": 7}, r"reads 8 numbers of joints; the observation's have shape \(7,\)"),
    ],
)
def test_what_an_observation_lacks_is_named(images: tuple[str, ...], state: dict[str, int], message: str) -> None:
    controller = PolicyController(made(robot_config(3)))
    picture = np.zeros((32, 32, 3), np.uint8)
    seen = Observation(dict.fromkeys(images, picture), {name: np.zeros(size) for name, size in state.items()})
    with pytest.raises(UserError, match=message):
        controller.act([seen], [controller.start(SENTENCES[0])])


ROBOT = RobotSpec({name: (48, 64) for name in CAMERAS}, {"joints": 8}, CALVIN_ACTIONS, 20.0)


def test_a_policy_fits_the_data_that_has_what_it_reads() -> None:
    for config in (robot_config(3), robot_config(1)):
        config.check_data(ROBOT, "the set")
    calvin = calvin_robot()
    PolicyConfig().check_data(calvin, "CALVIN")
    PolicyConfig(vectors=("robot_obs", "scene_obs")).check_data(calvin, "CALVIN")  # whose sizes the data tell
    arm = replace(ROBOT, actions=ActionSpec((ActionPart("joints", size=7), ActionPart("opening"))))
    robot_config(3, actions="recorded").check_data(arm, "the set")  # whose actions it will take over
    with pytest.raises(
        UserError, match=r"actions relative is for actions like CALVIN's, .* are joints, opening: set it"
    ):
        robot_config(3).check_data(arm, "the set")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (lambda: PolicyConfig(auxiliary_weight=0.0), "looks through rgb_static, rgb_gripper, and the set"),
        (lambda: robot_config(3, vectors=("force",), statistics={}), "vectors names force, and the set has joints"),
        (lambda: robot_config(3, robot_obs="pose"), r"reads the state robot_obs \(15 numbers\), and the set"),
        (lambda: robot_config(3, auxiliary_weight=0.5), "auxiliary_weight 0.5 .* robot_obs and scene_obs.* to 0"),
        (
            lambda: robot_config(3, statistics={"joints": Statistics((0.0,), (1.0,))}),
            "reads 1 numbers of the state joints, and the set has 8 of it",
        ),
    ],
)  # fmt: skip
def test_data_that_lack_what_a_policy_reads_are_refused(config: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        config().check_data(ROBOT, "the set")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"cameras": {}}, "policy.cameras is empty"),
        ({"cameras": {"joints": CameraConfig(32)}}, "policy.cameras has joints, which is the name of something else"),
        ({"cameras": {"actions": CameraConfig(32)}}, "policy.cameras has actions"),
        ({"vectors": ("joints", "joints")}, "policy.vectors names one twice: joints, joints"),
        ({"cameras": {"front": CameraConfig(0)}}, "policy.cameras.front.size is 0; it must be a whole number"),
        ({"cameras": {"front": CameraConfig(32, -1)}}, "policy.cameras.front.shift is -1"),
    ],
)  # fmt: skip
def test_cameras_that_cannot_be_are_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        robot_config(3, **changed)


# --- on the command line -----------------------------------------------------------------------

NEEDED = ("--run=r", "--max_steps=1", "--data.folders={a: 1.0}")


def parsed(*words: str) -> PolicyConfig:
    return parse_config(TrainConfig, "train", [*NEEDED, *words], summary="", examples="roboflamingo x").policy


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with pytest.raises(SystemExit):
        parsed(*words)
    return capsys.readouterr().err


def test_a_part_of_a_camera_is_typed_and_the_rest_stays() -> None:
    changed = parsed("--policy.cameras.rgb_static.size", "48", "--policy.cameras.rgb_gripper.shift=0").cameras
    assert changed == calvin_cameras(48, 64, 3, 0)
    changed = parsed("--policy.backbone.preset=mpt-1b", "--policy.cameras.rgb_static.shift=1").cameras
    assert changed == calvin_cameras(224, 224, 1, 4)


def test_a_mapping_names_all_cameras(tmp_path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("policy:\n  cameras:\n    wrist.left: {size: 32}\n    front: {size: 64, shift: 0}\n")
    expected = {"wrist.left": CameraConfig(32), "front": CameraConfig(64, 0)}
    cameras = parsed("--config", str(file)).cameras
    assert cameras == expected and list(cameras) == ["wrist.left", "front"]
    cameras = parsed("--config", str(file), "--policy.cameras.wrist.left.size=16").cameras
    assert cameras == expected | {"wrist.left": CameraConfig(16)} and list(cameras) == ["wrist.left", "front"]
    assert parsed("--policy.cameras", "{front: {size: 64}}").cameras == {"front": CameraConfig(64)}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--policy.cameras.front.size=48"], "policy.cameras has rgb_static, rgb_gripper, not front; --policy.cam"),
        (["--policy.cameras.rgb_static.edge=48"], "--policy.cameras.rgb_static.edge is no key; there are "),
        (["--policy.cameras.rgb_static", "48"], "is no key; there are --policy.cameras.rgb_static.size"),
        (["--policy.cameras.rgb_static.size"], "--policy.cameras.rgb_static.size takes a whole number"),
        (["--policy.cameras.rgb_static.size=wide"], "policy.cameras is "),
        (["--policy.cameras.rgb_static.size=0"], "policy.cameras.rgb_static.size is 0"),
        (["--policy.cameras={front: 48}"], "policy.cameras"),
        (
            ["--policy.backbone.fusion=first_only", "--policy.cameras.rgb_gripper.size=48"],
            "policy.cameras.rgb_gripper.size does nothing with policy.backbone.fusion first_only",
        ),
    ],
)  # fmt: skip
def test_wrong_cameras_are_named(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert message in refused(capsys, *words)


def test_presets_keep_their_cameras() -> None:
    assert preset("mpt-1b").cameras == calvin_cameras(224, 224, 10, 4)
