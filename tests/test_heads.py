"""The policy heads: what each learns, sees and leaves alone, for any kind of action."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from calvin_eval.calvin import CALVIN_ACTIONS
from calvin_eval.specs import ActionPart, ActionSpec
from calvin_eval.system.errors import UserError
from policies import head_config
from roboflamingo.heads import HEADS, Draws, HeadConfig, RegressionHead, build_head, register_head
from roboflamingo.heads.config import USED_BY

D, K, T = 10, 4, 3
SAMPLERS = ("diffusion", "flow")
LAST = torch.full((2,), T - 1)

GRID = ActionSpec((ActionPart("move", "categorical", choices=7),))
"""Of a grid world."""
ROBOT = ActionSpec(
    (
        ActionPart(
            "joints", size=7, units=("rad",) * 7, normalise="deviation", centre=(0.5,) * 7, scale=(0.3,) * 6 + (2.0,)
        ),
        ActionPart("opening", units=("m",), low=0.0, high=0.08),
    )
)
"""Eight numbers of a robot."""
SPECS = {"calvin": CALVIN_ACTIONS, "grid": GRID, "robot": ROBOT}


def a_head(kind, spec=CALVIN_ACTIONS, **changes):
    """A small head; an untrained denoiser says nothing, so its last layer gets random weights."""
    torch.manual_seed(0)
    head = build_head(head_config(kind, **{"hidden": 32, "bins": 32} | changes), spec, D, K, T)
    if kind in SAMPLERS:
        torch.nn.init.normal_(head.denoiser.output.weight, std=0.1)
    return head.eval()


def some_actions(spec, *shape, generator):
    """Actions (..., A) as they could have been recorded."""
    columns = []
    for part in spec.parts:
        numbers = 1.8 * torch.rand(*shape, part.size, generator=generator) - 0.9
        if part.kind == "binary":
            numbers = numbers.sign()
        elif part.kind == "categorical":
            numbers = ((numbers + 0.9) / 1.8 * part.choices).floor()
        elif part.centre:
            numbers = numbers * torch.tensor(part.scale) + torch.tensor(part.centre)
        elif part.low is not None:
            numbers = (part.low + part.high) / 2 + numbers * (part.high - part.low) / 2
        columns.append(numbers)
    return torch.cat(columns, dim=-1)


def a_problem(spec=CALVIN_ACTIONS, windows=2):
    """Features, actions and a mask that admits all."""
    random = torch.Generator().manual_seed(0)
    features = torch.randn(windows, T, D, generator=random)
    actions = some_actions(spec, windows, T, K, generator=random)
    return features, actions, torch.ones(windows, T, K, dtype=torch.bool)


def noise_of(head, frames=T):
    return torch.randn(2, frames, K, head.actions.code_size)


def assert_close(one, two):
    assert list(one) == list(two)
    for name in one:
        torch.testing.assert_close(one[name], two[name])


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("kind", sorted(HEADS))
def test_every_head_learns_a_batch_of_any_actions_by_heart_and_acts_it_out(kind, spec):
    head = a_head(kind, SPECS[spec], hidden=64).train()
    features, actions, mask = a_problem(SPECS[spec])
    optimizer = torch.optim.AdamW(head.parameters(), lr=4e-3, weight_decay=0.0)
    copies = 8 if kind in SAMPLERS else 1  # many noise levels a step
    repeated = [x.repeat(copies, *[1] * (x.ndim - 1)) for x in (features, actions, mask)]
    torch.manual_seed(0)
    losses = []
    for _ in range(300 if kind == "diffusion" else 200):
        optimizer.zero_grad()
        losses.append(head.loss(*repeated))
        losses[-1]["loss"].backward()
        optimizer.step()
    assert losses[-1]["loss"] < 0.5 * losses[0]["loss"]
    assert list(losses[0]) == ["loss", *(part.name for part in SPECS[spec].parts)]
    with torch.no_grad():
        prediction = head.eval().predict(features, torch.randn(2, T, K, head.actions.code_size))
    assert {name: x.shape[:3] for name, x in prediction.items()} == dict.fromkeys(head.actions.parts, (2, T, K))
    for name, error in head.actions.errors(prediction, actions).items():
        if name.endswith("accuracy"):
            assert error.all(), name
        else:
            part = head.actions.parts[name.split("_")[0]]
            assert (error / error.new_tensor(max(part._sizes))).mean() < 0.2, name
    commands = head.actions.commands(prediction)
    assert commands.shape == actions.shape and SPECS[spec].problem(commands) is None


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("kind", sorted(HEADS))
def test_no_head_sees_the_future(kind, spec):
    head, features = a_head(kind, SPECS[spec]), a_problem(SPECS[spec])[0]
    noise = noise_of(head)
    before = head.predict(features, noise)
    features[:, -1] += 1.0
    after = head.predict(features, noise)
    for name in before:
        torch.testing.assert_close(before[name][:, :-1], after[name][:, :-1])
        assert not torch.allclose(before[name][:, -1], after[name][:, -1])


@pytest.mark.parametrize("kind", sorted(set(HEADS) - {"mlp"}))
def test_the_past_is_seen(kind):
    head, features = a_head(kind), a_problem()[0]
    noise = noise_of(head, 1)
    before = head.predict(features, noise, at=LAST)
    features[:, 0] += 1.0
    assert not torch.allclose(before["gripper"], head.predict(features, noise, at=LAST)["gripper"])


@pytest.mark.parametrize("kind", sorted(HEADS))
def test_the_last_frame_alone_is_what_it_is_among_all(kind):
    head, features = a_head(kind), a_problem()[0]
    noise = noise_of(head)
    among, alone = head.predict(features, noise), head.predict(features, noise[:, -1:], at=LAST)
    assert alone["gripper"].shape == (2, 1, K, 1)
    assert head.actions.likeliest(alone).shape == (2, 1, K, 7)
    assert_close(alone, {name: parameters[:, -1:] for name, parameters in among.items()})


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("spec", ["calvin", "grid"])
@pytest.mark.parametrize("kind", sorted(HEADS))
def test_steps_outside_the_mask_and_frames_that_are_not_asked_for_do_not_train(kind, spec, last):
    head = a_head(kind, SPECS[spec], last_step_only=last)
    features, actions, mask = a_problem(SPECS[spec])
    mask[0, -1, 2:] = False

    def losses():
        torch.manual_seed(1)
        return head.loss(features, actions, mask)

    def other(values):
        return 6 - values if spec == "grid" else -values

    before = losses()
    actions[0, -1, 2:] = other(actions[0, -1, 2:])
    if last:
        actions[:, :-1] = other(actions[:, :-1])
    assert_close(losses(), before)
    actions[0, -1, :2] = other(actions[0, -1, :2])
    assert not torch.allclose(losses()["loss"], before["loss"])


@pytest.mark.parametrize("kind", SAMPLERS)
def test_sampling_is_a_function_of_its_noise(kind):
    head, features = a_head(kind), a_problem()[0]
    noise = noise_of(head)
    one, two = head.predict(features, noise), head.predict(features, noise)
    other = head.predict(features, noise_of(head))
    assert torch.equal(one["pose"], two["pose"]) and not torch.equal(one["pose"], other["pose"])


def test_perceptrons_after_the_lstm_are_one_a_part_with_the_widths_asked_for():
    head = a_head("lstm", perceptrons=(24, 12))
    shapes = {name: tuple(p.shape) for name, p in head.output.parts.named_parameters() if name.endswith("weight")}
    assert shapes == {
        "pose.0.weight": (24, 32), "pose.2.weight": (12, 24), "pose.4.weight": (K * 6, 12),
        "gripper.0.weight": (24, 32), "gripper.2.weight": (12, 24), "gripper.4.weight": (K, 12),
    }  # fmt: skip


# --- what was before actions had a specification --------------------------------------------------

BEFORE = json.loads((Path(__file__).parent / "data/heads_before.json").read_text())
"""Weights, losses and predictions of CALVIN's actions, written by the code of before."""


