"""What the hand would knock over where it is: blocks beside it, the drawer and its handle.

A task begins where the last one ended, often with the fingers around a block, against it, or behind the drawer's
handle. Before the hand crosses over to somewhere else it must come away from there: back, and up.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from calvin_eval.demonstrations.experts.state import Block, State

TIP_BELOW_TOOL = 0.0155
"""Height (m) of the tool over the fingertips' ends."""
TIP_THICKNESS, TIP_BREADTH = 0.0115, 0.0105
"""Of a finger: outwards from its inner face, and half of it across (m)."""
TOUCHING = 0.003
"""Gap (m) under which a block may be touched."""
NEAR, FAR = 0.006, 0.024
"""Gaps (m) at which something beside the hand is fully in its way, and not at all."""
MARGIN = 0.012
"""Height (m) over a thing at which the hand, or what it holds, passes over it."""
FULLY_OPEN, HALF_OPEN = 0.08, 0.02
"""Openings (m) between the fingers."""
HANDLE_HALF, HANDLE_TOP = 0.125, 0.380
DRAWER_HALF, DRAWER_TOP = 0.2015, 0.4015


@dataclass(frozen=True)
class Hem:
    """What is in the hand's way.

    Attributes:
        degree: from 0, nothing, to 1: it must come away first.
        away: (2,) unit vector that leads away from it, or zeros where it is all around.
        height: tool height (m) that clears it.
    """

    degree: float
    away: np.ndarray
    height: float


def hem(state: State, heading: np.ndarray) -> Hem:
    """What is in the way of a hand that leaves into a horizontal direction (2,)."""
    held = state.holding()
    bottom = state.tool[2] - TIP_BELOW_TOOL
    if held is not None:
        bottom = min(bottom, held.position[2] - held.half_height)
    found = Hem(0.0, np.zeros(2), state.tool[2])
    for gap, away, top in (*_blocks(state, held), *_drawer(state)):
        near = float(np.clip((FAR - gap) / (FAR - NEAR), 0.0, 1.0))
        low = float(np.clip((top + MARGIN - bottom) / MARGIN, 0.0, 1.0))
        length = max(1e-9, float(np.hypot(*heading)))
        # Whoever moves away from it anyway is not held up; whoever has it all around always is.
        towards = 1.0 if not away.any() else float(np.clip(0.5 - 1.5 * (away @ heading) / length, 0.0, 1.0))
        degree = near * low * towards
        if degree > found.degree:
            found = Hem(degree, away, top + MARGIN + state.tool[2] - bottom + 0.01)
    return found


def room_to_open(state: State) -> bool:
    """Whether closed fingers can open without pushing a block aside."""
    bottom = state.tool[2] - TIP_BELOW_TOOL
    wide = replace(state, width=FULLY_OPEN)
    return state.width > HALF_OPEN or all(gap > 0.0 or top < bottom for gap, _, top in _blocks(wide, None))


def touched(state: State, block: Block) -> bool:
    """Whether the hand may touch a block that it does not hold."""
    others = replace(state, blocks={block.name: block})
    return any(gap < TOUCHING and state.tool[2] - TIP_BELOW_TOOL < top for gap, _, top in _blocks(others, None))


def _blocks(state: State, held: Block | None) -> Iterator[tuple[float, np.ndarray, float]]:
    """Gap, direction away and top of every block but the held one."""
    opening = np.array([np.sin(state.yaw), -np.cos(state.yaw)])
    broad = np.array([np.cos(state.yaw), np.sin(state.yaw)])
    hand = np.array([0.5 * state.width + TIP_THICKNESS, TIP_BREADTH])
    if held is not None:
        hand = np.maximum(hand, [_half(held, opening), _half(held, broad)])
    for block in state.blocks.values():
        if held is not None and block.name == held.name:
            continue
        offset = block.position[:2] - state.tool[:2]
        along, across = float(offset @ opening), float(offset @ broad)
        apart = np.abs([along, across]) - hand - [_half(block, opening), _half(block, broad)]
        gap = float(np.hypot(*np.maximum(apart, 0.0)))
        between = abs(along) < 0.5 * state.width and abs(across) < 0.03 and state.width > 0.02
        above = held is not None and bool((apart < 0.0).all())
        away = np.zeros(2) if between or above else -offset / max(1e-9, float(np.hypot(*offset)))
        yield gap, away, float(block.position[2] + block.half_height)


def _half(block: Block, direction: np.ndarray) -> float:
    """Half of the block's extent (m) along a horizontal direction (2,), however it is turned."""
    return float(0.5 * np.abs(block.axes.T[:, :2] @ direction) @ block.size)


def _drawer(state: State) -> Iterator[tuple[float, np.ndarray, float]]:
    """Gap, direction away and top of the drawer's handle and, where it is open, of its walls."""
    x, front = state.scene.drawer_x, -0.182 - state.drawer
    boxes = [(HANDLE_HALF, front - 0.080, front, HANDLE_TOP)]
    if state.drawer > 0.02:
        boxes.append((DRAWER_HALF, front, -0.18, DRAWER_TOP))
    for half, low, high, top in boxes:
        aside = max(0.0, abs(state.tool[0] - x) - half - 0.5 * state.width - TIP_THICKNESS)
        before = low - TIP_BREADTH - state.tool[1]
        beyond = max(0.0, state.tool[1] - TIP_BREADTH - high)
        gap = float(np.hypot(aside, max(0.0, before, beyond)))
        yield gap, np.array([0.0, -1.0]) if before > -0.012 and aside == 0.0 else np.zeros(2), top
