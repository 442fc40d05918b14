"""Scripted experts for the tasks that move blocks."""

from __future__ import annotations

import numpy as np

from calvin_eval.demonstrations.experts import fixtures
from calvin_eval.demonstrations.experts import grasp as g
from calvin_eval.demonstrations.experts.grasp import TABLE_TOP
from calvin_eval.demonstrations.experts.motion import CLOSE, FRONT_YAW, Goal, from_above, home
from calvin_eval.demonstrations.experts.state import Block, State

SIDE_ROOM = 0.075
"""Room (m) that open fingers need to either side."""
HANDLE_ROOM, BEFORE_HANDLE, BEFORE_DOOR = 0.06, -0.03, -0.006
"""Room (m) that fingers need beside the door's handle; y (m) up to which they pass before the handle, and the door."""
DRAWER_FLOOR = 0.3424
LOWEST_TIPS = TABLE_TOP + 0.013
"""Height (m) of the tool under which the fingertips would have to go through the table."""
ROTATE_ROOM = 1.35
"""Wrist turn (rad) that a rotation of 60 degrees may need."""
TURNING_AREA = (np.array([-0.33, -0.15]), np.array([0.33, -0.06]))
"""Where (x, y; m) a block is turned: clear of the table's edges, and of the sliding door and its handle."""
BUTTON_NEAR, BUTTON_RADIUS, MOST_ASIDE = 0.11, 0.043, 0.012
"""Where (m from its middle) the button may be touched by a stacked block, its radius and some room, and how far off the
lower block's middle a block is put in order not to."""


def rotate(state: State, block: Block, direction: float) -> Goal:
    """Turns the block on the table; direction is +1 for left (counter-clockwise), -1 for right."""
    room = (ROTATE_ROOM, 0.0) if direction < 0 else (0.0, ROTATE_ROOM)
    if not state.held(block):
        return g.grasp(state, block, room=room, off_centre=0.010)  # held further out, it tilts
    # Servo the block's own height: a block that floats by millimetres loses the contact that the oracle asks for.
    height = state.tool[2] + (TABLE_TOP + 0.019 - block.position[2])
    if height < LOWEST_TIPS:  # the fingers stand on the table and hold the block above it: let it drop
        return g.let_go(state)
    low, high = TURNING_AREA
    place = np.append(np.clip(state.tool[:2], low, high), height)
    return Goal(place, state.yaw + 0.12 * direction, CLOSE, state.lean)


def push(state: State, block: Block, direction: float) -> Goal:
    """Pushes the block along the front edge; direction is +1 for right (+x), -1 for left."""
    reach = 0.5 * block.extent(0.0) + 0.027
    behind = direction * (block.position[0] - state.tool[0])
    aside = state.tool[1] - block.position[1]
    height = block.position[2] + 0.004
    lean = g.front_lean(block.position[1])
    low = abs(state.tool[2] - height) < 0.012
    if low and behind > 0.5 * reach and abs(aside) < 0.02:
        # A contact behind the centre line steers the block; leaning against the drift keeps it straight.
        ahead = direction * 0.032  # slower than it could: what is pushed slides on
        return Goal(np.array([state.tool[0] + ahead, block.position[1], height]), FRONT_YAW, CLOSE, lean)
    start = np.array([block.position[0] - direction * (reach + 0.025), block.position[1], height])
    return from_above(state, start, FRONT_YAW, g.idle_gripper(state), lean=lean, slack=(0.015, 0.018))


def push_into_drawer(state: State, block: Block) -> Goal:
    """Pushes the block over the front edge into the open drawer."""
    reach = 0.5 * block.extent(np.pi / 2) + 0.0105
    low_x, high_x = state.scene.drawer_interior
    half = 0.5 * block.extent(0.0) + 0.012
    goal_x = float(np.clip(block.position[0], low_x + half, high_x - half))
    height = block.position[2] + 0.004
    drift = goal_x - block.position[0]
    if abs(drift) > 0.02:  # not in front of the drawer yet: along the edge first
        return push(state, block, float(np.sign(drift)))
    behind = state.tool[1] - block.position[1]
    lean = g.front_lean(block.position[1] + reach)
    aside = state.tool[0] - block.position[0]
    if abs(state.tool[2] - height) < 0.012 and behind > 0.5 * reach and abs(aside) < 0.02:
        return Goal(np.array([block.position[0], state.tool[1] - 0.05, height]), FRONT_YAW, CLOSE, lean)
    touching = block.position[1] + reach
    start = np.array([block.position[0], min(touching + 0.02, max(touching, BEFORE_DOOR)), height])
    if start[1] > BEFORE_HANDLE and abs(start[0] - state.scene.slide_handle(state.slide)[0]) < HANDLE_ROOM:
        return fixtures.move_slider(state, _handle_way(state, start[0]))
    if touching > BEFORE_DOOR:  # no room for fingers between block and door
        return g.grasp(state, block)
    return from_above(state, start, FRONT_YAW, g.idle_gripper(state), lean=lean)


