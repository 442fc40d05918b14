"""The fixed geometry of CALVIN's four scenes, as data (CALVIN SPEC 1.7). Needs no simulator.

World frame: x to the right, y away from the table's front edge, z up; metres. The table stands at the origin, its
top at z = 0.44, the robot in front of it to the left.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from calvin_eval.calvin import SCENES
from calvin_eval.system.errors import UserError

TABLE_TOP = 0.44
BLOCK_THICKNESS = 0.04
SMALL, MIDDLE, BIG = 0.04, 0.056, 0.08
"""Lengths (m) of the three kinds of block."""
DRAWER_TRAVEL, SWITCH_TRAVEL, BUTTON_TRAVEL = 0.22, 0.088, 0.02
SLIDE_WIDTH = 0.2806
DRAWER_HALF_WIDTH = 0.1769
"""Half the drawer's inner width (m)."""

ROBOT_BASE = (-0.34, -0.46, 0.24)
RESTING_JOINTS = (-1.21779206, 1.03987646, 2.11978261, -2.34205014, -0.87015947, 1.64119353, 0.55344866)
RESTING_ROBOT_OBS = np.array(
    [0.02586889, -0.2313129, 0.5712808, 3.09045411, -0.02908596, 1.50013585, 0.08, *RESTING_JOINTS, 1.0]
)
"""The robot's default state (CALVIN SPEC 1.2)."""


@dataclass(frozen=True)
class SceneGeometry:
    """One scene.

    Attributes:
        name: one of `calvin_eval.calvin.SCENES`; of a varied one (`variations.py`) that which it was made from.
        block_order: the blocks in the order in which scene_obs lists them; it differs between scenes.
        block_lengths: long edge (m) of each block; the other two are `BLOCK_THICKNESS`.
        button: (3,) centre of the button's base.
        switch: (3,) origin of the lever at rest.
        slide: (3,) origin of the sliding door at rest (its left end).
        slide_limit: how far (m) the door slides to the left.
        drawer_x: x of the drawer's centre.
        cabinet_opening: x range of the opening behind the sliding door.
        drawer_bay: x range of the drawer's bay in the table.
        bulb, led: (3,) positions of the two lights.
        surfaces: x, y ranges for random placement, low and high (2, 2), by name.
    """

    name: str
    block_order: tuple[str, ...]
    block_lengths: dict[str, float]
    button: np.ndarray
    switch: np.ndarray
    slide: np.ndarray
    slide_limit: float
    drawer_x: float
    cabinet_opening: tuple[float, float]
    drawer_bay: tuple[float, float]
    bulb: np.ndarray
    led: np.ndarray
    surfaces: dict[str, np.ndarray] = field(default_factory=dict)

    def block_size(self, name: str) -> np.ndarray:
        """Full edge lengths (3,) of a block, m."""
        return np.array([self.block_lengths[name], BLOCK_THICKNESS, BLOCK_THICKNESS])

    @property
    def drawer_interior(self) -> tuple[float, float]:
        """X range inside the drawer."""
        return self.drawer_x - DRAWER_HALF_WIDTH, self.drawer_x + DRAWER_HALF_WIDTH

    def slide_span(self, joint: float) -> tuple[float, float]:
        """X range that the sliding door covers at a joint position."""
        return self.slide[0] - joint, self.slide[0] - joint + SLIDE_WIDTH

    def slide_handle(self, joint: float) -> np.ndarray:
        """Centre (3,) of the sliding door's handle bar."""
        return self.slide + [0.14 - joint, -0.059, 0.034]

    def drawer_bar(self, joint: float) -> np.ndarray:
        """Centre (3,) of the drawer's handle bar."""
        return np.array([self.drawer_x, -0.25 - joint, 0.36])

    def switch_bar(self, joint: float) -> np.ndarray:
        """Centre (3,) of the lever's cross bar; the lever slides up a slope of 60 degrees."""
        return self.switch + [0.0, -0.042 + 0.5 * joint, 0.0335 + 0.866 * joint]


def _surfaces(
    table: tuple[float, float], left: tuple[float, float], right: tuple[float, float]
) -> dict[str, np.ndarray]:
    return {
        "table": np.array([[table[0], -0.15], [table[1], -0.03]]),
        "slider_left": np.array([[left[0], 0.05], [left[1], 0.12]]),
        "slider_right": np.array([[right[0], 0.05], [right[1], 0.12]]),
    }


def _scene(
    name: str,
    order: str,
    lengths: tuple[float, float, float],
    button_x: float,
    switch_x: float,
    slide: tuple[float, float],
    drawer_x: float,
    opening: tuple[float, float],
    surfaces: dict[str, np.ndarray],
    bulb_y: float = 0.132,
) -> SceneGeometry:
    red, blue, pink = lengths
    return SceneGeometry(
        name=name,
        block_order=tuple(f"block_{colour}" for colour in order.split()),
        block_lengths={"block_red": red, "block_blue": blue, "block_pink": pink},
        button=np.array([button_x, -0.12, 0.46]),
        switch=np.array([switch_x, 0.0609, 0.4949]),
        slide=np.array([slide[0], 0.075, 0.5353]),
        slide_limit=slide[1],
        drawer_x=drawer_x,
        cabinet_opening=opening,
        drawer_bay=(drawer_x - 0.2, drawer_x + 0.2),
        bulb=np.array([switch_x, bulb_y, 0.6478]),
        led=np.array([button_x, 0.16, 0.6478]),
        surfaces=surfaces,
    )


_LEFT_CABINET = ((-0.32, -0.16), (-0.05, 0.13))
_SCENES = {
    "A": _scene(
        "A", "pink blue red", (MIDDLE, BIG, SMALL), -0.28, 0.30, (-0.10, 0.280), 0.10, (-0.36, 0.16),
        _surfaces((-0.20, 0.35), *_LEFT_CABINET),
    ),
    "B": _scene(
        "B", "red blue pink", (SMALL, BIG, MIDDLE), 0.28, -0.32, (0.088, 0.304), 0.18, (-0.18, 0.34),
        _surfaces((-0.35, 0.15), (-0.12, 0.06), (0.15, 0.33)), 0.136,
    ),
    "C": _scene(
        "C", "blue red pink", (BIG, SMALL, MIDDLE), -0.12, -0.32, (0.060, 0.240), 0.10, (-0.18, 0.34),
        _surfaces((0.0, 0.35), (-0.12, 0.06), (0.15, 0.30)),
    ),
    "D": _scene(
        "D", "red blue pink", (MIDDLE, SMALL, BIG), -0.12, 0.30, (-0.10, 0.280), 0.18, (-0.36, 0.16),
        _surfaces((0.0, 0.35), *_LEFT_CABINET),
    ),
}  # fmt: skip


def scene_geometry(scene: str | SceneGeometry) -> SceneGeometry:
    """The geometry of a scene by name; one of a world that has its own is given back as it is.

    Raises:
        UserError: no such scene.
    """
    if isinstance(scene, SceneGeometry):
        return scene
    if scene not in _SCENES:
        raise UserError(f"scene {scene!r} does not exist; choose one of {', '.join(SCENES)}")
    return _SCENES[scene]
