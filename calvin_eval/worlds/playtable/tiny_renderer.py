"""Draws a world with pybullet's own software renderer: slow, but always there, and the judge of the fast one."""

from __future__ import annotations

import numpy as np

from calvin_eval.worlds.playtable import cameras, looks
from calvin_eval.worlds.playtable.appearance import STATIC_UP
from calvin_eval.worlds.playtable.bullet import pybullet as p
from calvin_eval.worlds.playtable.robot import CAMERA_LINK
from calvin_eval.worlds.playtable.shapes import collect_shapes


class TinyRenderer:
    """The renderer of one world.

    Args:
        world: what to draw.
        sizes: edge lengths (pixels) of the images.
    """

    name = "pybullet-tinyrenderer"

    def __init__(self, world: cameras.Drawn, sizes: cameras.CameraSizes) -> None:
        self._world, self._sizes = world, sizes
        self._lit: tuple[int, int] | None = None
        for shape in collect_shapes(world):
            p.changeVisualShape(
                shape.uid,
                shape.link,
                shapeIndex=shape.index,
                rgbaColor=[*shape.colour, 1],
                physicsClientId=world.client,
            )
        views = world.appearance.views
        self._static_view = p.computeViewMatrix(views.eye, views.target, STATIC_UP)
        self._static_lens = p.computeProjectionMatrixFOV(views.static_fov, 1.0, *cameras.STATIC_NEAR_FAR)
        self._gripper_lens = p.computeProjectionMatrixFOV(views.gripper_fov, 1.0, *cameras.GRIPPER_NEAR_FAR)

    def render(self) -> tuple[np.ndarray, np.ndarray]:
        """Static (S, S, 3) and gripper (G, G, 3) image, uint8."""
        return self._picture("static")[0], self._picture("gripper")[0]

    def depth(self) -> tuple[np.ndarray, np.ndarray]:
        """Static (S, S) and gripper (G, G) depth along the optical axis, float32 m (CALVIN SPEC 1.6)."""
        return self._picture("static")[1], self._picture("gripper")[1]

    def masks(self) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """What is seen of each body, as boolean images by body name."""
        result = []
        for camera in ("static", "gripper"):
            uids = self._picture(camera)[2] & ((1 << 24) - 1)
            result.append({name: uids == uid for uid, name in self._world.names.items()})
        return result[0], result[1]

    def close(self) -> None:
        """Nothing to free: it lives in the physics server."""

    def _picture(self, camera: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        self._sync_lights()
        if camera == "static":
            size, view, lens = self._sizes.static, self._static_view, self._static_lens
            near, far = cameras.STATIC_NEAR_FAR
        else:
            size, view, lens = self._sizes.gripper, self._gripper_view(), self._gripper_lens
            near, far = cameras.GRIPPER_NEAR_FAR
        _, _, rgba, buffer, mask = p.getCameraImage(
            size, size, view, lens, renderer=p.ER_TINY_RENDERER, physicsClientId=self._world.client
        )
        rgb = np.ascontiguousarray(np.reshape(rgba, (size, size, 4))[..., :3].astype(np.uint8))
        depth = far * near / (far - (far - near) * np.reshape(buffer, (size, size)))
        return rgb, depth.astype(np.float32), np.reshape(mask, (size, size))

    def _gripper_view(self) -> list[float]:
        state = p.getLinkState(self._world.robot.uid, CAMERA_LINK, physicsClientId=self._world.client)
        eye = np.array(state[4])
        turn = np.reshape(p.getMatrixFromQuaternion(state[5]), (3, 3))
        return p.computeViewMatrix(eye, eye + turn[:, 1], -turn[:, 2])

    def _sync_lights(self) -> None:
        table, client = self._world.table, self._world.client
        lit = (table.lightbulb, table.led)
        if lit == self._lit:
            return
        self._lit = lit
        for name, on, colour in (("light_link", lit[0], looks.BULB_ON), ("led_link", lit[1], looks.LED_ON)):
            link = next(index for index, link_name in table.links.items() if link_name == name)
            p.changeVisualShape(
                table.uid, link, rgbaColor=[*(colour if on else looks.LIGHT_OFF), 1], physicsClientId=client
            )
