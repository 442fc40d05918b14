"""From a wanted tool pose to one relative action, and the ways of getting there without knocking things over.

Every rule is a function of the present state only. `Goal` says where the tool should be heading *now*; the
funnels turn "be at the target, arriving from above" into such a goal: far to the side the goal lies high, so the
tool rises first, crosses over, and comes down inside a cone.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from calvin_eval.calvin import MAX_REL_ORN, MAX_REL_POS
from calvin_eval.demonstrations.experts.arm import followed
from calvin_eval.demonstrations.experts.clearance import hem
from calvin_eval.demonstrations.experts.state import State, wrap

OPEN, CLOSE = 1.0, -1.0
GAIN = 0.45
"""Share of the remaining way covered in one control step: as fast as the arm follows without overshoot."""
FRONT_YAW = np.pi / 2
"""Tool yaw at which the fingers open along the table's front edge (x)."""


SHOULDER = np.array([-0.34, -0.46, 0.573])
"""Centre (m) of the sphere that the wrist reaches: the robot's base and the height of its second joint."""
WRIST_REACH = 0.705
"""Radius (m) of that sphere: both arm segments stretched, less a centimetre."""
TOOL_LENGTH, WRIST_OFFSET = 0.247, 0.088
"""Tool point to flange along the hand, and flange to wrist across it (m)."""
MAX_LEAN = 0.6
OVER_BLOCKS = 0.545
"""Tool height (m) at which the hand passes over blocks on the table."""
CLEAR_OF_HANDLE = -0.08
"""Tool y (m) from which the hand passes in front of the sliding door's handle."""


@dataclass(frozen=True)
class Goal:
    """A tool pose to head for.

    Attributes:
        position: (3,) m.
        yaw: rad, in the same count as `State.yaw`.
        gripper: `OPEN` or `CLOSE`.
        lean: (2,) horizontal direction into which the fingertips point, with the sine of the angle as length;
            far targets add what the arm's reach asks for.
    """

    position: np.ndarray
    yaw: float
    gripper: float
    lean: np.ndarray = field(default_factory=lambda: np.zeros(2))


def reach_lean(position: np.ndarray) -> np.ndarray:
    """The smallest outward lean (2,) with which the arm reaches a position (3,)."""
    outward = position[:2] - SHOULDER[:2]
    radius = float(np.hypot(*outward))
    angles = np.linspace(0.0, MAX_LEAN, 25)
    wrist_radius = radius - TOOL_LENGTH * np.sin(angles) - WRIST_OFFSET * np.cos(angles)
    wrist_height = position[2] + TOOL_LENGTH * np.cos(angles) - WRIST_OFFSET * np.sin(angles) - SHOULDER[2]
    enough = np.hypot(wrist_radius, wrist_height) <= WRIST_REACH
    angle = angles[int(np.argmax(enough))] if enough.any() else MAX_LEAN
    return np.sin(angle) * outward / radius


def _with_reach(lean: np.ndarray, position: np.ndarray) -> np.ndarray:
    """The lean (2,), increased outwards where the arm would not reach the position otherwise."""
    needed = reach_lean(position)
    length = float(np.hypot(*needed))
    if length == 0.0:
        return lean
    outward = needed / length
    return lean + max(0.0, length - float(lean @ outward)) * outward


def tilt(lean: np.ndarray, yaw: float) -> tuple[float, float]:
    """Roll and pitch (rad) that make a tool of this yaw lean (2,)."""
    forward = lean @ [np.cos(yaw), np.sin(yaw)]
    sideways = lean @ [-np.sin(yaw), np.cos(yaw)]
    roll = float(np.arcsin(np.clip(sideways, -0.9, 0.9)))
    return roll, float(-np.arcsin(np.clip(forward / np.cos(roll), -0.9, 0.9)))


def action_towards(state: State, goal: Goal) -> np.ndarray:
    """The relative action (7,) that closes part of the way to the goal, clipped to [-1, 1] (CALVIN SPEC 1.4)."""
    position = GAIN * (goal.position - state.tool) / MAX_REL_POS
    roll, pitch = tilt(_with_reach(goal.lean, goal.position), state.yaw)
    turn = np.array([wrap(roll - state.roll), pitch - state.pitch, goal.yaw - state.yaw])
    rotation = GAIN * turn / MAX_REL_ORN
    # Shortening the whole vector instead of each entry keeps the direction of travel.
    position /= max(1.0, float(np.abs(position).max()))
    motion = np.concatenate([position, np.clip(rotation, -1, 1)])
    euler = np.array([state.roll + np.pi, state.pitch, state.yaw])
    return np.append(followed(state.joints, euler, motion), goal.gripper)


