"""Draws a world with Panda3D's software renderer (p3tinydisplay): no GPU, no display, under a millisecond an image.

Each world has its own graphics engine, scene graph and buffers. Transforms are copied from the physics server for
those shapes that can move; lights of the table change colour only when they switch.
"""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np
from panda3d import core

from calvin_eval.world import cameras, looks, panda_nodes
from calvin_eval.world.bullet import pybullet as p
from calvin_eval.world.robot import CAMERA_LINK
from calvin_eval.world.shapes import Shape, collect_shapes

if TYPE_CHECKING:
    from calvin_eval.world.playtable import PlayTable

core.load_prc_file_data(
    "calvin_eval",
    "load-display p3tinydisplay\nwindow-type offscreen\naudio-library-name null\n"
    "notify-level error\nnotify-level-x11display fatal\n"
    # Every new pose of a node is a state that Panda3D caches for its own task loop to sweep out. Without that loop
    # the cache only grows, and slows down every frame.
    "garbage-collect-states 0\ntransform-cache 0",
)

PHYSICS_STEP_S = 1 / 240
_NEXT, _LAST = [1, 2, 0], [2, 0, 1]
DRAWN = {"static": (2, 1), "gripper": (3, 2)}
"""Drawn pixels across and down for each pixel given, of which one is taken. This rasteriser cuts vertices off to whole
pixels, and what is near the gripper's camera is large in its small picture."""
OFFSET_PIXELS = {"static": core.LVecBase2(-1.6, -0.2), "gripper": core.LVecBase2(-1.7, -0.45)}
"""Film offset (drawn pixels) with which silhouettes agree best with the judge's."""
GLOWING = BULB, LED = ("light_link", "led_link")
"""Links of the table that change colour. No link of it turns, so the light on all others never changes."""
NEAR_FAR = {"static": (2.0, 9.0), "gripper": (0.015, 3.0)}
"""Narrower than CALVIN's, to keep the depth buffer sharp; nothing lies outside."""


