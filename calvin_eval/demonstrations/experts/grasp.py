"""Grasping, carrying and putting down blocks."""

from __future__ import annotations

import numpy as np

from calvin_eval.demonstrations.experts.clearance import room_to_open
from calvin_eval.demonstrations.experts.motion import CLEAR_OF_HANDLE, CLOSE, FRONT_YAW, OPEN, Goal, from_above
from calvin_eval.demonstrations.experts.state import Block, State

TABLE_TOP = 0.44
YAW_SLACK = 0.25
"""Yaw error (rad) with which the fingers still close: they turn the block into line."""
YAW_RANGE = (-0.6, 3.8)
"""Tool yaws (rad) that the wrist reaches over the whole table."""
HAND_HALF = 0.105
"""Room (m) that the hand needs to either side of the fingers."""
GRASP_SLACK = 0.012
"""How far (m) off its centre a block can still be taken."""
PASSING = 0.012
"""Error (m) along the fingers' opening with which open fingers pass a block on both sides."""
HIGHEST = 0.66
"""Height (m) to which the tool rises at most; higher up the arm no longer follows and its target runs away."""
BUTTON_ROOM = 0.047
"""How near (m) to the button's centre a finger must not come down: its collar and half a finger."""
CABINET_LEAN = np.array([0.0, 0.56])
"""Lean that keeps the hand in front of the cabinet's lintel, sides and door."""


def in_cabinet(block: Block) -> bool:
    """Whether the block lies on the plank behind the sliding door."""
    return bool(block.position[1] > 0.03 and block.position[2] < 0.56)


def in_drawer(block: Block) -> bool:
    """Whether the block lies in the drawer."""
    return bool(block.position[2] < 0.42)


def on_table(block: Block) -> bool:
    """Whether the block lies on the table top in front of the cabinet."""
    return bool(block.position[1] < 0.03 and 0.45 < block.position[2] < 0.475)


def grasp_yaw(state: State, block: Block, room: tuple[float, float] = (0.0, 0.0)) -> float:
    """The tool yaw (rad) to grasp the block with.

    Fingers close over a narrow side, so every half turn is as good, and for a cube every quarter turn. Among
    those the wrist reaches, with `room` left to turn down and up, it is the one nearest to the hand's own yaw;
    inside the cabinet the one nearest to `FRONT_YAW`, where the hand fits.
    """
    long = block.size[0] > 0.06
    step = np.pi if long else np.pi / 2
    base = block.yaw % step
    candidates = base + step * np.arange(-3, 4)
    low, high = YAW_RANGE[0] + room[0], YAW_RANGE[1] - room[1]
    fitting = candidates[(candidates >= low) & (candidates <= high)]
    if not len(fitting):
        fitting = np.clip(candidates, low, high)
    preferred = FRONT_YAW if in_cabinet(block) or in_drawer(block) else 0.5 * (FRONT_YAW + state.yaw)
    # A middle block may be taken over either side, but the narrow one leaves more room for errors.
    cost = np.abs(fitting - preferred)
    if block.size[0] > 0.05 and not long:
        cost = cost + 0.5 * (np.abs(np.sin(fitting - block.yaw)) > 0.5)
    cost = cost + np.array([3.0 * _fingers_blocked(state, block, yaw) for yaw in fitting])
    yaw = float(fitting[int(np.argmin(cost))])
    if in_cabinet(block):
        yaw = float(np.clip(yaw, FRONT_YAW - 0.3, FRONT_YAW + 0.3))
    return yaw


def _fingers_blocked(state: State, block: Block, yaw: float) -> int:
    """How many of the two open fingers would come down on another block or the button."""
    opening = np.array([np.sin(yaw), -np.cos(yaw)])
    count = 0
    for side in (-0.053, 0.053):
        finger = block.position[:2] + side * opening
        for other in state.others(block):
            inside = other.axes[:2, :2].T @ (finger - other.position[:2])
            near = np.all(np.abs(inside) < 0.5 * other.size[:2] + 0.014)
            count += int(near and abs(other.position[2] - block.position[2]) < 0.03)
        count += int(on_table(block) and np.hypot(*(finger - state.scene.button[:2])) < BUTTON_ROOM)
    return count


def front_lean(y: float) -> np.ndarray:
    """The lean (2,) that keeps the hand clear of handle and switch over a target this close to the cabinet."""
    return np.array([0.0, 0.4 * float(np.clip((y + 0.08) / 0.04, 0.0, 1.0))])


def along_heading(lean: np.ndarray, yaw: float) -> np.ndarray:
    """The part of a lean that leaves the fingers' opening direction level."""
    heading = np.array([np.cos(yaw), np.sin(yaw)])
    return (lean @ heading) * heading


def let_go(state: State) -> Goal:
    """Opens the fingers; rising a little, since tips that press on something do not slide open."""
    return Goal(state.tool + np.array([0.0, 0.0, 0.02]), state.yaw, OPEN, state.lean)


def raised(state: State, highest: float = HIGHEST) -> np.ndarray:
    """A place (3,) right above the tool, at most at a height where the arm still reaches it."""
    return np.append(state.tool[:2], min(state.tool[2] + 0.06, highest))