def damped(state: State, waypoint: np.ndarray, axes: list[int], factor: float) -> np.ndarray:
    """The waypoint with its remaining way along some axes scaled by factor (0 waits, 1 goes)."""
    result = np.array(waypoint, dtype=float)
    result[axes] = state.tool[axes] + factor * (result[axes] - state.tool[axes])
    return result


def cleared(state: State, waypoint: np.ndarray, left: float) -> np.ndarray:
    """The waypoint (3,), or back and up from what is in the hand's way.

    Args:
        state: the present state.
        waypoint: where to go; what follows of it is how far the way is free.
        left: horizontal way (m) left to the target; the last centimetres are the task's own business.
    """
    way = hem(state, waypoint[:2] - state.tool[:2])
    degree = way.degree * float(np.clip((left - 0.015) / 0.02, 0.0, 1.0))
    away = np.append(state.tool[:2] + 0.025 * way.away, max(waypoint[2], way.height))
    return waypoint + degree * (away - waypoint)


def from_above(
    state: State,
    target: np.ndarray,
    yaw: float,
    gripper: float,
    *,
    clearance: float = 0.10,
    lean: np.ndarray | None = None,
    slack: tuple[float, float] = (0.012, 0.012),
    across_fingers: bool = False,
) -> Goal:
    """Heads for the target, arriving from above inside a cone.

    The cone's foot is as wide as the task allows: who imitates this from images sees errors of a centimetre, and
    would hover for ever above a narrower one.

    Args:
        state: the present state.
        target: (3,) tool position to arrive at.
        yaw: tool yaw to arrive with.
        gripper: command on the way.
        clearance: height (m) above the target at which the tool crosses over.
        lean: tool lean (2,) to arrive with.
        slack: errors (m) along x and y with which the tool may be all the way down.
        across_fingers: slack counts along the fingers' opening direction and across it instead.
    """
    offset = target[:2] - state.tool[:2]
    error = float(np.hypot(*np.maximum(0.0, np.abs(state.in_tool_axes(offset) if across_fingers else offset) - slack)))
    height = target[2] + min(clearance, 3.0 * error + 0.36 * max(0.0, abs(yaw - state.yaw) - 0.22))
    below = height - state.tool[2]
    aside = abs(target[0] - state.tool[0])
    # All the way out by 5 cm aside, where x begins to wait for it.
    out = float(np.clip((aside - 0.03) / 0.02, 0.0, 1.0))
    y = target[1] + out * (min(target[1], CLEAR_OF_HANDLE) - target[1])
    waypoint = np.array([target[0], y, height])
    if aside > 0.05:  # the door's handle stands out between the two halves of the cabinet: go round it
        waypoint = damped(
            state, waypoint, [0], float(np.clip((CLEAR_OF_HANDLE + 0.03 - state.tool[1]) / 0.02, 0.0, 1.0))
        )
    waypoint = damped(state, waypoint, [0, 1], float(np.clip(1.0 - (below - 0.01) / 0.03, 0.0, 1.0)))
    waypoint = cleared(state, waypoint, error)
    return Goal(waypoint, yaw, gripper, np.zeros(2) if lean is None else lean)


def from_front(
    state: State,
    target: np.ndarray,
    yaw: float,
    gripper: float,
    *,
    retreat: float = 0.09,
    slack: tuple[float, float] = (0.015, 0.02),
) -> Goal:
    """Heads for a target on the cabinet's front, arriving along +y: aside first, then in.

    While x or z is off, the tool backs off to `retreat` metres in front of the target; sideways motion waits
    until it is out, and at table height until it is above the blocks. `slack` are the errors (m) along x and z with
    which the tool may be all the way in.
    """
    offset = np.abs(target - state.tool)[[0, 2]]
    error = float(np.hypot(*np.maximum(0.0, offset - slack)))
    y = target[1] - min(retreat, 3.0 * error)
    beyond = state.tool[1] - y
    left = float(np.hypot(target[0] - state.tool[0], y - state.tool[1]))
    # Far away it travels over the blocks, and comes down in front of the target.
    height = max(target[2], min(OVER_BLOCKS, target[2] + left - 0.02))
    waypoint = np.array([target[0], y, height])
    factor = float(np.clip(1.0 - (beyond - 0.01) / 0.03, 0.0, 1.0))
    waypoint = damped(state, waypoint, [0, 2], factor)
    above_blocks = float(np.clip((state.tool[2] - 0.49) / 0.03, 0.0, 1.0))
    waypoint = cleared(state, damped(state, waypoint, [0], above_blocks), left)
    return Goal(waypoint, yaw, gripper)


def home(state: State) -> Goal:
    """A resting place above the table, for states in which there is nothing to do."""
    return Goal(np.array([0.05, -0.15, 0.60]), FRONT_YAW, OPEN)