class PandaRenderer:
    """The renderer of one world.

    Args:
        world: what to draw.
        sizes: edge lengths (pixels) of the images.
    """

    name = "panda3d-tinydisplay"

    def __init__(self, world: PlayTable, sizes: cameras.CameraSizes) -> None:
        self._world = world
        self._root = core.NodePath("root")
        self._engine = core.GraphicsEngine()
        pipe = core.GraphicsPipeSelection.get_global_ptr().make_module_pipe("p3tinydisplay")
        if pipe is None:
            raise ImportError("this Panda3D has no p3tinydisplay, its software renderer")
        self._pipe = pipe
        self._add_lights()
        self._links: dict[tuple[int, int], core.NodePath] = {}
        self._bodies: dict[str, list[core.NodePath]] = {}
        self._glowing: dict[str, list[core.NodePath]] = {link: [] for link in GLOWING}
        shapes = panda_nodes.on_moving_links(collect_shapes(world), world)
        alike = groupby(shapes, key=lambda s: (s.uid, s.link, s.texture, s.texture and s.colour))
        for _, group in alike:
            self._add_shapes(list(group))
        self._lit: tuple[int, int] | None = None
        self._arm = [link for uid, link in self._links if uid == world.robot.uid and link >= 0]
        self._joints = [link for uid, link in self._links if uid == world.table.uid and link >= 0]
        moving = [(world.robot.uid, link) for link in self._arm] + [(world.table.uid, link) for link in self._joints]
        self._moving = [self._links[key] for key in moving]
        self._place_static()
        self._static = self._add_camera("static", sizes.static, cameras.STATIC_FOV)
        self._gripper = self._add_camera("gripper", sizes.gripper, cameras.GRIPPER_FOV)
        self._static.node.set_pos(*cameras.STATIC_EYE)
        self._static.node.look_at(core.LPoint3(*cameras.STATIC_TARGET), core.LVector3(*cameras.STATIC_UP))

    def render(self) -> tuple[np.ndarray, np.ndarray]:
        """Static (S, S, 3) and gripper (G, G, 3) image, uint8."""
        self._sync()
        self._engine.render_frame()
        return self._static.image(), self._gripper.image()

    def masks(self) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """What is seen of each body, as boolean images by body name."""
        self._sync()
        names = list(self._bodies)
        states = {node: node.get_state() for nodes in self._bodies.values() for node in nodes}
        for number, name in enumerate(names):
            for node in self._bodies[name]:
                node.set_light_off(10)
                node.set_texture_off(10)
                node.set_color((10 * (number + 1)) / 255, 0, 0, 1, 10)
        self._engine.render_frame()
        codes = [view.image()[..., 0].astype(int) for view in (self._static, self._gripper)]
        for node, state in states.items():
            node.set_state(state)
        static, gripper = ({name: abs(code - 10 * (i + 1)) < 5 for i, name in enumerate(names)} for code in codes)
        return static, gripper

    def close(self) -> None:
        """Frees buffers and scene graph."""
        self._engine.remove_all_windows()
        self._root.remove_node()

    def _add_lights(self) -> None:
        ambient = core.AmbientLight("ambient")
        ambient.set_color((*panda_nodes.AMBIENT, 1))
        self._root.set_light(self._root.attach_new_node(ambient))
        for name, (strength, direction) in panda_nodes.DIRECTIONAL.items():
            light = core.DirectionalLight(name)
            light.set_color((strength, strength, strength, 1))
            node = self._root.attach_new_node(light)
            node.look_at(core.LPoint3(*direction))
            self._root.set_light(node)
        wall = looks.LOOKS[self._world.scene].wall
        self._background = core.LColor(*wall, 1)

    def _add_shapes(self, shapes: list[Shape]) -> None:
        """Adds shapes of one link that share a texture, or have none."""
        first = shapes[0]
        key = (first.uid, first.link)
        if key not in self._links:
            self._links[key] = self._root.attach_new_node(f"{first.body}:{first.link}")
        link = self._world.table.links[first.link] if first.body == "table" else ""
        if link in GLOWING:
            self._glowing[link].append(self._add_node(shapes, None))
            return
        if first.body not in ("plane", "pedestal", "table"):
            self._add_node(shapes, None)
            return
        frame = panda_nodes.link_frame(self._world, *key)
        if first.texture and first.link < 0:  # floor and table top fill most of both pictures
            upward, shapes = panda_nodes.split_upward(shapes, frame)
            self._add_node(upward, None, panda_nodes.brightness(np.array([[0.0, 0.0, 1.0]]))).set_color(1, 1, 1, 1)
        self._add_node(shapes, frame)

    def _add_node(
        self, shapes: list[Shape], frame: np.ndarray | None, light: np.ndarray | None = None
    ) -> core.NodePath:
        """One node: lit in its vertices given the link's `frame`, in its texture given `light`, else by Panda3D."""
        first = shapes[0]
        node = self._links[first.uid, first.link].attach_new_node(panda_nodes.geometry(shapes, frame))
        if frame is not None or light is not None:
            node.set_light_off()
        if first.texture:
            grain = looks.LOOKS[self._world.scene].grain
            image = looks.checker(first.colour) if first.texture == "floor" else looks.wood(first.colour, grain)
            node.set_texture(panda_nodes.texture(image if light is None else (image * light).round().astype(np.uint8)))
        self._bodies.setdefault(first.body, []).append(node)
        return node

    def _add_camera(self, name: str, size: int, fov: float) -> _View:
        across, down = DRAWN[name]
        width, height = size * across, size * down
        properties = core.FrameBufferProperties()
        properties.set_rgb_color(True)
        properties.set_depth_bits(1)
        buffer = self._engine.make_output(
            self._pipe,
            name,
            0,
            properties,
            core.WindowProperties.size(width, height),
            core.GraphicsPipe.BF_refuse_window,
        )
        if buffer is None:
            raise RuntimeError(f"Panda3D made no buffer of {size} x {size} pixels for the {name} camera")
        texture = core.Texture(name)
        buffer.add_render_texture(texture, core.GraphicsOutput.RTM_copy_ram)
        buffer.set_clear_color(self._background)
        lens = core.PerspectiveLens()
        lens.set_fov(fov)
        lens.set_near_far(*NEAR_FAR[name])
        film = lens.get_film_size()[0]
        lens.set_film_offset(OFFSET_PIXELS[name][0] * film / width, OFFSET_PIXELS[name][1] * film / height)
        camera = core.Camera(name, lens)
        node = self._root.attach_new_node(camera)
        buffer.make_display_region().set_camera(node)
        return _View(node, texture, size, DRAWN[name])

    def _place_static(self) -> None:
        world = self._world
        self._links[world.robot.uid, -1].set_pos(*_base_frame(world))
        for link in self._joints:
            self._place_link(world.table.uid, link)

    def _place_link(self, uid: int, link: int) -> None:
        state = p.getLinkState(uid, link, physicsClientId=self._world.client)
        self._links[uid, link].set_pos_quat(core.LPoint3(*state[4]), _quaternion(state[5]))

    def _sync(self) -> None:
        world = self._world
        client, robot, table = world.client, world.robot.uid, world.table.uid
        camera = p.getLinkState(robot, CAMERA_LINK, physicsClientId=client)
        x, y, z, w = camera[5]
        # The camera looks along the link's +y with -z up: Panda3D's axes turned half around y.
        turn = core.LQuaternion(0, 0, 1, 0) * core.LQuaternion(w, x, y, z)
        self._gripper.node.set_pos_quat(core.LPoint3(*camera[4]), turn)
        states = p.getLinkStates(robot, self._arm, computeLinkVelocity=1, physicsClientId=client)
        states += p.getLinkStates(table, self._joints, computeLinkVelocity=1, physicsClientId=client)
        for node, position, (x, y, z, w) in zip(self._moving, *_present_frames(states), strict=True):
            node.set_pos_quat(core.LPoint3(*position), core.LQuaternion(w, x, y, z))
        for uid in world.blocks.values():
            position, (x, y, z, w) = p.getBasePositionAndOrientation(uid, physicsClientId=client)
            self._links[uid, -1].set_pos_quat(core.LPoint3(*position), core.LQuaternion(w, x, y, z))
        lit = (world.table.lightbulb, world.table.led)
        if lit != self._lit:
            self._lit = lit
            _glow(self._glowing[BULB], looks.BULB_ON, lit[0])
            _glow(self._glowing[LED], looks.LED_ON, lit[1])