def grasp(state: State, block: Block, *, room: tuple[float, float] = (0.0, 0.0), off_centre: float = 0.015) -> Goal:
    """Heads for the block with open fingers and closes them around it, at most `off_centre` metres off its middle."""
    yaw = grasp_yaw(state, block, room)
    lean = CABINET_LEAN if in_cabinet(block) else along_heading(front_lean(block.position[1]), yaw)
    target = block.position + np.array([0.0, 0.0, 0.002])
    if in_cabinet(block):
        target[:2] += _away_from_the_frame(state, block)
    offset = target - state.tool
    deep = -0.016 < offset[2] < 0.010
    along, across = state.in_tool_axes(offset[:2])  # closing fingers centre the block along their own direction
    there = deep and abs(along) < 0.018 and abs(across) < off_centre and abs(yaw - state.yaw) < YAW_SLACK
    if there or (deep and state.straddles(block) and state.width < 0.07):
        return Goal(target, yaw, CLOSE, lean)
    gripper = OPEN if room_to_open(state) else CLOSE
    return from_above(state, target, yaw, gripper, lean=lean, slack=(PASSING, off_centre + 0.003), across_fingers=True)


def _away_from_the_frame(state: State, block: Block) -> np.ndarray:
    """How far (2,) from the block's centre to close around it, so that the hand passes door and cabinet sides."""
    x = block.position[0]
    edges = (*state.scene.cabinet_opening, *state.scene.slide_span(state.slide))
    gaps = [x - edge for edge in edges if abs(x - edge) < HAND_HALF]
    aside = sum(np.sign(gap) * min(GRASP_SLACK, HAND_HALF - abs(gap)) for gap in gaps)
    return np.array([aside, -GRASP_SLACK])


def lift(state: State, block: Block, *, room: tuple[float, float] = (0.0, 0.0)) -> Goal:
    """Grasps the block and raises it."""
    if state.held(block):
        above = raised(state)
        if not in_cabinet(block) and above[1] > CLEAR_OF_HANDLE:  # the oracle wants nothing touched, as the door
            above[1] = max(CLEAR_OF_HANDLE, above[1] - 0.03)
        return Goal(above, state.yaw, CLOSE, state.lean)
    return grasp(state, block, room=room)


def carry(
    state: State,
    block: Block,
    target: np.ndarray,
    yaw: float,
    *,
    clearance: float,
    tolerance: float = 0.02,
    lean: np.ndarray | None = None,
) -> Goal:
    """Moves the held block above the target and lets go of it there.

    Args:
        state: the present state.
        block: the held block.
        target: (3,) where the middle of its underside goes.
        yaw: tool yaw to arrive with.
        clearance: height (m) at which it crosses over.
        tolerance: horizontal error (m) at which it may go.
        lean: tool lean to arrive with; None for the one that levels the block.
    """
    error = target + [0.0, 0.0, block.half_height] - block.position
    if np.hypot(error[0], error[1]) < tolerance and abs(error[2]) < max(0.008, 0.6 * tolerance):
        return let_go(state)
    cone = max(0.012, 0.8 * tolerance)
    lean = level_lean(state, block) if lean is None else lean
    return from_above(state, state.tool + error, yaw, CLOSE, clearance=clearance, lean=lean, slack=(cone, cone))


def level_lean(state: State, block: Block) -> np.ndarray:
    """The lean (2,) that levels the held block."""
    level = state.lean + block.up
    return level * min(1.0, 0.6 / max(1e-9, float(np.hypot(*level))))


def free_spot(state: State, block: Block) -> np.ndarray:
    """The nearest place (3,) on the table top where the block can be put down next to the others."""
    low, high = state.scene.surfaces["table"]
    xs, ys = np.linspace(low[0], high[0], 15), np.linspace(low[1], high[1], 4)
    spots = np.array([(x, y) for x in xs for y in ys])
    distance = np.hypot(*(spots - block.position[:2]).T)
    for other in state.others(block):
        distance = distance + 10.0 * (np.hypot(*(spots - other.position[:2]).T) < 0.10)
    x, y = spots[int(np.argmin(distance))]
    return np.array([x, y, TABLE_TOP])


def above_another(state: State, block: Block) -> bool:
    """Whether a held block rests on another one, or nearly does."""
    return any(
        np.hypot(*(other.position - block.position)[:2]) < 0.06
        and 0.0 < block.position[2] - other.position[2] < block.half_height + other.half_height + 0.004
        for other in state.others(block)
    )


def release(state: State, block: Block) -> Goal:
    """Puts down a block that the present task does not want held."""
    alone = all(np.hypot(*(o.position - block.position)[:2]) > 0.075 for o in state.others(block))
    resting = block.position[2] < TABLE_TOP + 0.024 or in_drawer(block)
    if resting and (alone or in_drawer(block)):
        return let_go(state)
    spot = np.append(block.position[:2], TABLE_TOP) if alone and on_table_area(block) else free_spot(state, block)
    return carry(state, block, spot, state.yaw, clearance=0.08)


def on_table_area(block: Block) -> bool:
    """Whether the block is over the table top in front of the cabinet."""
    return bool(-0.16 < block.position[1] < 0.0 and abs(block.position[0]) < 0.40)


def idle_gripper(state: State) -> float:
    """The command for a task done with closed fingers: they stay open while a block is between them."""
    near = any(
        np.hypot(*(b.position - state.tool)[:2]) < 0.07 and abs(b.position[2] - state.tool[2]) < 0.045
        for b in state.blocks.values()
    )
    return OPEN if near and state.width > 0.01 else CLOSE