def _handle_way(state: State, x: float) -> float:
    """The direction (+1 left) in which the door's handle leaves room for the fingers at x."""
    rightmost, leftmost = (state.scene.slide_handle(s)[0] for s in (0.0, state.scene.slide_limit))
    left_has_room, right_has_room = x - leftmost > HANDLE_ROOM, rightmost - x > HANDLE_ROOM
    to_the_right = state.scene.slide_handle(state.slide)[0] >= x
    return -1.0 if right_has_room and (to_the_right or not left_has_room) else 1.0


def push_nearest_into_drawer(state: State) -> Goal:
    """Pushes the one block that lies on the table (the nearest to the drawer) into the drawer."""
    held = state.holding()
    if held is not None:
        if g.on_table(held) and held.position[1] > -0.08:  # taken from where there is no room behind it
            spot = np.array([held.position[0], -0.09, TABLE_TOP])
            return g.carry(state, held, spot, state.yaw, clearance=0.015, tolerance=0.02)
        return g.release(state, held)
    centre = np.array([np.mean(state.scene.drawer_interior), -0.18])
    candidates = [b for b in state.blocks.values() if g.on_table(b)] or list(state.blocks.values())
    return push_into_drawer(state, min(candidates, key=lambda b: float(np.hypot(*(b.position[:2] - centre)))))


def lift(state: State, block: Block) -> Goal:
    """Lifts the block from wherever it lies; a door in the way is pushed aside first."""
    if g.in_cabinet(block) and not state.held(block):
        left, right = state.scene.slide_span(state.slide)
        if left - SIDE_ROOM < block.position[0] < right + SIDE_ROOM:
            to_the_left = block.position[0] > 0.5 * (left + right)
            if 0.01 < state.slide < state.scene.slide_limit - 0.01:
                return fixtures.move_slider(state, 1.0 if to_the_left else -1.0)
            if left < block.position[0] < right:  # behind the door at its end: placed there before it came
                return fixtures.move_slider(state, 1.0 if state.slide <= 0.01 else -1.0)
    return g.lift(state, block)


def place_in_slider(state: State) -> Goal:
    """Puts the held block onto the plank, in the part that the door leaves open."""
    block = _carried(state)
    if not state.held(block):
        return _withdraw(state) if g.in_cabinet(block) else g.grasp(state, block)
    if _door_between(state):
        return fixtures.move_slider(state, _door_way(state))
    low, high = _free_part(state)
    x = _freest(low, high, [o for o in state.others(block) if g.in_cabinet(o)])
    # Off the middle, door or wall leave no room for an upright hand.
    tight = min(x - low, high - x) < g.HAND_HALF
    target = np.array([x, 0.065, TABLE_TOP + 0.005])
    return g.carry(state, block, target, FRONT_YAW, clearance=0.12, lean=g.CABINET_LEAN if tight else None)


def _freest(low: float, high: float, others: list[Block]) -> float:
    """The x between two walls that is far from other blocks and near the middle."""
    middle = 0.5 * (low + high)
    xs = np.linspace(min(low + SIDE_ROOM, middle), max(high - SIDE_ROOM, middle), 7)
    room = np.array([min([abs(x - other.position[0]) for other in others], default=1.0) for x in xs])
    return float(xs[int(np.argmax(np.minimum(room, 0.10) - 0.05 * np.abs(xs - middle)))])


def _free_part(state: State) -> tuple[float, float]:
    """X range of the cabinet's opening beside the door; the wider one."""
    low, high = state.scene.cabinet_opening
    left, right = state.scene.slide_span(state.slide)
    return (low, left) if left - low > high - right else (right, high)