class _View:
    """A camera node and the picture it fills: `drawn` pixels (across, down) for each pixel of an image of this size."""

    def __init__(self, node: core.NodePath, texture: core.Texture, size: int, drawn: tuple[int, int]) -> None:
        self.node, self._texture, self._size, self._drawn = node, texture, size, drawn

    def image(self) -> np.ndarray:
        """The last picture (S, S, 3) uint8; Panda3D stores it from the bottom up, blue first."""
        across, down = self._drawn
        data = np.frombuffer(self._texture.get_ram_image(), np.uint8)
        pixels = data.reshape(self._size, down, self._size, across, -1)[::-1, (down - 1) // 2, :, across // 2]
        image = np.empty((self._size, self._size, 3), np.uint8)
        for channel in range(3):  # three copies of one channel are twice as fast as one with the channels reversed
            image[..., channel] = pixels[..., 2 - channel]
        return image


def _present_frames(states: list[Any]) -> tuple[list[list[float]], list[list[float]]]:
    """Positions (n, 3) and quaternions xyzw (n, 4) of link frames as the physics has them now.

    pybullet reports link states from the start of the last physics step. CALVIN's gripper camera stands where it is
    reported to be, while the renderer draws the shapes where they are; at a camera that close to the fingers the
    half millimetre between the two is a pixel.
    """
    rows = np.array([[*state[0], *state[4], *state[5], *state[6], *state[7]] for state in states])
    centre, position, velocity, spin = rows[:, :3], rows[:, 3:6], rows[:, 10:13], rows[:, 13:]
    vector, scalar = rows[:, 6:9], rows[:, 9:10]
    position = position + PHYSICS_STEP_S * (velocity + _cross(spin, position - centre))
    turned = np.empty((len(rows), 4))
    turned[:, :3] = vector + 0.5 * PHYSICS_STEP_S * (scalar * spin + _cross(spin, vector))
    turned[:, 3] = scalar[:, 0] - 0.5 * PHYSICS_STEP_S * np.einsum("ij,ij->i", spin, vector)
    turned /= np.sqrt(np.einsum("ij,ij->i", turned, turned))[:, None]
    return position.tolist(), turned.tolist()


def _cross(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Cross products (n, 3) of rows (n, 3); for few rows six times as fast as NumPy's."""
    return a[:, _NEXT] * b[:, _LAST] - a[:, _LAST] * b[:, _NEXT]


def _base_frame(world: PlayTable) -> tuple[float, float, float]:
    """Where the robot's base link frame lies (pybullet reports its centre of mass instead)."""
    from calvin_eval.world.scenes import ROBOT_BASE

    return ROBOT_BASE


def _quaternion(xyzw: np.ndarray | tuple[float, ...]) -> core.LQuaternion:
    x, y, z, w = xyzw
    return core.LQuaternion(w, x, y, z)


def _glow(nodes: list[core.NodePath], colour: looks.RGB, on: int) -> None:
    for node in nodes:
        if on:
            node.set_light_off(1)
            node.set_color(*colour, 1)
        else:
            node.clear_light()
            node.set_color(*looks.LIGHT_OFF, 1)
