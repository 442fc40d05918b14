"""A head is shown the same windows acting as in training: at an episode's start, with strides, frame by frame."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from calvin_eval.calvin import calvin_observation
from policies import head_config, small_config
from roboflamingo.data.windows import last_frames, to_tensors
from roboflamingo.heads.base import frame_at
from roboflamingo.policy.control import PolicyController
from roboflamingo.policy.roboflamingo import RoboFlamingo
from roboflamingo.training.config_parts import ConfigError
from roboflamingo.training.datamodule import open_windows, with_statistics
from roboflamingo.training.resolved import check_same_config, plain
from runs import tiny_run
from synthetic import write_dataset

LENGTHS = (9, 5)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data"), lengths=LENGTHS)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("last_step_only", [False, True])
@pytest.mark.parametrize("head", ["lstm", "gpt", "mlp_history"])
def test_every_window_of_training_is_what_acting_shows_there(
    tmp_path: Path, dataset: Path, head: str, last_step_only: bool, stride: int
) -> None:
    wanted = head_config(head, hidden=16, attention_heads=2, last_step_only=last_step_only)
    run = tiny_run(tmp_path, dataset, policy=small_config(window=4, head=wanted), validation_windows=0)
    run.data.stride = stride
    windows, _ = open_windows(run)
    torch.manual_seed(0)
    policy = RoboFlamingo(with_statistics(run.policy, windows)).eval()
    assert policy.config.stride == stride  # kept with the policy, for the controller
    batch = to_tensors(windows.__getitems__(range(len(windows))))
    with torch.no_grad():
        last = last_frames(batch["frame_mask"])
        trained = policy.commands(policy.predict(batch), batch["robot_obs"])
    trained = frame_at(trained, last)[:, 0].numpy()
    frames = {name: frame_at(batch[name], last)[:, 0].numpy() for name in ("rgb_static", "rgb_gripper", "robot_obs")}
    controller, number = PolicyController(policy), 0
    for length in LENGTHS:
        memory = controller.start(batch["instruction"][number])
        for _ in range(length):
            seen = calvin_observation(*(frames[name][number] for name in frames))
            actions, (memory,) = controller.act([seen], [memory])
            np.testing.assert_allclose(actions[0, 0, :6], trained[number, 0, :6], atol=2e-6)
            number += 1
    assert number == len(windows)


def test_of_a_window_that_has_just_begun_its_last_frame_is_validated(tmp_path: Path, dataset: Path) -> None:
    run = tiny_run(tmp_path, dataset, policy=small_config(window=4), validation_windows=0)
    windows, _ = open_windows(run)
    policy = RoboFlamingo(with_statistics(run.policy, windows)).eval()
    from roboflamingo.training.validation import _action_errors

    batch = to_tensors(windows.__getitems__([0]))  # a segment's first frame, and three copies that fill it up
    assert batch["frame_mask"].tolist() == [[True, False, False, False]]
    with torch.no_grad():
        prediction = policy.predict(batch)
        total, count = _action_errors(policy, prediction, batch)["val_pose_m"]
    expected = 0.02 * (prediction["pose"][0, 0, :, :3] - policy.targets(batch)[0, 0, :, :3]).abs()
    assert count == expected.numel()
    torch.testing.assert_close(total, expected.sum())


def test_a_run_older_than_the_policy_s_stride_goes_on_with_the_stride_of_its_data(tmp_path: Path) -> None:
    run = tiny_run(tmp_path / "run", tmp_path, policy=small_config(window=4, stride=3))
    run.data.stride = 3
    old = plain(run)
    del old["policy"]["stride"]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(old, sort_keys=False))
    check_same_config(run, tmp_path / "config.yaml")
    run.policy.stride = 2
    with pytest.raises(ConfigError, match=r"began with policy\.stride = 3, now it is 2"):
        check_same_config(run, tmp_path / "config.yaml")
