"""Scripted experts for drawer, sliding door, switch and button."""

from __future__ import annotations

import numpy as np

from calvin_eval.demonstrations.experts.grasp import idle_gripper
from calvin_eval.demonstrations.experts.motion import CLOSE, FRONT_YAW, Goal, from_above, from_front
from calvin_eval.demonstrations.experts.state import State

OVER_BUTTON = 0.2
"""Clearance (m) over the low drawer handle that takes closed fingers over button and blocks."""
AHEAD = 0.05
"""How far (m) ahead of the tool a waypoint lies while it pushes against something."""


def move_slider(state: State, direction: float) -> Goal:
    """Pushes the door by its handle; direction is +1 for left (-x, joint grows), -1 for right.

    A held block stays held, for tasks that find the door in their way.
    """
    handle = state.scene.slide_handle(state.slide)
    holding = state.holding() is not None
    reach = 0.021 + (0.047 if holding else 0.027)
    gripper = CLOSE if holding else idle_gripper(state)
    behind = direction * (state.tool[0] - handle[0])
    target = np.array([handle[0] + direction * (reach + 0.025), 0.025, 0.56])
    if 0.3 * reach < behind < reach + 0.06 and abs(state.tool[2] - 0.56) < 0.03 and -0.005 < state.tool[1] < 0.06:
        return Goal(np.array([state.tool[0] - direction * AHEAD, 0.025, 0.56]), FRONT_YAW, CLOSE)
    return from_front(state, target, FRONT_YAW, gripper)


def open_drawer(state: State) -> Goal:
    """Hooks the closed fingers behind the handle bar from above and pulls."""
    bar = state.scene.drawer_bar(state.drawer)
    gap = np.array([bar[0], bar[1] + 0.037, 0.365])
    inside = abs(state.tool[0] - gap[0]) < 0.06 and bar[1] < state.tool[1] < bar[1] + 0.06 and state.tool[2] < 0.385
    if inside:
        return Goal(np.array([gap[0], state.tool[1] - AHEAD, 0.362]), FRONT_YAW, CLOSE)
    return from_above(state, gap, FRONT_YAW, idle_gripper(state), clearance=OVER_BUTTON, slack=(0.04, 0.012))


def close_drawer(state: State) -> Goal:
    """Pushes the handle bar in from the front."""
    bar = state.scene.drawer_bar(state.drawer)
    start = np.array([bar[0], bar[1] - 0.012 - 0.0105 - 0.025, 0.365])
    before = bar[1] - state.tool[1]
    if abs(state.tool[0] - bar[0]) < 0.06 and before > 0.01 and state.tool[2] < 0.385:
        return Goal(np.array([bar[0], state.tool[1] + AHEAD, 0.362]), FRONT_YAW, CLOSE)
    return from_above(state, start, FRONT_YAW, idle_gripper(state), clearance=OVER_BUTTON, slack=(0.04, 0.018))


def press_button(state: State) -> Goal:
    """Presses the button once: down to the click, up if it is already down."""
    x, y = state.scene.button[:2]
    if state.button > 0.0105:
        return Goal(np.array([x, y, 0.55]), FRONT_YAW, CLOSE)
    return from_above(state, np.array([x, y, 0.448]), FRONT_YAW, idle_gripper(state), slack=(0.015, 0.015))


def switch_up(state: State) -> Goal:
    """Pushes the lever up its slope from below."""
    x, y, z = state.scene.switch_bar(state.switch)
    below = np.array([x, y - 0.02, z - 0.022])
    near = abs(state.tool[0] - x) < 0.05 and abs(state.tool[1] - below[1]) < 0.03 and state.tool[2] < z + 0.02
    if near and state.tool[1] > y - 0.05:
        return Goal(state.tool + np.array([0.5 * (x - state.tool[0]), 0.5 * AHEAD, 0.87 * AHEAD]), FRONT_YAW, CLOSE)
    return from_front(state, below, FRONT_YAW, idle_gripper(state), retreat=0.05, slack=(0.03, 0.015))


def switch_down(state: State) -> Goal:
    """Pushes the lever down its slope from above."""
    x, y, z = state.scene.switch_bar(state.switch)
    above = np.array([x, y, z + 0.05])
    over = abs(state.tool[0] - x) < 0.045 and abs(state.tool[1] - y) < 0.02
    if over and state.tool[2] > z + 0.01:
        return Goal(np.array([x, y, state.tool[2] - AHEAD]), FRONT_YAW, CLOSE)
    return from_above(state, above, FRONT_YAW, idle_gripper(state), clearance=0.05, slack=(0.03, 0.015))
