"""Actions as heads predict them: there and back, distributions, samples, errors in units, statistics."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch.distributions import Bernoulli, Categorical, Normal

from calvin_eval.calvin import CALVIN_ACTIONS
from calvin_eval.specs import ActionPart, ActionSpec
from calvin_eval.system.errors import UserError
from roboflamingo.heads import Actions, HeadConfig
from roboflamingo.heads.actions import as_commands
from roboflamingo.policy.actions import with_action_statistics

JOINTS = ActionPart("joints", size=2, units=("rad", "m"), normalise="deviation", centre=(1.0, -2.0), scale=(0.5, 4.0))
BOUNDED = ActionPart("speed", size=1, low=0.0, high=10.0)
FREE = ActionPart("force", size=1, units=("N",))
MIXED = ActionSpec((ActionPart("mode", "categorical", choices=3), JOINTS, ActionPart("grip", "binary"), BOUNDED, FREE))
SPREAD = HeadConfig().spread


def actions_of(spec, **config):
    return Actions(spec, HeadConfig(**config))


def parameters(actions, *shape, seed=0):
    random = torch.Generator().manual_seed(seed)
    return actions.split(torch.randn(*shape, actions.width, generator=random, dtype=torch.float64))


def test_a_head_must_emit_a_number_a_logit_or_a_logit_of_each_choice():
    actions = actions_of(MIXED)
    assert actions.parameters == {"mode": 3, "joints": 2, "grip": 1, "speed": 1, "force": 1}
    assert (actions.width, actions.code_size) == (8, 8)
    calvin = actions_of(CALVIN_ACTIONS)
    assert (calvin.parameters, calvin.width, calvin.code_size) == ({"pose": 6, "gripper": 1}, 7, 7)
    binned = Actions(ActionSpec((JOINTS, MIXED.parts[2])), HeadConfig(kind="bins", bins=9), binned=True)
    assert binned.parameters == {"joints": 18, "grip": 1}


@settings(deadline=None)
@given(arrays(np.float64, (4, 6), elements=st.floats(-1, 1)))
def test_what_was_encoded_is_decoded(numbers):
    actions = actions_of(MIXED)
    recorded = torch.tensor(numbers)
    recorded[:, 0] = ((recorded[:, 0] + 1) * 1.49).floor()
    recorded[:, 3] = torch.where(recorded[:, 3] > 0, 1.0, -1.0).double()
    recorded[:, 4] = 5 * recorded[:, 4] + 5
    values = actions.values(recorded)
    decoded = torch.cat([actions.parts[name].restore(values[name]) for name in values], dim=-1)
    torch.testing.assert_close(decoded, recorded, atol=1e-12, rtol=0)
    codes = actions.codes(recorded)
    torch.testing.assert_close(actions.likeliest(actions.from_codes(codes)), recorded, atol=1e-12, rtol=0)
    commands = MIXED.as_commands(recorded.numpy())
    np.testing.assert_allclose(actions.commands(actions.from_codes(codes)), commands, atol=1e-12)


def test_calvin_s_actions_are_predicted_as_they_are():
    actions, recorded = actions_of(CALVIN_ACTIONS), torch.rand(3, 7) * 2 - 1
    values = actions.values(recorded)
    assert torch.equal(torch.cat([values["pose"], values["gripper"]], dim=-1), recorded)
    assert torch.equal(actions.codes(recorded), recorded)


def test_bounded_numbers_are_predicted_between_minus_1_and_1_and_stay_in_their_bounds():
    actions = actions_of(ActionSpec((BOUNDED,)))
    assert actions.values(torch.tensor([[0.0], [5.0], [10.0]]))["speed"].flatten().tolist() == [-1, 0, 1]
    prediction = actions.split(torch.tensor([[-50.0], [0.0], [50.0]]))
    assert actions.likeliest(prediction).flatten().tolist() == [0, 5, 10]
    assert (actions.commands({"speed": torch.tensor([[-3.0], [3.0]])}) == [[0], [10]]).all()


def test_losses_are_those_of_each_kind_and_discrete_parts_weigh_less_beside_continuous_ones():
    actions = actions_of(MIXED, discrete_weight=0.25, continuous_beta=0.5)
    prediction, random = parameters(actions, 5), torch.Generator().manual_seed(1)
    recorded = torch.rand(5, 6, generator=random, dtype=torch.float64)
    recorded[:, 0], recorded[:, 3] = torch.tensor([0, 1, 2, 2, 0]), torch.tensor([1, -1, 1, 1, -1])
    mask = torch.tensor([True, True, False, True, True])
    losses, values = actions.losses(prediction, recorded, mask), actions.values(recorded)
    functions = torch.nn.functional
    expected = {
        "mode": functions.cross_entropy(prediction["mode"][mask], recorded[mask, 0].long()),
        "joints": functions.smooth_l1_loss(prediction["joints"][mask], values["joints"][mask], beta=0.5),
        "grip": functions.binary_cross_entropy_with_logits(prediction["grip"][mask], (recorded[mask, 3:4] + 1) / 2),
        "speed": functions.smooth_l1_loss(prediction["speed"][mask], values["speed"][mask], beta=0.5),
        "force": functions.smooth_l1_loss(prediction["force"][mask], values["force"][mask], beta=0.5),
    }
    weights = {"mode": 0.25, "joints": 1, "grip": 0.25, "speed": 1, "force": 1}
    expected["loss"] = sum(weights[name] * expected[name] for name in weights)
    for name, loss in expected.items():
        torch.testing.assert_close(losses[name], loss)
    alone = actions_of(ActionSpec((MIXED.parts[0],)), discrete_weight=0.25)
    losses = alone.losses({"mode": prediction["mode"]}, recorded[:, :1], mask)
    torch.testing.assert_close(losses["loss"], losses["mode"])  # nothing beside it to weigh it against


# --- distributions --------------------------------------------------------------------------------


def test_log_probabilities_are_those_of_torch():
    actions = actions_of(MIXED)
    prediction = parameters(actions, 6)
    drawn = actions.sample(prediction, torch.Generator().manual_seed(3))
    joints = Normal(prediction["joints"] * torch.tensor([0.5, 4.0]) + torch.tensor([1.0, -2.0]),
                    SPREAD * torch.tensor([0.5, 4.0]))  # fmt: skip
    expected = (
        Categorical(logits=prediction["mode"]).log_prob(drawn[:, 0])
        + joints.log_prob(drawn[:, 1:3]).sum(-1)
        + Bernoulli(logits=prediction["grip"][:, 0]).log_prob((drawn[:, 3] + 1) / 2)
        + Normal(5 * prediction["speed"][:, 0] + 5, 5 * SPREAD).log_prob(drawn[:, 4])
        + Normal(prediction["force"][:, 0], SPREAD).log_prob(drawn[:, 5])
    )
    torch.testing.assert_close(actions.log_prob(prediction, drawn), expected, check_dtype=False)


def test_probabilities_of_discrete_actions_add_up_to_1():
    actions = actions_of(ActionSpec((ActionPart("move", "categorical", choices=7), ActionPart("grip", "binary"))))
    every = torch.cartesian_prod(torch.arange(7.0), torch.tensor([-1.0, 1.0])).double()
    prediction = {name: x.expand(14, -1) for name, x in parameters(actions, 1).items()}
    assert actions.log_prob(prediction, every).exp().sum().item() == pytest.approx(1)


@pytest.mark.parametrize("binned", [False, True])
@pytest.mark.parametrize("part", [BOUNDED, ActionPart("x", normalise="range", centre=(3.0,), scale=(2.0,))])
def test_densities_integrate_to_1_over_actions(part, binned):
    config = HeadConfig(kind="bins", bins=12) if binned else HeadConfig()
    actions = Actions(ActionSpec((part,)), config, binned=binned)
    low, high = (-20.0, 30.0)  # the normal distribution has tails beyond the bounds
    points = torch.linspace(low, high, 200_001, dtype=torch.float64)[:-1, None]
    prediction = {name: x.expand(len(points), -1) for name, x in parameters(actions, 1).items()}
    density = actions.log_prob(prediction, points).exp()
    assert density.sum().item() * (high - low) / len(points) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("binned", [False, True])
def test_samples_are_reproducible_and_distributed_as_said(binned):
    spec = ActionSpec((MIXED.parts[0], BOUNDED, MIXED.parts[2]))
    config = HeadConfig(kind="bins", bins=4) if binned else HeadConfig()
    actions = Actions(spec, config, binned=binned)
    prediction = {name: x.expand(20_000, -1) for name, x in parameters(actions, 1).items()}
    one, again, other = (actions.sample(prediction, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    assert torch.equal(one, again) and not torch.equal(one, other)
    shares = torch.stack([(one[:, 0] == choice).double().mean() for choice in range(3)])
    torch.testing.assert_close(shares, prediction["mode"][0].softmax(-1), atol=0.015, rtol=0)
    assert (one[:, 2] == 1).double().mean() == pytest.approx(float(prediction["grip"][0].sigmoid()), abs=0.015)
    if binned:
        shares = torch.histogram(one[:, 1], 4, range=(0.0, 10.0)).hist / len(one)
        torch.testing.assert_close(shares, prediction["speed"][0].softmax(-1), atol=0.015, rtol=0)
    else:
        assert one[:, 1].mean() == pytest.approx(5 + 5 * float(prediction["speed"][0]), abs=0.02)
        assert one[:, 1].std() == pytest.approx(5 * SPREAD, rel=0.03)


def test_bins_say_the_middle_of_the_likeliest_and_what_is_outside_lies_in_the_last():
    actions = Actions(ActionSpec((BOUNDED,)), HeadConfig(kind="bins", bins=5), binned=True)
    logits = torch.full((3, 5), -9.0)
    logits[torch.arange(3), torch.tensor([0, 2, 4])] = 9.0
    assert actions.likeliest({"speed": logits}).flatten().tolist() == pytest.approx([1, 5, 9])
    recorded = torch.tensor([[0.0], [4.1], [10.0]])
    assert actions.losses({"speed": logits}, recorded, torch.ones(3, dtype=torch.bool))["loss"] < 1e-6
    assert actions.log_prob({"speed": logits}, torch.tensor([[-0.1], [5.0], [10.1]])).isinf().tolist() == [1, 0, 1]


# --- commands -------------------------------------------------------------------------------------


def test_means_of_predictions_are_made_commands_by_their_likeliest_choice():
    """As the temporal ensemble does: choices 0 and 2 are no reason for 1."""
    actions = actions_of(MIXED)
    soft = [
        actions.soft(prediction).numpy()
        for prediction in (parameters(actions, 1, seed=seed) for seed in range(2))
    ]  # fmt: skip
    soft[0][0, :3], soft[1][0, :3] = (0.5, 0.1, 0.4), (0.1, 0.2, 0.7)
    soft[0][0, 5], soft[1][0, 5] = -0.9, 0.2
    (command,) = as_commands(MIXED, (soft[0] + soft[1]) / 2)
    assert command[0] == 2 and command[3] == -1 and MIXED.problem(command) is None
    assert command[1] == pytest.approx((soft[0][0, 3] + soft[1][0, 3]) / 2)


# --- errors ---------------------------------------------------------------------------------------


def test_errors_are_in_the_parts_own_units():
    calvin = actions_of(CALVIN_ACTIONS)
    recorded = torch.zeros(4, 7)
    recorded[:, 6] = torch.tensor([1.0, 1.0, -1.0, -1.0])
    prediction = {"pose": torch.full((4, 6), 0.5), "gripper": torch.tensor([[2.0], [-2.0], [-2.0], [-2.0]])}
    errors = calvin.errors(prediction, recorded)
    assert {name: x.double().mean().item() for name, x in errors.items()} == pytest.approx(
        {"pose_m": 0.01, "pose_rad": 0.025, "gripper_accuracy": 0.75}
    )
    mixed = actions_of(MIXED)
    said = mixed.values(torch.tensor([[2.0, 1.5, 0.0, 1.0, 7.0, 1.0]]))
    said["mode"], said["grip"] = torch.tensor([[0.0, 0.0, 1.0]]), torch.tensor([[-1.0]])
    errors = mixed.errors(said, torch.tensor([[2.0, 1.0, 1.0, 1.0, 5.0, -1.0]]))
    assert {name: x.double().item() for name, x in errors.items()} == pytest.approx(
        {"mode_accuracy": 1, "joints_rad": 0.5, "joints_m": 1, "grip_accuracy": 0, "speed_error": 2, "force_N": 2}
    )


# --- statistics -----------------------------------------------------------------------------------


def test_statistics_of_the_data_fill_in_what_is_to_be_normalised():
    spec = ActionSpec(
        (
            ActionPart("a", size=2, normalise="range"),
            ActionPart("b", size=2, normalise="deviation"),
            ActionPart("c", normalise="deviation", centre=(9.0,), scale=(3.0,)),
            ActionPart("d"),
            ActionPart("e", "binary"),
        )
    )
    data = torch.tensor([[0.0, 5.0, 1.0, 7.0, 0.0, 0.0, 1.0], [4.0, 5.0, 3.0, 7.0, 1.0, 1.0, -1.0]])
    a, b, c, d, _ = with_action_statistics(spec, data).parts
    assert (a.centre, a.scale) == ((2.0, 5.0), (2.0, 1.0))  # what never changes keeps its scale
    assert (b.centre, b.scale) == ((2.0, 7.0), (1.0, 1.0))
    assert (c.centre, c.scale) == ((9.0,), (3.0,)) and d == spec.parts[3]
    values = actions_of(with_action_statistics(spec, data)).values(data)
    assert values["a"].tolist() == [[-1, 0], [1, 0]] and values["b"].tolist() == [[-1, 0], [1, 0]]
    assert with_action_statistics(spec, None).parts[0].scale == (1.0, 1.0)


def test_a_part_without_its_statistics_is_refused():
    with pytest.raises(UserError, match=r"part a is normalised by the training data \(range\), and has no centre"):
        actions_of(ActionSpec((ActionPart("a", normalise="range"),)))
    with pytest.raises(UserError, match="part grip: a binary part cannot be normalised"):
        ActionPart("grip", "binary", normalise="range")


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([ActionPart("loss")], "action part 'loss': choose another name"),
        ([ActionPart("left arm")], "'left arm': choose another name, of letters, digits and _"),
        ([ActionPart("pose", units=("m",)), ActionPart("pose_m")], "two things would be called pose_m"),
    ],
)
def test_names_that_logs_use_otherwise_are_refused(parts, message):
    with pytest.raises(UserError, match=message):
        actions_of(ActionSpec(tuple(parts)))


def test_log_probabilities_outside_of_bins_are_minus_infinity_and_inside_finite():
    actions = Actions(ActionSpec((JOINTS,)), HeadConfig(kind="bins", bins=8), binned=True)
    prediction = parameters(actions, 1)
    inside = actions.log_prob(prediction, torch.tensor([[1.0, -2.0]]))
    assert math.isfinite(inside.item()) and actions.log_prob(prediction, torch.tensor([[9.0, 0.0]])).item() == -math.inf
