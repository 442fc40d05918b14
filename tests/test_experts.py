"""The scripted experts: all tasks in all scenes, from any state, without memory."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from calvin_eval.benchmark.instructions import sentences
from calvin_eval.benchmark.tasks import TASKS
from calvin_eval.calvin import SCENES, calvin_observation
from calvin_eval.demonstrations.check import demonstrate_once
from calvin_eval.demonstrations.episodes import (
    Disturbance,
    EpisodeSettings,
    Noise,
    demonstrate_episode,
    demonstrate_task,
)
from calvin_eval.demonstrations.experts import EXPERTS, Expert, demonstrate
from calvin_eval.demonstrations.experts.motion import SHOULDER, WRIST_REACH, reach_lean, tilt
from calvin_eval.demonstrations.experts.state import State
from calvin_eval.demonstrations.starts import possible, random_scene_obs, start_for
from calvin_eval.worlds.leash import TargetLeash
from calvin_eval.worlds.playtable.scenes import RESTING_ROBOT_OBS, scene_geometry
from calvin_eval.worlds.playtable.world import PlayTable


@pytest.fixture(scope="module")
def worlds():
    tables = {scene: TargetLeash(PlayTable(scene, renderer="none")) for scene in SCENES}
    yield tables
    for table in tables.values():
        table.close()


def resting(scene_obs):
    return calvin_observation(None, None, RESTING_ROBOT_OBS, scene_obs)


def test_every_task_has_a_demonstrator():
    assert set(EXPERTS) == set(TASKS)


@pytest.mark.parametrize("scene", SCENES)
def test_demonstrators_solve_their_tasks(worlds, scene):
    """A sample of the table that `roboflamingo collect --check` prints."""
    solved = {
        task: [demonstrate_once(worlds[scene], task, np.random.default_rng([7, i, n])) for i in range(2)]
        for n, task in enumerate(TASKS)
    }
    rate = np.mean(list(solved.values()))
    assert rate >= 0.93, {task: tries for task, tries in solved.items() if not all(tries)}


def test_the_label_depends_on_the_present_state_alone(worlds):
    env = worlds["D"]
    scene_obs, _ = start_for("lift_red_block_table", "D", np.random.default_rng(0))
    observation = env.reset(None, scene_obs, render=False)
    for _ in range(20):
        action = demonstrate("lift_red_block_table", observation, "D")
        np.testing.assert_array_equal(action, demonstrate("lift_red_block_table", observation, "D"))
        observation = env.step(action, render=False)


def test_a_demonstrator_recovers_from_where_noise_took_it(worlds):
    env, rng = worlds["D"], np.random.default_rng(2)
    scene_obs, _ = start_for("open_drawer", "D", rng)
    observation = env.reset(None, scene_obs, render=False)
    for action in rng.uniform(-1, 1, (25, 6)):
        observation = env.step(np.append(action, rng.choice([-1.0, 1.0])), render=False)
    segment = demonstrate_task(env, observation, "open_drawer", "", EpisodeSettings(render=False, max_steps=200), rng)
    assert segment.solved


def test_a_turned_block_that_floats_on_standing_fingers_is_dropped():
    """Fingertips on the table cannot press the block down, and the oracle asks for its contact."""
    scene_obs = np.zeros(24)
    for i, name in enumerate(scene_geometry("D").block_order):
        scene_obs[6 + 6 * i : 9 + 6 * i] = (0.2 - 0.15 * i, -0.1, 0.4596 + 0.003 * (name == "block_red"))
    robot_obs = RESTING_ROBOT_OBS.copy()
    red = 6 + 6 * scene_geometry("D").block_order.index("block_red")
    robot_obs[:3] = (*scene_obs[red : red + 2], 0.455)
    robot_obs[3:7] = (np.pi, 0.0, np.pi / 2, 0.04)
    scene_obs[red + 5] = np.pi / 2
    floating = calvin_observation(None, None, robot_obs, scene_obs.copy())
    scene_obs[red + 2] = 0.4596
    lying = calvin_observation(None, None, robot_obs, scene_obs)
    assert demonstrate("rotate_red_block_left", floating, "D")[6] == 1.0
    assert demonstrate("rotate_red_block_left", lying, "D")[6] == -1.0


def test_labels_are_actions_and_stay_clean_under_noise(worlds):
    rng = np.random.default_rng(4)
    settings = EpisodeSettings(render=False, max_steps=120, noise=Noise(white=(0.35,), burst_rate=0.04))
    scene_obs, _ = start_for("close_drawer", "D", rng)
    observation = worlds["D"].reset(None, scene_obs, render=False)
    segment = demonstrate_task(worlds["D"], observation, "close_drawer", "", settings, rng)
    for seen, label in zip(segment.observations, segment.labels, strict=False):
        np.testing.assert_array_equal(label, demonstrate("close_drawer", seen, "D"))
        assert np.abs(label[:6]).max() <= 1 and label[6] in (-1.0, 1.0)


def test_noise_is_seeded_and_flips_the_gripper_rarely():
    clean = np.array([0.5, 0, 0, 0, 0, 0, 1.0])
    runs = []
    for _ in range(2):
        disturb = Disturbance(Noise(), np.random.default_rng(1))
        runs.append(np.array([disturb(clean) for _ in range(2000)]))
    np.testing.assert_array_equal(runs[0], runs[1])
    assert 0 < (runs[0][:, 6] < 0).mean() < 0.02
    assert np.abs(runs[0][:, :6]).max() <= 1


def test_an_episode_does_tasks_in_a_row_without_reset():
    with PlayTable("D", renderer="none") as env:
        settings = EpisodeSettings(tasks=3, render=False, noise=Noise((0.0,), 0.0, (3, 8), 0.0))
        segments = demonstrate_episode(env, "place_in_drawer", settings, np.random.default_rng(5))
    assert [segment.solved for segment in segments[:2]] == [True, True]
    assert segments[1].task == "place_in_drawer" and segments[0].task.startswith("lift")
    for before, after in pairwise(segments):
        assert before.observations[-1] is after.observations[0]
        assert after.instruction in sentences(after.task, "training")


@pytest.mark.parametrize("task", list(TASKS))
def test_starts_make_their_task_possible(task):
    for seed in range(3):
        for scene in SCENES:
            scene_obs, before = start_for(task, scene, np.random.default_rng(seed))
            first = before[0] if before else task
            assert possible(first, State.read(resting(scene_obs), scene))


def test_random_starts_are_seeded_and_keep_blocks_apart():
    one, two = (random_scene_obs("C", np.random.default_rng(9)) for _ in range(2))
    np.testing.assert_array_equal(one, two)
    centres = one[6:].reshape(3, 6)[:, :2]
    assert min(np.linalg.norm(centres[i] - centres[j]) for i in range(3) for j in range(i)) > 0.1


def test_the_expert_is_a_policy_that_follows_sentences(worlds):
    expert = Expert("D")
    memory = expert.start(sentences("open_drawer", "enriched")[0])
    observation = worlds["D"].reset(None, random_scene_obs("D", np.random.default_rng(0)), render=False)
    actions, memories = expert.act([observation, observation], [memory, memory])
    assert actions.shape == (2, 1, 7) and list(memories) == [memory, memory]
    with pytest.raises(KeyError, match="no task has the sentence"):
        expert.start("make me a coffee")


def test_demonstrators_say_when_the_state_is_not_given():
    blind = calvin_observation(None, None, RESTING_ROBOT_OBS, None)
    with pytest.raises(ValueError, match="scene_obs"):
        demonstrate("open_drawer", blind, "D")


def test_near_targets_need_no_lean_and_far_ones_lean_outwards():
    near, far = SHOULDER[:2] + [0.4, 0.2], SHOULDER[:2] + [0.72, 0.40]
    assert np.allclose(reach_lean(np.array([*near, 0.46])), 0)
    lean = reach_lean(np.array([*far, 0.46]))
    assert lean @ [0.72, 0.40] > 0 and np.hypot(*lean) < 0.6 and WRIST_REACH < 0.72


def test_tilt_is_the_inverse_of_what_the_state_reports():
    for yaw in (0.3, 1.57, 2.9):
        lean = np.array([0.2, -0.25])
        roll, pitch = tilt(lean, yaw)
        robot = RESTING_ROBOT_OBS.copy()
        robot[3:6] = np.pi + roll, pitch, yaw
        state = State.read(calvin_observation(None, None, robot, np.zeros(24)), "D")
        np.testing.assert_allclose(state.lean, lean, atol=1e-6)
