"""The policy: what it learns from, and what it must not learn from."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from calvin_eval.calvin import CALVIN_ACTIONS
from policies import SENTENCES, a_batch, small_config, small_policy
from roboflamingo.heads import HeadConfig, build_head
from roboflamingo.policy.inputs import AUXILIARY_SIZE, STATE_SIZES, auxiliary_targets, random_shift, state_vector
from roboflamingo.policy.pooling import Pooling


@pytest.mark.parametrize("mask", ["action_mask", "frame_mask"])
def test_padded_steps_do_not_train(mask):
    policy = small_policy()
    batch = a_batch(policy.config)
    batch[mask][0, 0] = False
    before = policy.loss(batch)
    batch["actions"][0, 0] = -batch["actions"][0, 0]
    if mask == "frame_mask":
        batch["scene_obs"][0, 0] += 5.0
    after = policy.loss(batch)
    for part in before:
        torch.testing.assert_close(before[part], after[part])
    batch["actions"][0, 1] = -batch["actions"][0, 1]
    assert policy.loss(batch)["loss"] != after["loss"]


def test_the_loss_is_smooth_l1_plus_weighted_cross_entropy_plus_weighted_auxiliary():
    policy = small_policy()
    config, batch = policy.config, a_batch(policy.config)
    losses, prediction = policy.loss(batch), policy.predict(batch)
    pose = torch.nn.functional.smooth_l1_loss(
        prediction["pose"], batch["actions"][..., :6], beta=config.head.continuous_beta
    )
    target = (batch["actions"][..., 6] + 1) / 2
    gripper = torch.nn.functional.binary_cross_entropy_with_logits(prediction["gripper"][..., 0], target)
    torch.testing.assert_close(losses["pose"], pose)
    torch.testing.assert_close(losses["gripper"], gripper)
    total = pose + config.head.discrete_weight * gripper + config.auxiliary_weight * losses["auxiliary"]
    torch.testing.assert_close(losses["loss"], total)


def test_last_step_only_leaves_earlier_frames_out():
    policy = small_policy(head=HeadConfig(hidden=32, last_step_only=True))
    batch = a_batch(policy.config)
    before = policy.loss(batch)["pose"]
    batch["actions"][:, :-1] *= -1
    torch.testing.assert_close(policy.loss(batch)["pose"], before)


def test_the_instruction_matters_and_frames_are_independent_before_the_head():
    policy = small_policy()
    batch = a_batch(policy.config)
    features = policy.features(batch)
    other = policy.features(batch | {"instruction": list(reversed(batch["instruction"]))})
    assert not torch.allclose(features, other)
    second = {key: value[:, 1:2] if torch.is_tensor(value) else value for key, value in batch.items()}
    torch.testing.assert_close(policy.features(second), features[:, 1:2], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("state", sorted(STATE_SIZES))
def test_the_state_input_is_a_switch(state):
    policy = small_policy(robot_obs=state)
    batch = a_batch(policy.config)
    before = policy.predict(batch)["pose"]
    batch["robot_obs"] = batch["robot_obs"] + 0.3
    changed = not torch.allclose(before, policy.predict(batch)["pose"])
    assert changed == (state != "none")
    assert state_vector(batch["robot_obs"], state).shape[-1] == STATE_SIZES[state]


def test_only_the_full_state_tells_the_last_gripper_command():
    one, two = torch.zeros(15), torch.zeros(15)
    two[14] = 1
    assert torch.equal(state_vector(one, "pose"), state_vector(two, "pose"))
    assert not torch.equal(state_vector(one, "full"), state_vector(two, "full"))


def test_auxiliary_targets_do_not_jump_where_angles_wrap():
    robot, scene = torch.zeros(15), torch.zeros(24)
    other_robot, other_scene = robot.clone(), scene.clone()
    robot[3], other_robot[3] = np.pi - 1e-4, -np.pi + 1e-4
    scene[11], other_scene[11] = 0.1, 0.1 + np.pi  # half a turn of a block looks the same
    one, two = auxiliary_targets(robot, scene), auxiliary_targets(other_robot, other_scene)
    assert one.shape == (AUXILIARY_SIZE,)
    torch.testing.assert_close(one, two, atol=1e-3, rtol=0)


def test_the_random_shift_is_one_for_a_window_and_another_for_the_next():
    torch.manual_seed(0)
    image = torch.arange(81, dtype=torch.uint8).view(1, 1, 9, 9, 1)
    shifted = random_shift(image.expand(16, 5, 9, 9, 1), 3)
    assert all(torch.equal(window[0], frame) for window in shifted for frame in window)
    assert len({tuple(window[0].flatten().tolist()) for window in shifted}) > 5
    middle = shifted[:, 0, 4, 4, 0].long()
    assert ((middle // 9 - 4).abs().max() <= 3) and ((middle % 9 - 4).abs().max() <= 3)


def test_evaluation_does_not_shift_images():
    policy = small_policy()
    batch = a_batch(policy.config)
    torch.testing.assert_close(policy.loss(batch)["loss"], policy.loss(batch)["loss"])


def test_frozen_parts_get_no_gradient():
    policy = small_policy()
    policy.backbone.vision_encoder.requires_grad_(False)
    policy.loss(a_batch(policy.config))["loss"].backward()
    assert all(p.grad is None for p in policy.backbone.vision_encoder.parameters())
    assert policy.backbone.perceiver.latents.grad is not None


def test_the_vocabulary_is_taken_from_sentences_once():
    config = small_config()
    assert config.with_words(["other words"]).backbone.language.words == config.backbone.language.words
    assert "drawer" in config.backbone.language.words and len(SENTENCES) == 3


def test_an_unknown_head_is_refused_by_name():
    with pytest.raises(ValueError, match="'transformer' does not exist; choose one of bins, diffusion, flow, gpt"):
        build_head(HeadConfig(kind="transformer"), CALVIN_ACTIONS, 8, 2, 1)


@pytest.mark.parametrize("kind", ["max", "mean", "attention"])
def test_pooling_looks_at_text_alone(kind):
    torch.manual_seed(0)
    pooling, hidden = Pooling(kind, 6), torch.randn(2, 5, 6)
    is_text = torch.tensor([[True] * 5, [True, True, True, False, False]])
    if kind == "attention":
        torch.nn.init.normal_(pooling.query)
    pooled = pooling(hidden, is_text)
    torch.testing.assert_close(pooled[1:], pooling(hidden[1:, :3], is_text[1:, :3]))
    expected = {"max": hidden[0].max(0).values, "mean": hidden[0].mean(0)}
    if kind in expected:
        torch.testing.assert_close(pooled[0], expected[kind])
    else:
        weights = (hidden[0] @ pooling.query / 6**0.5).softmax(0)
        torch.testing.assert_close(pooled[0], weights @ hidden[0])


@pytest.mark.parametrize("kind", ["mean", "attention"])
def test_every_pooling_trains_a_policy(kind):
    policy = small_policy(pooling=kind)
    policy.loss(a_batch(policy.config))["loss"].backward()
    gradients = [p.grad for p in policy.parameters() if p.requires_grad]
    assert sum(g is not None and bool(g.abs().sum() > 0) for g in gradients) > 0.8 * len(gradients)


def test_words_are_left_out_in_training_only_and_never_the_image():
    policy = small_policy(word_dropout=0.5)
    instructions = policy.backbone.instructions
    whole = instructions.ids(SENTENCES[0])
    torch.manual_seed(0)
    lengths = set()
    for _ in range(20):
        ids, is_text, sees = instructions.batch([SENTENCES[0]], torch.device("cpu"), 0.5)
        row = ids[0, is_text[0]].tolist()
        assert row[0] == whole[0] and row[-1] == whole[-1] and sees is None
        assert set(row) <= set(whole)
        lengths.add(len(row))
    assert min(lengths) < len(whole) - 1 and len(lengths) > 2
    assert policy.read([SENTENCES[0]]).hidden.shape[1] == len(whole)
    assert any(policy.train().read([SENTENCES[0]]).hidden.shape[1] < len(whole) for _ in range(10))
    with pytest.raises(ValueError, match=r"word_dropout is"):
        small_policy(word_dropout=1.0)
