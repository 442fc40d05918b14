"""What scripted experts know of hand and arm: what is beside the fingers, and how fast the joints can follow."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from calvin_eval.calvin import ROBOT_OBS, calvin_observation
from calvin_eval.demonstrations.experts import EXPERTS, demonstrate
from calvin_eval.demonstrations.experts.arm import JOINT_SPEED, followed, jacobian
from calvin_eval.demonstrations.experts.clearance import hem, room_to_open
from calvin_eval.demonstrations.experts.motion import cleared
from calvin_eval.demonstrations.experts.state import State
from calvin_eval.demonstrations.starts import possible
from calvin_eval.worlds.playtable.scenes import RESTING_ROBOT_OBS, scene_geometry
from calvin_eval.worlds.playtable.world import PlayTable

LEFT, RIGHT = np.array([-1.0, 0.0]), np.array([1.0, 0.0])


def observed(tool, blocks, *, width=0.0, drawer=0.0):
    """Scene D with the hand upright at a place (3,), blocks (3,) by name, all others far away."""
    robot, table = RESTING_ROBOT_OBS.copy(), np.zeros(24)
    robot[:3], robot[3:7], table[1] = tool, (np.pi, 0.0, np.pi / 2, width), drawer
    for i, name in enumerate(scene_geometry("D").block_order):
        table[6 + 6 * i : 9 + 6 * i] = blocks.get(name, (-0.3 + 0.1 * i, 0.1, 0.46))
        table[11 + 6 * i] = np.pi / 2
    return calvin_observation(None, None, robot, table)


def seen(*where, **settings):
    return State.read(observed(*where, **settings), "D")


def test_a_block_beside_the_fingers_holds_up_whoever_moves_towards_it():
    state = seen((0.2, -0.1, 0.46), {"block_red": (0.235, -0.1, 0.46)})
    assert hem(state, RIGHT).degree == 1.0 and hem(state, RIGHT).away @ LEFT > 0.99
    assert hem(state, LEFT).degree == 0.0
    assert hem(state, RIGHT).height > 0.5  # over a block of 4 cm on the table at 0.44


def test_a_block_between_the_fingers_is_left_upwards_only():
    state = seen((0.2, -0.1, 0.46), {"block_red": (0.2, -0.1, 0.46)}, width=0.08)
    for heading in (LEFT, RIGHT):
        assert hem(state, heading).degree == 1.0 and not hem(state, heading).away.any()
    above = replace(state, tool=np.array([0.2, -0.1, 0.53]))
    assert hem(above, LEFT).degree == 0.0


def test_a_hand_behind_the_drawers_handle_rises_first():
    state = seen((scene_geometry("D").drawer_x, -0.36, 0.365), {}, drawer=0.15)
    way = cleared(state, np.array([0.3, 0.0, 0.56]), left=0.3)
    np.testing.assert_allclose(way[:2], state.tool[:2])
    assert way[2] > 0.40


def test_the_last_centimetres_are_the_tasks_own_business():
    state = seen((0.2, -0.1, 0.46), {"block_red": (0.235, -0.1, 0.46)})
    waypoint = np.array([0.21, -0.1, 0.46])
    np.testing.assert_array_equal(cleared(state, waypoint, left=0.01), waypoint)


def test_closed_fingers_open_where_no_block_is_beside_them():
    block = {"block_red": (0.233, -0.1, 0.46)}
    assert not room_to_open(seen((0.2, -0.1, 0.46), block))
    assert room_to_open(seen((0.2, -0.1, 0.53), block))
    assert demonstrate("lift_red_block_table", observed((0.2, -0.1, 0.46), block), "D")[6] == -1.0


def test_a_block_beside_closed_fingers_is_not_between_them():
    state = seen((0.2, -0.1, 0.46), {"block_red": (0.232, -0.1, 0.46)})
    assert not state.straddles(state.blocks["block_red"])
    assert replace(state, width=0.08).straddles(state.blocks["block_red"])


def test_the_jacobian_is_the_simulated_arms():
    with PlayTable("D", renderer="none") as world:
        for joints in np.random.default_rng(0).uniform(-0.3, 0.3, (3, 7)) + RESTING_ROBOT_OBS[7:14]:
            columns = []
            for joint in range(7):
                tools = []
                for shift in (-1e-3, 1e-3):
                    robot = RESTING_ROBOT_OBS.copy()
                    robot[7:14] = joints
                    robot[7 + joint] += shift
                    tools.append(world.reset(robot, None, render=False).state[ROBOT_OBS][:3])
                columns.append((tools[1] - tools[0]) / 2e-3)
            np.testing.assert_allclose(jacobian(joints)[:3], np.transpose(columns), atol=1e-5)


@pytest.mark.parametrize("axis", range(6))
def test_no_more_is_asked_of_the_arm_than_its_joints_can_follow(axis):
    stretched = RESTING_ROBOT_OBS.copy()
    stretched[7:14] = (0.26, 1.11, 1.32, -0.7, -1.17, 1.69, 0.19)  # over the switch of scene D
    euler = np.array([np.pi, 0.0, np.pi / 2])
    asked = np.zeros(6)
    asked[axis] = 1.0
    got = followed(stretched[7:14], euler, asked)
    assert 0.0 < got[axis] <= 1.0
    np.testing.assert_allclose(got / got[axis], asked)
    slow = 0.01 * asked
    np.testing.assert_array_equal(followed(stretched[7:14], euler, slow), slow)


def test_a_fast_sideways_motion_of_a_stretched_arm_is_slowed():
    stretched = np.array([0.26, 1.11, 1.32, -0.7, -1.17, 1.69, 0.19])
    euler = np.array([np.pi, 0.0, np.pi / 2])
    assert followed(stretched, euler, np.array([-1.0, 0, 0, 0, 0, 0]))[0] > -0.9
    assert JOINT_SPEED == 2.0


def test_placing_starts_with_a_block_that_touches_nothing_else():
    """A block that was just turned is held, too; the oracle would not count it as placed."""
    held = {"width": 0.038, "drawer": 0.2}
    lying = seen((0.2, -0.1, 0.46), {"block_red": (0.2, -0.1, 0.46)}, **held)
    lifted = seen((0.2, -0.1, 0.50), {"block_red": (0.2, -0.1, 0.50)}, **held)
    for task in ("place_in_slider", "place_in_drawer"):
        assert not possible(task, lying) and possible(task, lifted)
    over_blue = {"block_red": (0.2, -0.1, 0.50), "block_blue": (0.2, -0.1, 0.46)}
    assert not possible("place_in_drawer", seen((0.2, -0.1, 0.50), over_blue, **held))


def test_a_block_to_be_pushed_into_the_drawer_must_not_be_touched_yet():
    block = {"block_red": (0.2, -0.1, 0.46)}
    assert not possible("push_into_drawer", seen((0.168, -0.1, 0.46), block, drawer=0.2))
    assert possible("push_into_drawer", seen((0.15, -0.1, 0.46), block, drawer=0.2))


def test_a_door_at_its_end_that_hides_the_block_is_pushed_aside():
    observation = observed((0.0, -0.1, 0.60), {"block_red": (-0.2, 0.09, 0.46)})
    observation.privileged["scene_obs"][0] = scene_geometry("D").slide_limit
    state = State.read(observation, "D")
    goal = EXPERTS["lift_red_block_slider"](state)
    np.testing.assert_allclose(goal.position, EXPERTS["move_slider_right"](state).position)
