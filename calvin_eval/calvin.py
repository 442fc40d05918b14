"""What CALVIN calls things: its cameras, states, actions and bodies, with their sizes and units.

Units are metres, radians and seconds; quaternions are (x, y, z, w).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

from calvin_eval.protocol import Env, Observation
from calvin_eval.specs import ActionPart, ActionSpec, RobotSpec

CONTROL_RATE_HZ = 30
MAX_REL_POS = 0.02
"""Metres that a relative translation of 1 stands for."""
MAX_REL_ORN = 0.05
"""Radians that a relative rotation of 1 stands for."""

SCENES = ("A", "B", "C", "D")
BLOCKS = ("block_red", "block_blue", "block_pink")
DOORS = ("base__slide", "base__drawer")
LIGHTS = ("lightbulb", "led")

STATIC, GRIPPER = "rgb_static", "rgb_gripper"
"""CALVIN's cameras: the one that looks at the whole table, and the one on the hand."""
ROBOT_OBS, SCENE_OBS = "robot_obs", "scene_obs"
"""CALVIN's states: of the robot, and of the table (privileged)."""

CALVIN_ACTIONS = ActionSpec(
    (
        ActionPart(
            "pose",
            size=6,
            units=("m", "m", "m", "rad", "rad", "rad"),
            one=(MAX_REL_POS,) * 3 + (MAX_REL_ORN,) * 3,
            low=-1.0,
            high=1.0,
        ),
        ActionPart("gripper", "binary"),
    )
)
"""dx, dy, dz, droll, dpitch, dyaw in [-1, 1], then the gripper: -1 close, +1 open (CALVIN SPEC 1.4).

The environment adds motion to its *target* pose, not to the measured one, so a blocked arm winds up unless the caller
holds back."""
ACTION_SIZE = CALVIN_ACTIONS.size


def calvin_robot(static: int = 200, gripper: int = 84) -> RobotSpec:
    """CALVIN's robot with square images of these edges (pixels); 0 for a camera that is not rendered."""
    edges = {STATIC: static, GRIPPER: gripper}
    return RobotSpec(
        cameras={name: (edge, edge) for name, edge in edges.items() if edge},
        state={ROBOT_OBS: 15},
        privileged={SCENE_OBS: 24},
        actions=CALVIN_ACTIONS,
        rate_hz=CONTROL_RATE_HZ,
    )


def calvin_observation(
    rgb_static: np.ndarray | None,
    rgb_gripper: np.ndarray | None,
    robot_obs: np.ndarray,
    scene_obs: np.ndarray | None = None,
    **state: np.ndarray,
) -> Observation:
    """An observation under CALVIN's names.

    Args:
        rgb_static: (H, W, 3) uint8, or None where it was not rendered.
        rgb_gripper: likewise.
        robot_obs: (15,).
        scene_obs: (24,), or None where nobody knows it.
        state: what else is measured, by name: force, tactile features ...
    """
    images = {STATIC: rgb_static, GRIPPER: rgb_gripper}
    return Observation(
        {name: image for name, image in images.items() if image is not None},
        {ROBOT_OBS: robot_obs, **state},
        {} if scene_obs is None else {SCENE_OBS: scene_obs},
    )


class Contact(NamedTuple):
    """One touching partner: the other body and its link, by name, as ("table", "plank_link").

    The robot is "robot", the play table "table", blocks go by their names of `BLOCKS`; a body's root link is
    "base_link". A simulator may name its other bodies as it likes as long as the names differ.
    """

    body: str
    link: str


@dataclass(frozen=True)
class BlockState:
    """A movable block: pose, velocities and what it touches.

    Attributes:
        position: (3,) m. orientation: (4,) quaternion xyzw.
        linear_velocity: (3,) m/s. angular_velocity: (3,) rad/s.
        contacts: every (body, link) that has a contact point with it, speculative ones (distance > 0) included.
    """

    position: np.ndarray
    orientation: np.ndarray
    linear_velocity: np.ndarray
    angular_velocity: np.ndarray
    contacts: frozenset[Contact]


@dataclass(frozen=True)
class Info:
    """What the oracle reads: the privileged state of one moment.

    Attributes:
        scene: one of `SCENES`.
        doors: joint positions (m) of `DOORS`.
        lights: 0 or 1 for each of `LIGHTS`.
        blocks: the state of each of `BLOCKS`.
        robot_contacts: every (body, link) that touches the robot.
    """

    scene: str
    doors: Mapping[str, float]
    lights: Mapping[str, int]
    blocks: Mapping[str, BlockState]
    robot_contacts: frozenset[Contact]


class CalvinEnv(Env, Protocol):
    """A simulator of CALVIN's table: what its chains and scripted experts need of it besides `Env`."""

    @property
    def scene(self) -> str:
        """One of `SCENES`."""

    def reset(
        self,
        robot_obs: np.ndarray | None = None,
        scene_obs: np.ndarray | None = None,
        *,
        render: bool = True,
    ) -> Observation:
        """Puts robot (15,) and scene (24,) into the given state; without one, into the default state."""

    def info(self) -> Info:
        """The state the oracle reads, as of the last reset or step."""
