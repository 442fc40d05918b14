"""Fusion of cameras and frames, pooling, low-dimensional inputs: what each does to what."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from rich.console import Console

from calvin_eval.calvin import calvin_observation
from policies import SENTENCES, a_batch, small_config, small_policy
from roboflamingo.policy.control import PolicyController
from roboflamingo.policy.roboflamingo import RoboFlamingo
from roboflamingo.training.train import train
from roboflamingo.weights.checkpoint import load_policy
from runs import tiny_policy, tiny_run
from synthetic import write_dataset


def fused(fusion, **changes):
    config = small_config(**changes)
    torch.manual_seed(0)
    return RoboFlamingo(replace(config, backbone=replace(config.backbone, fusion=fusion))).eval()


def changed(batch, key, frame):
    """The batch with other images in one camera at one frame."""
    images = batch[key].clone()
    images[:, frame] = 255 - images[:, frame]
    return batch | {key: images}


@pytest.mark.parametrize("fusion", ["post", "pre", "two_way", "vit_concat", "first_only"])
@torch.no_grad()
def test_each_fusion_sees_what_it_should(fusion):
    policy = fused(fusion)
    batch = a_batch(policy.config)
    features = policy.features(batch)
    frames = 1 if fusion == "vit_concat" else policy.config.window
    assert features.shape == (2, frames, policy.config.features)
    gripper = policy.features(changed(batch, "rgb_gripper", 0))
    assert torch.equal(gripper, features) == (fusion == "first_only")
    static = policy.features(changed(batch, "rgb_static", 0))
    assert not torch.allclose(static[:, 0], features[:, 0])
    if fusion != "vit_concat":
        torch.testing.assert_close(static[:, 1:], features[:, 1:], atol=1e-6, rtol=0)


@torch.no_grad()
def test_two_way_is_two_passes_joined():
    policy = fused("two_way", robot_obs="none")
    batch = a_batch(policy.config)
    media, text = policy.see(policy.images(batch)), policy.read(batch["instruction"])
    half = media.shape[2] // 2
    alone = [policy._pooled(media[:, :, part].flatten(0, 1), text) for part in (slice(half), slice(half, None))]
    expected = torch.cat(alone, dim=-1).unflatten(0, (2, 3))
    torch.testing.assert_close(policy.features(batch), expected, atol=1e-6, rtol=0)


@torch.no_grad()
def test_joined_frames_tell_apart_once_their_embeddings_do():
    policy = fused("vit_concat", robot_obs="none")
    batch = a_batch(policy.config)
    swapped = batch | {key: batch[key].flip(1) for key in ("rgb_static", "rgb_gripper")}
    torch.testing.assert_close(policy.features(batch), policy.features(swapped), atol=1e-5, rtol=0)
    torch.nn.init.normal_(policy.frame_embedding)
    assert not torch.allclose(policy.features(batch), policy.features(swapped), atol=1e-3)


@torch.no_grad()
def test_joined_frames_act_on_the_window_so_far():
    policy = fused("vit_concat")
    torch.nn.init.normal_(policy.frame_embedding)
    random = np.random.default_rng(0)
    frames = [
        calvin_observation(*random.integers(0, 256, (2, 32, 32, 3), np.uint8), random.normal(size=15)) for _ in range(5)
    ]
    controller = PolicyController(policy)
    memory = controller.start(SENTENCES[0])
    for last, frame in enumerate(frames):
        action, (memory,) = controller.act([frame], [memory])
        window = [frames[max(0, last - back)] for back in (2, 1, 0)]
        batch = {name: x.transpose(0, 1) for name, x in controller._batch([[frame] for frame in window]).items()}
        expected = policy.predict(batch | {"instruction": [SENTENCES[0]]})
        np.testing.assert_allclose(action[0, 0, :6], expected["pose"][0, 0, 0], atol=1e-5)


@torch.no_grad()
def test_pooled_padding_makes_a_sentence_depend_on_its_batch_in_training_alone():
    long = " ".join(SENTENCES[1].split() * 3)
    for padding, training in ((False, True), (True, True), (True, False)):
        policy = small_policy(pool_padding=padding, robot_obs="none").train(training)
        batch = a_batch(policy.config)
        alone = policy.features({key: value[:1] for key, value in batch.items()} | {"instruction": [SENTENCES[0]]})
        among = policy.features(batch | {"instruction": [SENTENCES[0], long]})[:1]
        assert torch.allclose(alone, among, atol=1e-5) != (padding and training)


def test_named_vectors_are_read_from_the_data_normalised_and_asked_for(tmp_path):
    dataset = write_dataset(tmp_path / "data")
    for split in ("training", "validation"):
        for number, path in enumerate(sorted((dataset / split).glob("episode_*.npz"))):
            with np.load(path) as file:
                arrays = {key: file[key] for key in file.files}
            np.savez(path, **arrays, force=np.float32([number, 100.0, -number]))
    run = tiny_run(tmp_path / "run", dataset, policy=tiny_policy(vectors=("force",), robot_obs="none"), max_steps=2)
    policy = load_policy(train(run, console=Console(quiet=True)))
    statistics = policy.config.statistics["force"]
    assert statistics.centre[1] == 100.0 and statistics.scale[1] == 1.0 and statistics.scale[0] > 1.0
    controller = PolicyController(policy)
    memory = controller.start(SENTENCES[0])
    image = np.zeros((24, 24, 3), np.uint8)

    def act(**vectors):
        observation = calvin_observation(image, image[:16, :16], np.zeros(15), **vectors)
        return controller.act([observation], [memory])[0]

    assert not np.allclose(act(force=np.array([0.0, 100, 0])), act(force=np.array([90.0, 100, 0])))
    with pytest.raises(ValueError, match="reads force; of states the observation has robot_obs"):
        act()


def test_absolute_actions_are_trained_and_executed(tmp_path):
    dataset = write_dataset(tmp_path / "data")
    run = tiny_run(tmp_path / "run", dataset, policy=tiny_policy(actions="absolute"), max_steps=2)
    policy = load_policy(train(run, console=Console(quiet=True)))
    assert len(policy.config.statistics["actions"].centre) == 6
    controller = PolicyController(policy, 3)
    image = np.zeros((24, 24, 3), np.uint8)
    actions, _ = controller.act(
        [calvin_observation(image, image[:16, :16], np.zeros(15))], [controller.start(SENTENCES[0])]
    )
    assert actions.shape == (1, 3, 7) and np.abs(actions).max() <= 1


def test_a_vector_without_statistics_is_named():
    with pytest.raises(ValueError, match=r"policy\.statistics has no 'force'"):
        small_policy(vectors=("force",))
