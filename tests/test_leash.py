"""The leash keeps the target pose of the play table near the arm, and is not felt otherwise."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from calvin_eval.chains import chains, initial_state
from calvin_eval.leash import TargetLeash
from calvin_eval.world.playtable import PlayTable

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
        before = some.observe().robot_obs[2]
        for _ in range(10):
            observation = some.step(UP)
        heights.append(observation.robot_obs[2] - before)
    leashed, loose = heights
    assert leashed > 0.1
    assert loose < 0.01


def test_in_free_motion_nothing_changes(world: PlayTable) -> None:
    rng = np.random.default_rng(0)
    actions = np.column_stack([rng.uniform(-1, 1, (30, 6)), rng.choice([-1.0, 1.0], 30)])
    tracks = []
    for some in (TargetLeash(world, reach=0.05), world):
        some.reset(*initial_state(chains(1)[0].condition))
        tracks.append([some.step(action).robot_obs for action in actions])
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
    assert env.step(DOWN).robot_obs[14] == -1
    with pytest.raises(ValueError, match="exactly -1"):
        env.step(np.zeros(7))


def test_a_leash_needs_length(world: PlayTable) -> None:
    with pytest.raises(ValueError, match="longer than 0 m"):
        TargetLeash(world, reach=0.0)
