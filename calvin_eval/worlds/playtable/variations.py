"""Play tables that nobody has seen: scenes A, B and C with fixtures moved, and other colours, lights and cameras.

Scene D is the one that policies are tested in without having seen it, so no variation starts from it, and none comes
near its layout (`like_d`). Fixtures stay what the URDF generator builds: they change places, not shapes.
"""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from calvin_eval.calvin import BLOCKS
from calvin_eval.system.errors import UserError
from calvin_eval.worlds.playtable.appearance import Appearance, Lighting, Vector, Views, appearance_of
from calvin_eval.worlds.playtable.looks import RGB, Look
from calvin_eval.worlds.playtable.scenes import BIG, MIDDLE, SLIDE_WIDTH, SMALL, SceneGeometry, scene_geometry

UNSEEN = "D"
NEAR_M = 0.04
"""Fixtures less apart than this (m) are in the same place, as far as likeness to scene D goes."""
SWITCH_HALF, LED_HALF, BULB_HALF = 0.0603, 0.08, 0.028
"""Half widths (m) along x."""
GAP = 0.03
"""Room (m) between door and switch, and between the two lights."""
OPENING_WIDTH = 0.52
EDGE, TABLE_EDGE = 0.43, 0.36
"""Greatest distance (m) along x from the table's middle of the door; of places for blocks."""
FARTHEST_SWITCH = 0.35
"""Of the switch's middle, likewise: the table ends at 0.44, the arm stands at -0.34."""
BUTTON_ROOM = 0.11
"""Distance (m) along x from the button to the table's place for blocks."""
EYE_M, TARGET_M, STATIC_DEGREES, GRIPPER_DEGREES = 0.03, 0.015, 0.5, 2.0
"""How far cameras differ, to either side."""
BLOCK_HUES = {"block_red": (0.0, 0.022), "block_blue": (0.646, 0.035), "block_pink": (0.868, 0.028)}
"""Hue of each colour, and how far it may differ to either side: the three stay apart."""


@dataclass(frozen=True)
class Variation:
    """One varied world.

    Attributes:
        geometry: where its fixtures are; bears the name of the scene that it was made from.
        appearance: colours, lights and cameras.
    """

    geometry: SceneGeometry
    appearance: Appearance


def random_variation(rng: np.random.Generator, scenes: Sequence[str] = ("A", "B", "C")) -> Variation:
    """A varied world.

    Args:
        rng: of every draw.
        scenes: what it may start from.

    Raises:
        UserError: scene D is among them, or none is given.
    """
    if UNSEEN in scenes or not scenes:
        raise UserError(f"variations start from A, B or C, not from {', '.join(scenes) or 'nothing'}: D stays unseen")
    base = scene_geometry(str(rng.choice(list(scenes))))
    geometry = _random_geometry(base, rng)
    while like_d(geometry):
        geometry = _random_geometry(base, rng)
    look = _random_look(appearance_of(base.name).look, rng)
    return Variation(geometry, Appearance(look, _random_lighting(rng), _random_views(rng)))


def like_d(geometry: SceneGeometry) -> bool:
    """Whether a layout comes near scene D's.

    Four things count: the x of button, switch, sliding door and drawer. A layout is like D's if all four are within
    `NEAR_M` of D's, or if three are and the blocks have D's lengths.
    """
    unseen = scene_geometry(UNSEEN)
    same = sum(abs(a - b) < NEAR_M for a, b in zip(_fixtures(geometry), _fixtures(unseen), strict=True))
    return same == 4 or (same == 3 and geometry.block_lengths == unseen.block_lengths)


def _fixtures(geometry: SceneGeometry) -> tuple[float, ...]:
    return geometry.button[0], geometry.switch[0], geometry.slide[0], geometry.drawer_x


def _random_geometry(base: SceneGeometry, rng: np.random.Generator) -> SceneGeometry:
    """Fixtures anywhere they fit: the switch on either side of the cabinet, which fills the other."""
    switch_right = bool(rng.integers(2))
    low = rng.uniform(-0.385, -0.33) if switch_right else rng.uniform(-0.20, -0.135)
    opening = (float(low), float(low + OPENING_WIDTH))
    door = _random_door(opening, rng)
    if switch_right:
        switch = rng.uniform(door[0] + SLIDE_WIDTH + SWITCH_HALF + GAP, FARTHEST_SWITCH)
    else:
        switch = rng.uniform(-FARTHEST_SWITCH, door[0] - door[1] - SWITCH_HALF - GAP)
    button = np.array([_random_button(rng), rng.uniform(-0.135, -0.105), 0.46])
    drawer = float(rng.uniform(0.02, 0.19))
    bulb, led = _random_lights(float(switch), float(button[0]), rng)
    lengths = rng.permutation([SMALL, MIDDLE, BIG])
    return replace(
        base,
        block_lengths={name: float(length) for name, length in zip(BLOCKS, lengths, strict=True)},
        button=button,
        switch=np.array([switch, *base.switch[1:]]),
        slide=np.array([door[0], *base.slide[1:]]),
        slide_limit=door[1],
        drawer_x=drawer,
        cabinet_opening=opening,
        drawer_bay=(drawer - 0.2, drawer + 0.2),
        bulb=np.array([bulb, *base.bulb[1:]]),
        led=np.array([led, *base.led[1:]]),
        surfaces=_surfaces(opening, float(button[0])),
    )