def _door_between(state: State) -> bool:
    """Whether the door stands half-way, so that neither side has room."""
    low, high = _free_part(state)
    return high - low < 0.19


def _door_way(state: State) -> float:
    """The direction (+1 left) in which the door is nearer to its end."""
    return 1.0 if state.slide > 0.5 * state.scene.slide_limit else -1.0


def place_in_drawer(state: State) -> Goal:
    """Puts the held block into the open drawer."""
    block = _carried(state)
    if not state.held(block):
        if g.in_drawer(block):
            return _withdraw(state)
        return g.grasp(state, block)
    x = _freest(*state.scene.drawer_interior, [o for o in state.others(block) if g.in_drawer(o)])
    target = np.array([x, -0.06 - state.drawer, DRAWER_FLOOR + 0.005])
    return g.carry(state, block, target, FRONT_YAW, clearance=0.14, tolerance=0.03)


def stack(state: State) -> Goal:
    """Puts the held block on top of another one."""
    block = _carried(state)
    below = _support(state, block)
    if not state.held(block):
        if _rests_on(block, below):
            return _withdraw(state)
        return g.grasp(state, block)
    yaw, spot = _stacking(state, block, below)
    target = np.append(spot, below.position[2] + 0.5 * below.size[2] + 0.002)
    return g.carry(state, block, target, yaw, clearance=0.08, tolerance=0.006)


def _stacking(state: State, block: Block, below: Block) -> tuple[float, np.ndarray]:
    """The tool yaw to stack a block with, and where (2,) its middle goes: along the lower one, clear of the button."""
    turn = np.pi / 2 if below.size[0] < 0.06 and block.size[0] < 0.06 else np.pi
    yaw = state.yaw + _nearest_turn(below.yaw - block.yaw, turn)
    if not g.YAW_RANGE[0] < yaw < g.YAW_RANGE[1]:
        yaw = state.yaw
    spot, button = below.position[:2], state.scene.button[:2]
    aside = spot - button
    distance = float(np.hypot(*aside))
    if distance > BUTTON_NEAR or distance == 0.0:
        return yaw, spot
    aside = aside / distance
    across = [angle for angle in (yaw + np.pi / 2, yaw - np.pi / 2) if g.YAW_RANGE[0] < angle < g.YAW_RANGE[1]]

    def lack(angle: float) -> float:
        reach = block.extent(float(np.arctan2(aside[1], aside[0])) - (angle - state.yaw)) / 2
        return reach + BUTTON_RADIUS - distance

    yaw = min([yaw, *across], key=lambda angle: max(0.0, lack(angle) - MOST_ASIDE) + 0.001 * abs(angle - state.yaw))
    return yaw, spot + aside * np.clip(lack(yaw), 0.0, MOST_ASIDE)


def unstack(state: State) -> Goal:
    """Takes the upper block off the lower one."""
    pairs = [(a, b) for a in state.blocks.values() for b in state.others(a) if _rests_on(a, b)]
    if not pairs:
        block = state.holding()
        return g.release(state, block) if block else home(state)
    return g.lift(state, pairs[0][0])


def _carried(state: State) -> Block:
    """The block that a placing task is about: the held one, or else the nearest to the fingers."""
    return state.holding() or min(
        state.blocks.values(), key=lambda block: float(np.linalg.norm(block.position - state.tool))
    )


def _support(state: State, block: Block) -> Block:
    """The block to stack on: the nearest on the table, best not under the door's handle; else the nearest anywhere."""
    others = state.others(block)
    handle_x = state.scene.slide_handle(state.slide)[0]
    candidates = [other for other in others if g.on_table(other)] or others

    def cost(other: Block) -> float:
        under_handle = other.position[1] > -0.08 and abs(other.position[0] - handle_x) < 0.11
        return float(np.hypot(*(other.position - block.position)[:2])) + under_handle

    return min(candidates, key=cost)


def _rests_on(upper: Block, lower: Block) -> bool:
    offset = upper.position - lower.position
    return bool(abs(offset[2] - 0.04) < 0.008 and np.hypot(offset[0], offset[1]) < 0.055)


def _nearest_turn(angle: float, period: float) -> float:
    return float((angle + period / 2) % period - period / 2)


def _withdraw(state: State) -> Goal:
    """Opens the fingers and rises out of the way."""
    return Goal(g.raised(state), state.yaw, g.OPEN, state.lean)
