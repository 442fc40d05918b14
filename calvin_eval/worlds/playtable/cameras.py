"""The pictures of CALVIN's two cameras (CALVIN SPEC 1.6), and what a renderer is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from calvin_eval.system.errors import UserError
from calvin_eval.worlds.playtable.appearance import Appearance
from calvin_eval.worlds.playtable.robot import Robot
from calvin_eval.worlds.playtable.table import Table

STATIC_NEAR_FAR = (0.01, 10.0)
GRIPPER_NEAR_FAR = (0.01, 2.0)


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


class Drawn(Protocol):
    """What renderers need to know of a world.

    Attributes:
        appearance: colours, lights and cameras.
        client: pybullet's number of the world.
        robot: the arm.
        table: the play table and its lamps.
        blocks: the body number of each block by name.
        names: what each body is called, by number.
    """

    robot: Robot
    table: Table
    blocks: dict[str, int]
    names: dict[int, str]

    @property
    def appearance(self) -> Appearance:
        """See above."""

    @property
    def client(self) -> int:
        """See above."""


class Renderer(Protocol):
    """Draws the present state of one world."""

    name: str

    def render(self) -> tuple[np.ndarray, np.ndarray]:
        """Static (S, S, 3) and gripper (G, G, 3) image, uint8."""

    def masks(self) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """What is seen of each body in the static and the gripper image, as boolean images by body name."""

    def close(self) -> None:
        """Frees everything."""
