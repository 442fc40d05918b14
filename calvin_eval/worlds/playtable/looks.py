"""Colours and procedural textures of the four scenes: clearly different, and our own.

Wood is drawn as rings bent by slow waves, in five shades so that recorded frames compress well; floors are a checker
of two close tones, so that pictures have something to hold on to.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

RGB = tuple[float, float, float]

BLOCK_COLOURS: dict[str, RGB] = {
    "block_red": (0.86, 0.08, 0.08),
    "block_blue": (0.10, 0.20, 0.90),
    "block_pink": (0.96, 0.25, 0.80),
}
BULB_ON: RGB = (1.0, 0.95, 0.15)
LED_ON: RGB = (0.15, 0.95, 0.20)
LIGHT_OFF: RGB = (0.93, 0.93, 0.93)
ROBOT: RGB = (0.93, 0.93, 0.95)
HAND: RGB = (0.80, 0.80, 0.83)
FINGER: RGB = (0.22, 0.22, 0.25)


@dataclass(frozen=True)
class Look:
    """How a scene looks.

    Attributes:
        base, door, drawer: wood of table, sliding door and drawer.
        handle: bars of door and drawer. lever: the switch. button: its disc. floor, wall: around the table.
        grain: contrast of the wood's grain.
        blocks: colour of each block by name.
    """

    base: RGB
    door: RGB
    drawer: RGB
    handle: RGB
    lever: RGB
    button: RGB
    floor: RGB
    wall: RGB
    grain: float
    blocks: Mapping[str, RGB] = field(default_factory=lambda: BLOCK_COLOURS)


LOOKS = {
    "A": Look((0.48, 0.26, 0.17), (0.58, 0.33, 0.22), (0.54, 0.30, 0.20), (0.72, 0.72, 0.74), (0.20, 0.20, 0.22),
              (0.85, 0.80, 0.30), (0.78, 0.79, 0.82), (0.62, 0.66, 0.72), 0.30),
    "B": Look((0.90, 0.80, 0.62), (0.82, 0.70, 0.50), (0.84, 0.73, 0.54), (0.30, 0.30, 0.33), (0.42, 0.26, 0.16),
              (0.20, 0.62, 0.70), (0.55, 0.58, 0.62), (0.80, 0.78, 0.72), 0.16),
    "C": Look((0.74, 0.60, 0.42), (0.42, 0.22, 0.15), (0.44, 0.24, 0.16), (0.86, 0.84, 0.78), (0.16, 0.30, 0.24),
              (0.92, 0.50, 0.16), (0.66, 0.62, 0.58), (0.56, 0.62, 0.58), 0.24),
    "D": Look((0.56, 0.40, 0.24), (0.66, 0.48, 0.30), (0.62, 0.45, 0.27), (0.24, 0.24, 0.27), (0.30, 0.19, 0.11),
              (0.10, 0.52, 0.52), (0.84, 0.82, 0.78), (0.70, 0.74, 0.80), 0.26),
}  # fmt: skip


def wood(colour: RGB, grain: float, size: int = 128, seed: int = 0) -> np.ndarray:
    """A wood texture (size, size, 3) uint8 whose grain runs along the rows."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:size, 0:size] / size
    bend = 0.035 * np.sin(2 * np.pi * (x + rng.random())) + 0.015 * np.sin(2 * np.pi * (3 * x + rng.random()))
    rings = 0.6 * np.sin(2 * np.pi * 7 * (y + bend)) + 0.4 * np.sin(2 * np.pi * 17 * (y + 0.6 * bend) + 1.0)
    shade = 1.0 + grain * 0.4 * np.round(2.0 * rings) / 2.0
    return _image(np.asarray(colour) * shade[..., None])


def checker(colour: RGB, size: int = 128, squares: int = 16) -> np.ndarray:
    """A floor texture (size, size, 3) uint8 of two close tones."""
    index = np.arange(size) * squares // size
    odd = (index[:, None] + index[None]) % 2
    return _image(np.asarray(colour) * (1.0 - 0.10 * odd[..., None]))


def _image(values: np.ndarray) -> np.ndarray:
    return (np.clip(values, 0, 1) * 255).astype(np.uint8)
