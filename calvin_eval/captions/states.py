"""The true state as numbers of order one, for learning to see by predicting it."""

from __future__ import annotations

import numpy as np

from calvin_eval.calvin import BLOCKS
from calvin_eval.captions.facts import CAMERAS, PLACES, Facts
from calvin_eval.captions.phrases import colour
from calvin_eval.worlds.playtable.scenes import BUTTON_TRAVEL, DRAWER_TRAVEL, MIDDLE, SWITCH_TRAVEL

CENTRE, SCALE = np.array([0.05, -0.08, 0.46]), np.array([0.25, 0.15, 0.10])
"""Places (m) are given as (place - CENTRE) / SCALE."""
REACH = 0.2
"""Ways (m) from the tool to something are given in this length."""
LENGTH_STEP = 0.02
FARTHEST = 4.0
"""Numbers are cut off here: noise throws the arm far away now and then."""
OPEN = 0.08
ANY = 0.001
"""Share of a picture from which a block counts as seen here."""
HANDLES = ("door", "drawer", "button", "switch")


def state_targets(facts: Facts) -> np.ndarray:
    """The state (n,) float32 of a moment; `state_names` says what each number is."""
    numbers = np.array([value for values in _parts(facts) for value in values], np.float32)
    return np.clip(numbers, -FARTHEST, FARTHEST)


def state_names() -> list[str]:
    """What each number of `state_targets` is, as in "block_red x" or "tool to button z"."""
    return list(_NAMES)


def _parts(facts: Facts) -> list[list[float]]:
    """The numbers, in the order of `state_names`."""
    state, handles, shares = facts.state, facts.positions, facts.shares
    places = {name: block.position for name, block in facts.blocks.items()}
    return [
        *(((places[name] - CENTRE) / SCALE).tolist() for name in BLOCKS),
        *(_twice_yaw(facts, name) for name in BLOCKS),
        [
            2 * state.slide / facts.geometry.slide_limit - 1,
            2 * state.drawer / DRAWER_TRAVEL - 1,
            state.button / BUTTON_TRAVEL,
            2 * state.switch / SWITCH_TRAVEL - 1,
            2.0 * state.lightbulb - 1,
            2.0 * state.led - 1,
        ],
        *(((handles[name] - CENTRE) / SCALE).tolist() for name in HANDLES),
        ((state.tool - CENTRE) / SCALE).tolist(),
        *([float(np.sin(angle)), float(np.cos(angle))] for angle in (state.roll, state.pitch, state.yaw)),
        [2 * state.width / OPEN - 1],
        *(((places[name] - state.tool) / REACH).tolist() for name in BLOCKS),
        *(((handles[name] - state.tool) / REACH).tolist() for name in HANDLES),
        [float(facts.held == name) for name in (*BLOCKS, None)],
        *([float(facts.places[name] == place) for place in PLACES] for name in BLOCKS),
        [(facts.geometry.block_lengths[name] - MIDDLE) / LENGTH_STEP for name in BLOCKS],
        *([0.0 if shares is None else float(shares[camera][name] > ANY) for name in BLOCKS] for camera in CAMERAS),
    ]


def _twice_yaw(facts: Facts, name: str) -> list[float]:
    """Sine and cosine of twice the direction of the long side; both shrink to nought as the block stands on its end."""
    x, y, _ = facts.blocks[name].axes[:, 0]
    return [float(2 * x * y), float(x * x - y * y)]


def _all_names() -> tuple[str, ...]:
    xyz = "xyz"
    names = [f"{block} {axis}" for block in BLOCKS for axis in xyz]
    names += [f"{block} {f} of twice yaw" for block in BLOCKS for f in ("sine", "cosine")]
    names += ["slide", "drawer", "button", "switch", "lightbulb", "led"]
    names += [f"{handle} {axis}" for handle in HANDLES for axis in xyz]
    names += [f"tool {axis}" for axis in xyz]
    names += [f"tool {f} of {angle}" for angle in ("roll", "pitch", "yaw") for f in ("sine", "cosine")]
    names += ["opening"]
    names += [f"tool to {thing} {axis}" for thing in (*BLOCKS, *HANDLES) for axis in xyz]
    names += [f"holds {thing}" for thing in (*BLOCKS, "nothing")]
    names += [f"{block} in {place}" for block in BLOCKS for place in PLACES]
    names += [f"length of {block}" for block in BLOCKS]
    names += [f"{camera} camera sees {colour(block)}" for camera in CAMERAS for block in BLOCKS]
    return tuple(names)


_NAMES = _all_names()