@pytest.mark.parametrize("name", BEFORE)
def test_calvin_s_heads_begin_learn_and_predict_as_before(name):
    wanted = BEFORE[name]
    random = torch.Generator().manual_seed(0)
    features = torch.randn(2, T, D, generator=random)
    actions = 1.8 * torch.rand(2, T, K, 7, generator=random) - 0.9
    actions[..., 6] = actions[..., 6].sign()
    mask = torch.ones(2, T, K, dtype=torch.bool)
    mask[0, -1, 2:] = False
    draws = Draws(torch.randn(2, T, K, 7, generator=random), torch.rand(2, T, generator=random))
    torch.manual_seed(0)
    head = build_head(HeadConfig(**wanted["config"]), CALVIN_ACTIONS, D, K, T)
    same = {"rtol": 1e-5, "atol": 1e-6}
    weights = torch.stack([p.detach().double().sum() for p in head.parameters()])
    torch.testing.assert_close(weights, torch.tensor(wanted["weights"], dtype=torch.float64), **same)
    if wanted["config"]["kind"] in SAMPLERS:
        torch.nn.init.normal_(head.denoiser.output.weight, std=0.1)
    for key, drawn in (("losses", ()), ("drawn", (draws,))):
        losses = {part: loss.item() for part, loss in head.loss(features, actions, mask, *drawn).items()}
        assert losses == pytest.approx(wanted[key], rel=1e-5)
    optimizer = torch.optim.AdamW(head.parameters(), lr=1e-3)
    for loss in wanted["learning"]:
        optimizer.zero_grad()
        now = head.loss(features, actions, mask)["loss"]
        now.backward()
        optimizer.step()
        assert now.item() == pytest.approx(loss, rel=1e-4)
    with torch.no_grad():
        prediction = head.eval().predict(features, draws.noise)
    torch.testing.assert_close(head.actions.likeliest(prediction)[0, -1, :, :6], torch.tensor(wanted["pose"]), **same)
    torch.testing.assert_close(prediction["gripper"][0, -1, :, 0], torch.tensor(wanted["gripper"]), **same)


