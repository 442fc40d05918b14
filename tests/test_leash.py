"""The leash keeps the target pose of the play table near the arm, and is not felt otherwise."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from gridworld import GridWorld
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from calvin_eval.benchmark.chains import chains, initial_state
from calvin_eval.calvin import Info, calvin_observation, calvin_robot
from calvin_eval.protocol import Observation
from calvin_eval.system.errors import UserError
from calvin_eval.worlds.leash import ANGLE_PER_METRE, SCALE, TargetLeash
from calvin_eval.worlds.playtable.world import PlayTable

UP, DOWN = (np.array([0.0, 0, z, 0, 0, 0, -1]) for z in (1.0, -1.0))


@pytest.fixture()
def world() -> Iterator[PlayTable]:
    with PlayTable("D", renderer="none") as table:
        yield table


def lead(world: PlayTable) -> float:
    """How far the target is from the tool, m."""
    return float(np.linalg.norm(world.robot.target_position - world.robot.observe()[:3]))


def test_against_the_table_the_target_stays_within_reach(world: PlayTable) -> None:
    env = TargetLeash(world, reach=0.05)
    env.reset()
    for _ in range(60):
        env.step(DOWN)
        assert lead(world) < 0.055  # the arm may still give way a little within the step
    world.reset()
    for _ in range(60):
        world.step(DOWN)
    assert lead(world) > 0.5


def test_a_leashed_arm_leaves_the_table_as_soon_as_it_is_told_to(world: PlayTable) -> None:
    env = TargetLeash(world, reach=0.05)
    heights = []
    for some in (env, world):
        some.reset()
        for _ in range(60):
            some.step(DOWN)
        before = some.observe().state["robot_obs"][2]
        for _ in range(10):
            observation = some.step(UP)
        heights.append(observation.state["robot_obs"][2] - before)
    leashed, loose = heights
    assert leashed > 0.1
    assert loose < 0.01


def test_in_free_motion_nothing_changes(world: PlayTable) -> None:
    rng = np.random.default_rng(0)
    actions = np.column_stack([rng.uniform(-1, 1, (30, 6)), rng.choice([-1.0, 1.0], 30)])
    tracks = []
    for some in (TargetLeash(world, reach=0.05), world):
        some.reset(*initial_state(chains(1)[0].condition))
        tracks.append([some.step(action).state["robot_obs"] for action in actions])
    np.testing.assert_array_equal(tracks[0], tracks[1])


def test_turning_is_held_too_and_through_the_wrap_of_angles(world: PlayTable) -> None:
    env = TargetLeash(world, reach=0.05)
    env.reset()
    for _ in range(150):
        env.step(np.array([0.0, 0, 0, 0, 0, 1, 1]))
        error = world.robot.target_euler - world.robot.observe()[3:6]
        error = (error + np.pi) % (2 * np.pi) - np.pi
        assert np.linalg.norm(error) < 0.41


def test_the_gripper_command_passes_and_wrong_ones_are_refused(world: PlayTable) -> None:
    env = TargetLeash(world)
    env.reset()
    assert env.step(DOWN).state["robot_obs"][14] == -1
    with pytest.raises(ValueError, match="exactly -1"):
        env.step(np.zeros(7))


def test_a_leash_needs_length(world: PlayTable) -> None:
    with pytest.raises(ValueError, match="longer than 0 m"):
        TargetLeash(world, reach=0.0)


def test_a_leash_is_for_calvin_s_actions() -> None:
    with pytest.raises(UserError, match=r"measured robot_obs; this environment takes move and measures agent: leave"):
        TargetLeash(GridWorld())  # type: ignore[arg-type]


class Arm:
    """An environment whose arm is wherever the test says, however its target moves. Keeps what it executed."""

    scene, renderer, spec, most = "D", "none", calvin_robot(0, 0), None

    def __init__(self, poses: list[np.ndarray]) -> None:
        self._poses, self.executed = iter(poses), list[np.ndarray]()

    def reset(
        self, robot_obs: np.ndarray | None = None, scene_obs: np.ndarray | None = None, *, render: bool = True
    ) -> Observation:
        return self.observe()

    def step(self, action: np.ndarray, *, render: bool = True) -> Observation:
        self.executed.append(action)
        return self.observe()

    def observe(self) -> Observation:
        return calvin_observation(None, None, np.concatenate([next(self._poses), np.zeros(9)]))

    def info(self) -> Info:
        raise NotImplementedError

    def close(self) -> None:
        pass


def numbers(low: float, high: float, count: int) -> st.SearchStrategy[np.ndarray]:
    return st.lists(st.floats(low, high), min_size=count, max_size=count).map(np.array)


positions, turns = numbers(-0.03, 0.03, 3), numbers(-np.pi, np.pi, 3)
upright = st.tuples(
    st.floats(-np.pi, np.pi), st.sampled_from([-1.0, 1.0]), st.floats(0, 0.1), st.floats(-np.pi, np.pi)
).map(lambda parts: np.array([parts[0], parts[1] * (np.pi / 2 - parts[2]), parts[3]]))
poses = st.tuples(positions, turns | upright).map(np.concatenate)
steps = st.lists(st.tuples(numbers(-1, 1, 6), poses), min_size=1, max_size=12)


@given(first=poses, steps=steps, reach=st.sampled_from([0.02, 0.05, 0.3]))
def test_an_action_is_never_made_longer_and_stays_within_one_wherever_the_arm_is(
    first: np.ndarray, steps: list[tuple[np.ndarray, np.ndarray]], reach: float
) -> None:
    arm = Arm([first, *(pose for _, pose in steps)])
    env = TargetLeash(arm, reach)
    env.reset()
    for action, _ in steps:
        env.step(np.append(action, 1.0))
        executed = arm.executed[-1]
        assert np.abs(executed).max() <= 1.0
        for part in (slice(0, 3), slice(3, 6)):
            assert np.linalg.norm(executed[part]) <= np.linalg.norm(action[part]) * (1 + 1e-9) + 1e-12
        if not action.any():
            np.testing.assert_array_equal(executed[:6], 0.0)


@given(first=poses, actions=st.lists(numbers(-1, 1, 6), min_size=1, max_size=12), reach=st.sampled_from([0.05, 0.3]))
def test_within_reach_actions_pass_to_the_bit_and_beyond_it_the_target_does_not_go(
    first: np.ndarray, actions: list[np.ndarray], reach: float
) -> None:
    arm = Arm([first] * (len(actions) + 1))  # it is held fast, say by a hand
    env = TargetLeash(arm, reach)
    env.reset()
    lead, shortened = np.zeros(6), False
    for action in actions:
        env.step(np.append(action, -1.0))
        wanted, executed = lead + SCALE * action, arm.executed[-1][:6]
        lead = lead + SCALE * executed
        for part, length in ((slice(0, 3), reach), (slice(3, 6), reach * ANGLE_PER_METRE)):
            if np.linalg.norm(wanted[part]) <= length * (1 - 1e-9):
                np.testing.assert_array_equal(executed[part], action[part])
            else:
                shortened = True
        assert np.linalg.norm(lead[:3]) <= reach * (1 + 1e-9)
        assert arm.executed[-1][6] == -1.0
    assert shortened or np.array_equal(arm.executed, [np.append(action, -1.0) for action in actions])


def test_past_the_vertical_the_target_stays_near_and_every_entry_within_one(world: PlayTable) -> None:
    executed, step = list[np.ndarray](), world.step

    def watched(action: np.ndarray, *, render: bool = True) -> Observation:
        executed.append(action)
        return step(action, render=render)

    world.step = watched  # type: ignore[method-assign,assignment]
    env = TargetLeash(world, reach=0.05)
    env.reset()
    pitch = np.array([0, 0, 0, 0, 1.0, 0.3, 1])
    for _ in range(50):  # the pitch passes the vertical at the 33rd
        env.step(pitch)
        measured = Rotation.from_euler("xyz", world.robot.observe()[3:6])
        assert (measured.inv() * Rotation.from_euler("xyz", world.robot.target_euler)).magnitude() < 0.5
    assert np.abs(executed).max() <= 1.0  # it was 62
