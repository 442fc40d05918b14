"""The privileged state a scripted expert reads: one observation, with names.

Memory-free experts decide from this and nothing else, so the right action is known in any state, also
in those into which noise or a learned policy brought the robot.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.spatial.transform import Rotation

from calvin_eval.calvin import BLOCKS, ROBOT_OBS, SCENE_OBS
from calvin_eval.protocol import Observation
from calvin_eval.system.errors import UserError
from calvin_eval.worlds.playtable.scenes import SceneGeometry, scene_geometry

THINNEST = 0.028
"""Opening (m) under which the fingers hold nothing: blocks are 4 cm thick."""
TOOL_YAW_LOW = -1.2
"""Tool yaw is counted from here upwards (rad): the wrist's limits leave about this range free of jumps."""


def wrap(angle: float) -> float:
    """The same angle in [-pi, pi)."""
    return float((angle + np.pi) % (2 * np.pi) - np.pi)


@dataclass(frozen=True)
class Block:
    """A block as the scripted expert sees it.

    Attributes:
        name: one of `calvin_eval.protocol.BLOCKS`.
        position: (3,) centre, m.
        euler: (3,) euler xyz, rad.
        size: (3,) full edge lengths, m; the first is the long one.
    """

    name: str
    position: np.ndarray
    euler: np.ndarray
    size: np.ndarray

    @cached_property
    def axes(self) -> np.ndarray:
        """Rotation matrix (3, 3); columns are the block's axes in the world."""
        return Rotation.from_euler("xyz", self.euler).as_matrix()

    @property
    def half_height(self) -> float:
        """Half the block's vertical extent as it is turned now, m."""
        return float(0.5 * np.abs(self.axes[2]) @ self.size)

    @property
    def up(self) -> np.ndarray:
        """Horizontal part (2,) of the axis that points up; zero when the block is level."""
        axes = self.axes
        axis = axes[:, int(np.argmax(np.abs(axes[2])))]
        return axis[:2] * np.sign(axis[2])

    @property
    def yaw(self) -> float:
        """Direction of the block's long edge in the table plane, rad."""
        return float(self.euler[2])

    def extent(self, direction: float) -> float:
        """Full width (m) of the upright block along a horizontal direction (rad)."""
        relative = direction - self.yaw
        return float(self.size[0] * abs(np.cos(relative)) + self.size[1] * abs(np.sin(relative)))


@dataclass(frozen=True)
class State:
    """Robot and table at one moment.

    Attributes:
        scene: the scene's fixed geometry.
        tool: (3,) tool position, m.
        roll, pitch, yaw: tool orientation, rad; roll counted from pointing straight down, yaw from
            `TOOL_YAW_LOW` upwards without a jump in the range the wrist reaches.
        width: opening between the fingers, m.
        joints: (7,) of the arm, rad.
        slide, drawer, button, switch: joint positions, m.
        lightbulb, led: whether they are lit.
        blocks: by name.
    """

    scene: SceneGeometry
    tool: np.ndarray
    roll: float
    pitch: float
    yaw: float
    width: float
    joints: np.ndarray
    slide: float
    drawer: float
    button: float
    switch: float
    lightbulb: bool
    led: bool
    blocks: dict[str, Block]

    @classmethod
    def read(cls, observation: Observation, scene: str | SceneGeometry) -> State:
        """Names the entries of an observation (CALVIN SPEC 1.2, 1.3) of a scene, or of a world of its own geometry.

        Raises:
            UserError: the observation carries no scene_obs.
        """
        if SCENE_OBS not in observation.privileged:
            raise UserError("scripted experts need scene_obs, and this environment does not give it")
        geometry = scene_geometry(scene)
        robot, table = observation.state[ROBOT_OBS], observation.privileged[SCENE_OBS]
        blocks = {
            name: Block(name, table[6 + 6 * i : 9 + 6 * i], table[9 + 6 * i : 12 + 6 * i], geometry.block_size(name))
            for i, name in enumerate(geometry.block_order)
        }
        return cls(
            scene=geometry,
            tool=robot[:3],
            roll=wrap(robot[3] - np.pi),
            pitch=float(robot[4]),
            yaw=float((robot[5] - TOOL_YAW_LOW) % (2 * np.pi) + TOOL_YAW_LOW),
            width=float(robot[6]),
            joints=robot[7:14],
            slide=float(table[0]),
            drawer=float(table[1]),
            button=float(table[2]),
            switch=float(table[3]),
            lightbulb=bool(table[4] > 0.5),
            led=bool(table[5] > 0.5),
            blocks={name: blocks[name] for name in BLOCKS},
        )

    @property
    def lean(self) -> np.ndarray:
        """Horizontal direction (2,) into which the fingertips point; its length is the sine of the angle."""
        forward, sideways = -np.cos(self.roll) * np.sin(self.pitch), np.sin(self.roll)
        heading = np.array([np.cos(self.yaw), np.sin(self.yaw)])
        return forward * heading + sideways * np.array([-heading[1], heading[0]])

    def others(self, block: Block) -> list[Block]:
        """All blocks but this one."""
        return [other for other in self.blocks.values() if other.name != block.name]

    def held(self, block: Block) -> bool:
        """Whether the closed fingers hold the block: it sits between them and the opening fits its width."""
        fits = THINNEST < self.width < self.grasp_width(block) + 0.008
        return fits and self.straddles(block)

    def holding(self) -> Block | None:
        """The held block, if any."""
        return next((block for block in self.blocks.values() if self.held(block)), None)

    def straddles(self, block: Block) -> bool:
        """Whether the block's centre lies between the two fingers, deep enough to be grasped."""
        offset = block.position - self.tool
        along, across = self.in_tool_axes(offset[:2])
        between = abs(along) < min(0.035, 0.5 * self.width + 0.005)
        return between and abs(across) < 0.022 and abs(offset[2]) < 0.032

    def in_tool_axes(self, offset: np.ndarray) -> tuple[float, float]:
        """A horizontal offset (2,) as (along the fingers' opening direction, across it), m."""
        opening = np.array([np.sin(self.yaw), -np.cos(self.yaw)])
        broad = np.array([np.cos(self.yaw), np.sin(self.yaw)])
        return float(offset @ opening), float(offset @ broad)

    def grasp_width(self, block: Block) -> float:
        """Width (m) of the block along the fingers' opening direction."""
        return block.extent(self.yaw - np.pi / 2)