# --- what can be asked for ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden": 0}, "policy.head.hidden is 0; it must be a whole number, at least 1"),
        ({"dropout": 1.0}, "policy.head.dropout is 1.0; it must be at least 0 and below 1"),
        ({"kind": "bins", "bins": 1}, "policy.head.bins is 1; it must be a whole number, at least 2"),
        ({"kind": "diffusion", "sample_steps": 200}, "sample_steps is 200, more than train_steps, which is 100"),
        ({"kind": "gpt", "hidden": 30}, "hidden 30 is no multiple of attention_heads 4"),
    ],
)
def test_sizes_that_cannot_be_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        build_head(HeadConfig(**changes), CALVIN_ACTIONS, D, K, T)


@pytest.mark.parametrize("kind", sorted(HEADS))
@pytest.mark.parametrize("name", USED_BY)
def test_a_key_that_a_kind_does_not_use_is_refused_in_python_too(kind, name):
    value = {"dropout": 0.1, "perceptrons": (8,), "train_steps": 20}.get(name, 2)
    values = {name: value} | ({"layers": 2} if name == "dropout" and kind in USED_BY["layers"] else {})
    if kind in USED_BY[name]:
        assert getattr(HeadConfig(kind=kind, **values), name) == value
    else:
        with pytest.raises(UserError, match=f"policy.head.{name} does nothing with policy.head.kind {kind}; it is of "):
            HeadConfig(kind=kind, **values)


def test_dropout_needs_layers_to_act_between():
    assert HeadConfig(layers=2, dropout=0.1).dropout == HeadConfig(kind="gpt", dropout=0.1).dropout == 0.1
    with pytest.raises(UserError, match=r"dropout acts between the layers of lstm; it needs policy\.head\.layers"):
        HeadConfig(dropout=0.1)


def test_a_head_of_another_kind_keeps_what_both_use():
    head = HeadConfig(hidden=64, layers=2, dropout=0.1, perceptrons=(8,), continuous_beta=1.0)
    assert head.as_kind("flow") == HeadConfig(kind="flow", hidden=64, layers=2, dropout=0.1)
    assert head.as_kind("mlp") == HeadConfig(kind="mlp", hidden=64, perceptrons=(8,), continuous_beta=1.0)
    assert HeadConfig(kind="gpt", dropout=0.1).as_kind("lstm") == HeadConfig()
    assert head.as_kind("someone's").perceptrons == (8,)


@pytest.mark.parametrize("kind", ["bins", "diffusion"])
def test_heads_that_need_the_range_of_a_number_say_so(kind):
    nowhere = ActionSpec((ActionPart("speed", size=2),))
    build_head(HeadConfig(kind="flow"), nowhere, D, K, T)
    with pytest.raises(UserError, match=rf"kind {kind} needs the range of numbers, and the action part speed has none"):
        build_head(HeadConfig(kind=kind), nowhere, D, K, T)


@pytest.mark.parametrize("spec", SPECS)
def test_a_head_of_another_package_gets_the_specification(spec):
    @register_head("constant")
    class Constant(RegressionHead):
        def __init__(self, config, spec, features, chunk, window):
            super().__init__(config, spec, features, chunk, window)
            self.said = torch.nn.Parameter(torch.zeros(chunk, self.actions.width))

        def forward(self, features):
            return self.actions.split(self.said.expand(*features.shape[:2], -1, -1))

    try:
        head = build_head(HeadConfig(kind="constant", perceptrons=(3,), bins=7), SPECS[spec], D, K, T)
        features, actions, mask = a_problem(SPECS[spec])
        head.loss(features, actions, mask)["loss"].backward()
        assert head.said.grad.abs().sum() > 0
        assert head.actions.commands(head.predict(features)).shape == actions.shape
    finally:
        del HEADS["constant"]
