"""The policy heads: what each learns, sees and leaves alone."""

from __future__ import annotations

import pytest
import torch

from roboflamingo.heads import HEADS, HeadConfig, build_head

D, K, T = 10, 4, 3
SAMPLERS = ("diffusion", "flow")


LAST = torch.full((2,), T - 1)


def a_head(kind, **changes):
    """A small head; an untrained denoiser says nothing, so its last layer gets random weights."""
    torch.manual_seed(0)
    head = build_head(HeadConfig(**{"kind": kind, "hidden": 32, "bins": 32} | changes), D, K, T)
    if kind in SAMPLERS:
        torch.nn.init.normal_(head.denoiser.output.weight, std=0.1)
    return head.eval()


def a_problem(windows=2):
    """Features, actions and a mask that admits all."""
    random = torch.Generator().manual_seed(0)
    features = torch.randn(windows, T, D, generator=random)
    actions = 1.8 * torch.rand(windows, T, K, 7, generator=random) - 0.9
    actions[..., 6] = actions[..., 6].sign()
    return features, actions, torch.ones(windows, T, K, dtype=torch.bool)


@pytest.mark.parametrize("kind", sorted(HEADS))
def test_every_head_learns_a_batch_by_heart_and_acts_it_out(kind):
    head = a_head(kind, hidden=96).train()
    features, actions, mask = a_problem()
    optimizer = torch.optim.AdamW(head.parameters(), lr=3e-3, weight_decay=0.0)
    copies = 32 if kind in SAMPLERS else 1  # many noise levels a step
    repeated = [x.repeat(copies, *[1] * (x.ndim - 1)) for x in (features, actions, mask)]
    for _ in range(400):
        optimizer.zero_grad()
        head.loss(*repeated)["loss"].backward()
        optimizer.step()
    with torch.no_grad():
        pose, gripper = head.eval().predict(features)
    assert (pose - actions[..., :6]).abs().mean() < 0.06
    assert ((gripper > 0) == (actions[..., 6] > 0)).all()


@pytest.mark.parametrize("kind", sorted(HEADS))
def test_no_head_sees_the_future(kind):
    head, features, noise = a_head(kind), a_problem()[0], torch.randn(2, T, K, 7)
    before = head.predict(features, noise)
    features[:, -1] += 1.0
    after = head.predict(features, noise)
    torch.testing.assert_close(before.pose[:, :-1], after.pose[:, :-1])
    torch.testing.assert_close(before.gripper_logits[:, :-1], after.gripper_logits[:, :-1])
    assert not torch.allclose(before.gripper_logits[:, -1], after.gripper_logits[:, -1])


@pytest.mark.parametrize("kind", sorted(set(HEADS) - {"mlp"}))
def test_the_past_is_seen(kind):
    head, features, noise = a_head(kind), a_problem()[0], torch.randn(2, T, K, 7)
    before = head.predict(features, noise[:, -1:], at=LAST)
    features[:, 0] += 1.0
    assert not torch.allclose(before.gripper_logits, head.predict(features, noise[:, -1:], at=LAST).gripper_logits)


@pytest.mark.parametrize("kind", sorted(HEADS))
def test_the_last_frame_alone_is_what_it_is_among_all(kind):
    head, features, noise = a_head(kind), a_problem()[0], torch.randn(2, T, K, 7)
    among, alone = head.predict(features, noise), head.predict(features, noise[:, -1:], at=LAST)
    assert alone.pose.shape == (2, 1, K, 6) and alone.gripper_logits.shape == (2, 1, K)
    torch.testing.assert_close(alone.pose, among.pose[:, -1:])
    torch.testing.assert_close(alone.gripper_logits, among.gripper_logits[:, -1:])


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("kind", sorted(HEADS))
def test_steps_outside_the_mask_and_frames_that_are_not_asked_for_do_not_train(kind, last):
    head = a_head(kind, last_step_only=last)
    features, actions, mask = a_problem()
    mask[0, -1, 2:] = False

    def losses():
        torch.manual_seed(1)
        return head.loss(features, actions, mask)

    before = losses()
    actions[0, -1, 2:] *= -1
    if last:
        actions[:, :-1] *= -1
    for part, value in losses().items():
        torch.testing.assert_close(value, before[part])
    actions[0, -1, :2] *= -1
    assert not torch.allclose(losses()["loss"], before["loss"])


@pytest.mark.parametrize("kind", SAMPLERS)
def test_sampling_is_a_function_of_its_noise(kind):
    head, features, noise = a_head(kind), a_problem()[0], torch.randn(2, T, K, 7)
    one, two = head.predict(features, noise), head.predict(features, noise)
    other = head.predict(features, torch.randn(2, T, K, 7))
    assert torch.equal(one.pose, two.pose) and not torch.equal(one.pose, other.pose)


def test_perceptrons_after_the_lstm_are_two_with_the_widths_asked_for():
    head = a_head("lstm", perceptrons=(24, 12))
    shapes = {name: tuple(p.shape) for name, p in head.output.named_parameters() if name.endswith("weight")}
    assert shapes == {
        "pose.0.weight": (24, 32), "pose.2.weight": (12, 24), "pose.4.weight": (K * 6, 12),
        "gripper.0.weight": (24, 32), "gripper.2.weight": (12, 24), "gripper.4.weight": (K, 12),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden": 0}, "policy.head.hidden is 0; it must be a whole number, at least 1"),
        ({"dropout": 1.0}, "policy.head.dropout is 1.0; it must be at least 0 and below 1"),
        ({"bins": 1}, "policy.head.bins is 1; it must be a whole number, at least 2"),
        ({"kind": "diffusion", "sample_steps": 200}, "sample_steps is 200, more than train_steps, which is 100"),
        ({"kind": "gpt", "hidden": 30}, "hidden 30 is no multiple of attention_heads 4"),
    ],
)
def test_sizes_that_cannot_be_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        a_head(**{"kind": "lstm"} | changes)
