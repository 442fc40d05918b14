"""Action spaces: there and back exactly, for any action and any state; statistics as the data has them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.spatial.transform import Rotation

from roboflamingo.policy.actions import (
    Absolute,
    Relative,
    Statistics,
    ToolRelative,
    action_space,
    euler_to_matrix,
    matrix_to_euler,
    pose_statistics,
    vector_statistics,
    wrap,
)

COMMANDS = arrays(np.float64, (3, 7), elements=st.floats(-1, 1))
POSITION = arrays(np.float64, 3, elements=st.floats(-1, 1))
# At a pitch of a quarter turn roll and yaw are one and the same; CALVIN's tool is never near it.
ANGLES = st.tuples(st.floats(-math.pi, 3.14), st.floats(-1.4, 1.4), st.floats(-math.pi, 3.14))


def state(position, angles):
    return torch.cat([torch.tensor(position), torch.tensor(angles, dtype=torch.float64), torch.zeros(9)])


@given(COMMANDS, POSITION, ANGLES)
def test_tool_relative_actions_come_back(commands, position, angles):
    space, actions, robot = ToolRelative(), torch.tensor(commands), state(position, angles)
    values = space.encode(actions, robot)
    assert values[..., :6].abs().max() <= 1 + 1e-9, "a head could not predict it"
    torch.testing.assert_close(space.decode(values, robot), actions, atol=1e-8, rtol=0)


@given(POSITION, ANGLES)
def test_the_tools_frame_is_the_tools(position, angles):
    forward = torch.tensor([[0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0]], dtype=torch.float64)
    axis = ToolRelative().decode(forward, state(position, angles))[0, :3]
    expected = Rotation.from_euler("xyz", angles).apply([0, 0, math.sqrt(3)])
    np.testing.assert_allclose(axis, expected, atol=1e-9)


@given(ANGLES)
def test_euler_angles_are_pybullets(angles):
    matrix = euler_to_matrix(torch.tensor(angles, dtype=torch.float64))
    np.testing.assert_allclose(matrix, Rotation.from_euler("xyz", angles).as_matrix(), atol=1e-12)
    np.testing.assert_allclose(matrix_to_euler(matrix), angles, atol=1e-9)


@given(arrays(np.float64, (5, 6), elements=st.floats(-3, 3)), st.floats(-math.pi, 3.1))
def test_absolute_poses_come_back_and_fit(poses, turn):
    recorded = torch.cat([torch.tensor(poses), torch.ones(5, 1)], dim=-1)
    recorded[:, 3:6] = wrap(0.3 * recorded[:, 3:6] + turn)
    space = Absolute(pose_statistics(recorded))
    values = space.encode(recorded, torch.zeros(15))
    assert values[:, :6].abs().max() <= 1 + 1e-6
    back = space.poses(values)
    torch.testing.assert_close(back[:, :3], recorded[:, :3], atol=1e-6, rtol=0)
    assert wrap(back[:, 3:6] - recorded[:, 3:6]).abs().max() < 1e-6


def test_absolute_poses_become_the_commands_that_lead_there():
    space = Absolute(Statistics((0.0,) * 6, (1.0,) * 6))
    robot = torch.zeros(15, dtype=torch.float64)
    robot[5] = 3.13  # the shortest way to -3.12 leads over pi
    poses = torch.zeros(2, 7, dtype=torch.float64)
    poses[0, :3], poses[0, 5], poses[0, 6] = torch.tensor([0.01, 0.0, -0.5]), -3.12, -1.0
    poses[1] = poses[0]
    commands = space.decode(poses, robot)
    torch.testing.assert_close(commands[0, :3], torch.tensor([0.5, 0.0, -1.0], dtype=torch.float64))
    assert commands[0, 5].item() == pytest.approx((2 * math.pi - 6.25) / 0.05, abs=1e-6)
    assert commands[1, :6].abs().max() == 0 and (commands[:, 6] == -1).all()


def test_relative_actions_are_calvins():
    actions = torch.rand(2, 4, 7)
    assert isinstance(action_space("relative"), Relative)
    assert torch.equal(Relative().decode(Relative().encode(actions, actions), actions), actions)


def test_absolute_actions_need_statistics():
    with pytest.raises(ValueError, match="absolute actions need statistics"):
        action_space("absolute")


def test_vectors_are_normalised_but_constants_are_not():
    values = torch.tensor([[1.0, 5.0], [3.0, 5.0]])
    statistics = vector_statistics(values)
    torch.testing.assert_close(statistics.normalise(values), torch.tensor([[-1.0, 0.0], [1.0, 0.0]]))
    torch.testing.assert_close(statistics.restore(statistics.normalise(values)), values)
    with pytest.raises(ValueError, match=r"scale is 0\.0; it must be above 0"):
        Statistics((0.0,), (0.0,))
