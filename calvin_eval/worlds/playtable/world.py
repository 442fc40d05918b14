"""CALVIN's world, embedded: the play table as an Env (calvin_eval.protocol), on pybullet physics.

Physics runs at 240 Hz, control at 30 Hz. Order within a step: motors, eight physics steps, button and switch, then
the observation; within a reset: table, robot, one physics step (CALVIN SPEC 1.1).

Left out of CALVIN's quirks: neither the last gripper command (`Robot`) nor a pressed button (`Table`) survives a
reset, and results do not depend on what the process simulated before, because every reset starts from one and the
same state of the engine.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pybullet_data

from calvin_eval.calvin import BlockState, Contact, Info, calvin_observation, calvin_robot
from calvin_eval.protocol import Observation
from calvin_eval.specs import RobotSpec
from calvin_eval.system.errors import UserError
from calvin_eval.worlds.playtable import urdf
from calvin_eval.worlds.playtable.appearance import Appearance, appearance_of
from calvin_eval.worlds.playtable.bullet import pybullet as p
from calvin_eval.worlds.playtable.cameras import CameraSizes, Renderer
from calvin_eval.worlds.playtable.renderers import make_renderer
from calvin_eval.worlds.playtable.robot import Robot
from calvin_eval.worlds.playtable.scenes import SceneGeometry, scene_geometry
from calvin_eval.worlds.playtable.table import Table

PHYSICS_STEPS = 8
SERVERS = 1024
"""Worlds that pybullet holds in a process."""
GRAVITY = -9.8
RAISED_ARM = (0.0, -0.6, 0.0, -0.3, 0.0, 0.3, 0.0)
"""Arm joints at which nothing touches anything."""


class PlayTable:
    """One world. Several live side by side in a process; closing one leaves the others alone.

    Args:
        scene: "A", "B", "C" or "D", or a geometry of its own.
        renderer: "panda3d" (fast), "tinyrenderer" (pybullet's own, slow), or "none" for states only.
        sizes: edge lengths (pixels) of the two square images.
        seed: for the block positions of a reset without scene_obs.
        appearance: colours, lights and cameras; the scene's by default.

    Raises:
        UserError: an unknown scene or renderer.
    """

    most = SERVERS

    def __init__(
        self,
        scene: str | SceneGeometry = "D",
        renderer: str = "panda3d",
        sizes: CameraSizes | None = None,
        seed: int = 0,
        appearance: Appearance | None = None,
    ) -> None:
        self.geometry: SceneGeometry = scene_geometry(scene)
        self.appearance = appearance or appearance_of(self.geometry.name)
        self._rng = np.random.default_rng(seed)
        self._client = p.connect(p.DIRECT)
        if self._client < 0:
            raise RuntimeError(
                f"pybullet gave no physics server; it holds at most {SERVERS} at a time: close some worlds"
            )
        self._sizes = sizes or CameraSizes()
        self._renderer: Renderer | None = None
        try:
            with tempfile.TemporaryDirectory() as folder:
                self._load(Path(folder))
                self._renderer = make_renderer(renderer, self, self._sizes)
        except BaseException:
            self.close()
            raise

    def _load(self, folder: Path) -> None:
        p.setPhysicsEngineParameter(deterministicOverlappingPairs=1, physicsClientId=self._client)
        p.setGravity(0, 0, GRAVITY, physicsClientId=self._client)
        panda = Path(pybullet_data.getDataPath()) / "franka_panda" / "panda.urdf"
        self.robot = Robot(str(urdf.write_robot(folder, panda)), self._client)
        self.pedestal = self._load_pedestal()
        self.blocks: dict[str, int] = {}
        for index, block in enumerate(self.geometry.block_order):
            path = urdf.write_block(folder, block, self.geometry.block_size(block))
            self.blocks[block] = p.loadURDF(str(path), (0, 0, 1 + 0.1 * index), physicsClientId=self._client)
        self.table = Table(str(urdf.write_table(folder, self.geometry)), self._client)
        self.plane = p.loadURDF(str(urdf.write_plane(folder)), physicsClientId=self._client)
        self.names = {
            self.robot.uid: "robot",
            self.pedestal: "pedestal",
            self.table.uid: "table",
            self.plane: "plane",
            **{uid: name for name, uid in self.blocks.items()},
        }
        self._pristine = p.saveState(physicsClientId=self._client)

    def _load_pedestal(self) -> int:
        """The column under the robot: seen, never touched."""
        shape = p.createVisualShape(
            p.GEOM_CYLINDER,
            radius=0.13,
            length=0.24,
            visualFramePosition=[-0.39, -0.46, 0.12],
            physicsClientId=self._client,
        )
        return p.createMultiBody(baseVisualShapeIndex=shape, physicsClientId=self._client)

    @property
    def scene(self) -> str:
        """The scene's name."""
        return self.geometry.name

    @property
    def renderer(self) -> str:
        """Name of what draws the images."""
        return "none" if self._renderer is None else self._renderer.name

    @property
    def spec(self) -> RobotSpec:
        """CALVIN's robot, with the cameras that are rendered."""
        if self._renderer is None:
            return calvin_robot(0, 0)
        return calvin_robot(self._sizes.static, self._sizes.gripper)

    @property
    def client(self) -> int:
        """Pybullet's physics client id."""
        return self._client

    def reset(
        self,
        robot_obs: np.ndarray | None = None,
        scene_obs: np.ndarray | None = None,
        *,
        render: bool = True,
    ) -> Observation:
        """Puts robot (15,) and table (24,) into a state; without one, the resting state and random block positions.

        Raises:
            UserError: a state of the wrong length.
        """
        for name, state, length in (("robot_obs", robot_obs, 15), ("scene_obs", scene_obs, 24)):
            if state is not None and len(state) != length:
                raise UserError(f"{name} must have {length} entries, not {len(state)}")
        self._forget()
        self.table.reset(None if scene_obs is None else scene_obs[:6])
        if scene_obs is None:
            self._scatter_blocks()
        else:
            poses = np.reshape(scene_obs[6:], (3, 6))
            for name, pose in zip(self.geometry.block_order, poses, strict=True):
                self._place(name, pose[:3], pose[3:])
        self.robot.reset(robot_obs)
        # Without this, a block in a drawer that was just moved open gets its first contacts one step late.
        p.performCollisionDetection(physicsClientId=self._client)
        p.stepSimulation(physicsClientId=self._client)
        return self._observe(render)

    def step(
        self,
        action: Sequence[float] | np.ndarray | tuple[Any, ...] | Mapping[str, Any],
        *,
        render: bool = True,
    ) -> Observation:
        """Executes one action for 1/30 s: relative (7,), or any other form of `Robot.apply`."""
        self.robot.apply(action)
        for _ in range(PHYSICS_STEPS):
            p.stepSimulation(physicsClientId=self._client)
        self.table.step()
        return self._observe(render)

    def observe(self) -> Observation:
        """The present observation, images included."""
        return self._observe(True)

    def info(self) -> Info:
        """What the oracle reads, as of the last reset or step."""
        blocks = {}
        for name, uid in self.blocks.items():
            position, quaternion = p.getBasePositionAndOrientation(uid, physicsClientId=self._client)
            linear, angular = p.getBaseVelocity(uid, physicsClientId=self._client)
            blocks[name] = BlockState(
                np.array(position),
                np.array(quaternion),
                np.array(linear),
                np.array(angular),
                self._contacts(uid),
            )
        slide, drawer, _, _ = self.table.positions()
        return Info(
            scene=self.scene,
            doors={"base__slide": slide, "base__drawer": drawer},
            lights={"lightbulb": self.table.lightbulb, "led": self.table.led},
            blocks=blocks,
            robot_contacts=self._contacts(self.robot.uid),
        )

    def masks(self) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """What the static and the gripper camera see of each body, as boolean images by body name.

        Raises:
            RuntimeError: this world has no renderer.
        """
        if self._renderer is None:
            raise RuntimeError('this world draws nothing; make it with renderer="panda3d" for masks')
        return self._renderer.masks()

    def close(self) -> None:
        """Frees renderer and physics server. Closing twice is fine."""
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None
        if self._client >= 0:
            p.disconnect(physicsClientId=self._client)
            self._client = -1

    def __enter__(self) -> PlayTable:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _observe(self, render: bool) -> Observation:
        table = self.table
        scene = [*table.positions(), table.lightbulb, table.led]
        for uid in self.blocks.values():
            position, quaternion = p.getBasePositionAndOrientation(uid, physicsClientId=self._client)
            scene += [*position, *p.getEulerFromQuaternion(quaternion)]
        static, gripper = self._renderer.render() if render and self._renderer is not None else (None, None)
        return calvin_observation(static, gripper, self.robot.observe(), np.array(scene))

    def _forget(self) -> None:
        """Brings the physics engine to one and the same state, whatever it simulated before.

        Restoring a saved state is not enough: the engine solves contacts in the order in which they came up, and
        keeps that order over a restore as long as the bodies stay close. So all are taken apart for a moment.
        """
        p.restoreState(self._pristine, physicsClientId=self._client)
        for index, uid in enumerate(self.blocks.values()):
            p.resetBasePositionAndOrientation(uid, (5 + 2 * index, 5, 5), (0, 0, 0, 1), physicsClientId=self._client)
        for joint, position in enumerate(RAISED_ARM):
            p.resetJointState(self.robot.uid, joint, position, physicsClientId=self._client)
        for _ in range(2):
            p.stepSimulation(physicsClientId=self._client)

    def _place(self, block: str, position: np.ndarray, euler: np.ndarray) -> None:
        p.resetBasePositionAndOrientation(
            self.blocks[block], position, p.getQuaternionFromEuler(euler), physicsClientId=self._client
        )

    def _scatter_blocks(self) -> None:
        """CALVIN's random placement: any surface, any yaw, again until no two blocks touch."""
        surfaces = list(self.geometry.surfaces.values())
        for _ in range(1000):
            for block in self.blocks:
                low, high = surfaces[self._rng.integers(len(surfaces))]
                yaw = self._rng.uniform(-np.pi, np.pi)
                self._place(block, np.array([*self._rng.uniform(low, high), 0.46]), np.array([0, 0, yaw]))
            p.stepSimulation(physicsClientId=self._client)
            uids = set(self.blocks.values())
            touching = any(
                contact[2] in uids
                for uid in uids
                for contact in p.getContactPoints(bodyA=uid, physicsClientId=self._client)
            )
            if not touching:
                return
        raise RuntimeError(f"scene {self.scene}: blocks still touch after 1000 random placements")

    def _contacts(self, uid: int) -> frozenset[Contact]:
        points = p.getContactPoints(bodyA=uid, physicsClientId=self._client)
        return frozenset(Contact(self.names[point[2]], self._link_name(point[2], point[4])) for point in points)

    def _link_name(self, uid: int, link: int) -> str:
        if uid == self.table.uid:
            return self.table.links[link]
        return "base_link" if link == -1 else f"link_{link}"
