"""CALVIN's two cameras, and the choice of what draws them (CALVIN SPEC 1.6)."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from calvin_eval.system.errors import UserError

if TYPE_CHECKING:
    from calvin_eval.world.playtable import PlayTable

STATIC_EYE = (2.871459009488717, -2.166602199425597, 2.555159848480571)
STATIC_TARGET = (-0.026242351159453392, -0.0302329882979393, 0.3920000493526459)
STATIC_UP = (0.4041403970338857, 0.22629790978217404, 0.8862616969685161)
STATIC_FOV, GRIPPER_FOV = 10.0, 75.0
"""Opening angles (degrees)."""
STATIC_NEAR_FAR = (0.01, 10.0)
GRIPPER_NEAR_FAR = (0.01, 2.0)

RENDERERS = ("panda3d", "tinyrenderer", "none")


@dataclass(frozen=True)
class CameraSizes:
    """Edge lengths (pixels) of the square images.

    Attributes:
        static: the camera that looks at the whole table.
        gripper: the camera on the hand.
    """

    static: int = 200
    gripper: int = 84

    def __post_init__(self) -> None:
        for name, size in (("static", self.static), ("gripper", self.gripper)):
            if size < 8:
                raise UserError(f"camera size {name}={size} is too small; give at least 8 pixels")


class Renderer(Protocol):
    """Draws the present state of one world."""

    name: str

    def render(self) -> tuple[np.ndarray, np.ndarray]:
        """Static (S, S, 3) and gripper (G, G, 3) image, uint8."""

    def masks(self) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """What is seen of each body in the static and the gripper image, as boolean images by body name."""

    def close(self) -> None:
        """Frees everything."""


def make_renderer(name: str, world: PlayTable, sizes: CameraSizes) -> Renderer | None:
    """The renderer of that name for a world; TinyRenderer, with a warning, where Panda3D is not installed.

    Raises:
        UserError: no such renderer.
    """
    if name not in RENDERERS:
        raise UserError(f"renderer {name!r} does not exist; choose one of {', '.join(RENDERERS)}")
    if name == "none":
        return None
    if name == "panda3d":
        try:
            from calvin_eval.world.panda_renderer import PandaRenderer
        except ImportError as error:
            warnings.warn(
                f"Panda3D cannot be imported ({error}); drawing with pybullet's TinyRenderer, which is some thirty "
                "times slower. Install it with: pip install panda3d",
                stacklevel=3,
            )
        else:
            return PandaRenderer(world, sizes)
    from calvin_eval.world.tiny_renderer import TinyRenderer

    return TinyRenderer(world, sizes)
