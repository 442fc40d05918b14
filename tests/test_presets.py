"""A preset means the same in Python, typed, and in a file."""

from __future__ import annotations

from pathlib import Path

import pytest

from calvin_eval.system.errors import UserError
from roboflamingo.backbone.config import PRESETS
from roboflamingo.cli.arguments import parse_config
from roboflamingo.policy.base_config import BasePolicyConfig, calvin_cameras
from roboflamingo.training.config import TrainConfig
from roboflamingo.weights.presets import preset

NEEDED = ("--run=r", "--max_steps=1", "--data.folders={a: 1.0}")


def parsed(*words: str) -> BasePolicyConfig:
    return parse_config(TrainConfig, "train", [*NEEDED, *words], summary="", examples="roboflamingo x").policy


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_one_policy_however_it_is_asked_for(name: str, tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(f"policy: {{backbone: {{preset: {name}}}}}\n")
    assert parsed("--policy.backbone.preset", name) == preset(name) == parsed("--config", str(file))
    file.write_text(f"policy:\n  chunk: 3\n  backbone: {{preset: {name}}}\n  cameras: {{front: {{size: 112}}}}\n")
    cameras = calvin_cameras(112, 224)
    typed = ("--policy.chunk=3", "--policy.cameras.rgb_static.size=112", "--policy.cameras.rgb_gripper.size=224")
    shifts = [f"--policy.cameras.{camera}.shift=3" for camera in cameras]
    assert parsed("--policy.backbone.preset", name, *typed, *shifts) == preset(name, chunk=3, cameras=cameras)
    assert parsed("--config", str(file)).cameras.keys() == {"front"} and parsed("--config", str(file)).chunk == 3


def test_a_key_that_a_policy_does_not_have_is_no_preset_s() -> None:
    with pytest.raises(UserError, match="a policy has no key chnk"):
        preset("scratch", chnk=3)
