"""A reset forgets: the same state and the same actions give the same bits, whatever the world did before."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from calvin_eval.demonstrations.experts import demonstrate
from calvin_eval.demonstrations.starts import random_scene_obs
from calvin_eval.worlds.playtable.scenes import BUTTON_TRAVEL, SWITCH_TRAVEL
from calvin_eval.worlds.playtable.world import PlayTable

DRIFT = np.array([0.3, -0.2, -0.5, 0.1, 0.0, 0.4, -1.0])


@pytest.fixture(scope="module")
def world() -> Iterator[PlayTable]:
    with PlayTable("D", renderer="none") as table:
        yield table


def state(seed: int, button: float, switch: float, led: int) -> np.ndarray:
    scene_obs = random_scene_obs("D", np.random.default_rng(seed))
    scene_obs[2:6] = button, switch, int(switch > 0), led
    return scene_obs


STATES = [
    state(seed, button, switch, led)
    for seed, (button, switch, led) in enumerate(
        [(BUTTON_TRAVEL, 0.0, 0), (BUTTON_TRAVEL, SWITCH_TRAVEL, 1), (0.9 * BUTTON_TRAVEL, 0.0, 1), (0.0, 0.0, 0)]
    )
]


def track(world: PlayTable, scene_obs: np.ndarray) -> np.ndarray:
    """Robot and scene after a reset and each of some steps."""
    seen = [world.reset(None, scene_obs, render=False)]
    seen += [world.step(DRIFT, render=False) for _ in range(12)]
    return np.array([np.concatenate([o.state["robot_obs"], o.privileged["scene_obs"]]) for o in seen])


def press_button(world: PlayTable) -> None:
    """Ends with the finger on the button."""
    observation = world.reset(None, STATES[3], render=False)
    for _ in range(150):
        observation = world.step(demonstrate("turn_on_led", observation, "D"), render=False)
        if world.table.led:
            break
    assert world.table.led


def lift_block(world: PlayTable) -> None:
    """Ends with a block in the hand."""
    observation = world.reset(None, STATES[3], render=False)
    for _ in range(60):
        observation = world.step(demonstrate("lift_red_block_table", observation, "D"), render=False)


def reset_into_pressed(world: PlayTable) -> None:
    """Ends as some resets begin."""
    track(world, STATES[1])


@pytest.mark.parametrize("number", range(len(STATES)))
def test_whatever_came_before_a_reset_is_forgotten_to_the_bit(world: PlayTable, number: int) -> None:
    with PlayTable("D", renderer="none") as fresh:
        expected = track(fresh, STATES[number])
    for before in (press_button, lift_block, reset_into_pressed):
        before(world)
        np.testing.assert_array_equal(track(world, STATES[number]), expected)


def test_a_reset_into_a_pressed_button_toggles_its_light_at_the_first_step_as_in_a_new_world(world: PlayTable) -> None:
    press_button(world)
    lights = track(world, STATES[0])[:, 15 + 5]
    assert lights[0] == 0 and lights[1] == 1