def _random_door(opening: tuple[float, float], rng: np.random.Generator) -> tuple[float, float]:
    """X (m) of the door's left end where it rests, at the right of the opening, and how far it slides to the left."""
    rest = min(opening[1] + rng.uniform(-0.02, 0.025), EDGE) - SLIDE_WIDTH
    leftmost = max(opening[0] + rng.uniform(-0.025, 0.01), -EDGE)
    return float(rest), float(rest - leftmost)


def _random_button(rng: np.random.Generator) -> float:
    return float(rng.uniform(-0.30, 0.30))


def _random_lights(switch: float, button: float, rng: np.random.Generator) -> tuple[float, float]:
    """X (m) of bulb and LED on the cabinet's top: near switch and button, not on each other."""
    while True:
        bulb = float(np.clip(switch + rng.uniform(-0.10, 0.10), -0.38, 0.38))
        led = float(np.clip(button + rng.uniform(-0.20, 0.20), -0.34, 0.34))
        if abs(bulb - led) > LED_HALF + BULB_HALF + GAP:
            return bulb, led


def _surfaces(opening: tuple[float, float], button: float) -> dict[str, np.ndarray]:
    """Where blocks are placed: on the table on the button's wider side, and in both halves of the cabinet."""
    table = (button + BUTTON_ROOM, TABLE_EDGE) if button < 0 else (-TABLE_EDGE, button - BUTTON_ROOM)
    low, high = opening
    spans = {"slider_left": (low + 0.05, low + 0.20), "slider_right": (high - 0.20, high - 0.04)}
    return {
        "table": np.array([[table[0], -0.15], [table[1], -0.03]]),
        **{name: np.array([[left, 0.05], [right, 0.12]]) for name, (left, right) in spans.items()},
    }


def _random_look(look: Look, rng: np.random.Generator) -> Look:
    """Other colours for everything; three times in four woods near to a scene's own, else any."""
    wood = _random_wood if rng.random() < 0.25 else lambda near, rng: _near(near, 0.10, rng)
    alike = rng.random() < 0.5
    door = wood(look.door, rng)
    return Look(
        base=wood(look.base, rng),
        door=door,
        drawer=_near(door, 0.04, rng) if alike else wood(look.drawer, rng),
        handle=_any_colour(rng, saturation=0.25),
        lever=_any_colour(rng, saturation=0.6),
        button=_any_colour(rng, saturation=0.8),
        floor=_any_colour(rng, saturation=0.12, value=(0.4, 0.9)),
        wall=_any_colour(rng, saturation=0.2, value=(0.45, 0.9)),
        grain=float(rng.uniform(0.08, 0.36)),
        blocks={name: _block_colour(*BLOCK_HUES[name], rng) for name in BLOCKS},
    )


def _near(colour: RGB, reach: float, rng: np.random.Generator) -> RGB:
    """A colour near another one: lighter or darker, and a little of each channel."""
    values = np.array(colour) + rng.uniform(-reach, reach) + rng.uniform(-0.3 * reach, 0.3 * reach, 3)
    return _rgb(np.clip(values, 0.05, 0.97))


def _random_wood(near: RGB, rng: np.random.Generator) -> RGB:
    """Any brown, grey or white that furniture has; `near` does not matter."""
    return _hsv(rng.uniform(0.02, 0.13), rng.uniform(0.05, 0.65), rng.uniform(0.3, 0.95))


def _any_colour(rng: np.random.Generator, saturation: float, value: tuple[float, float] = (0.1, 0.95)) -> RGB:
    return _hsv(rng.random(), rng.uniform(0, saturation), rng.uniform(*value))


def _block_colour(hue: float, reach: float, rng: np.random.Generator) -> RGB:
    return _hsv((hue + rng.uniform(-reach, reach)) % 1.0, rng.uniform(0.72, 0.95), rng.uniform(0.75, 1.0))


def _random_lighting(rng: np.random.Generator) -> Lighting:
    usual = Lighting()
    turned = []
    for name, strength, direction in usual.directional:
        bent = np.array(direction) + rng.uniform(-0.35, 0.35, 3)
        bent[2] = min(bent[2], -0.15)  # all light comes from above
        turned.append((name, float(strength * rng.uniform(0.7, 1.25)), _vector(bent)))
    shade = rng.uniform(0.8, 1.15)
    ambient = _rgb(np.array(usual.ambient) * shade * rng.uniform(0.95, 1.05, 3))
    return Lighting(ambient, tuple(turned))


def _random_views(rng: np.random.Generator) -> Views:
    usual = Views()
    return Views(
        eye=_vector(np.array(usual.eye) + rng.uniform(-EYE_M, EYE_M, 3)),
        target=_vector(np.array(usual.target) + rng.uniform(-TARGET_M, TARGET_M, 3)),
        static_fov=float(usual.static_fov + rng.uniform(-STATIC_DEGREES, STATIC_DEGREES)),
        gripper_fov=float(usual.gripper_fov + rng.uniform(-GRIPPER_DEGREES, GRIPPER_DEGREES)),
    )


def _hsv(hue: float, saturation: float, value: float) -> RGB:
    return _rgb(np.array(colorsys.hsv_to_rgb(hue, saturation, value)))


def _rgb(values: np.ndarray) -> RGB:
    return _vector(values)


def _vector(values: np.ndarray) -> Vector:
    x, y, z = (float(value) for value in values)
    return x, y, z
