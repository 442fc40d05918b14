"""Draws a world with Panda3D's software renderer (p3tinydisplay): no GPU, no display, under a millisecond an image.

Each world has its own graphics engine, scene graph and buffers. Transforms are copied from the physics server for
those shapes that can move. What cannot is drawn for the static camera once, and again when a light of the table
switches.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

import numpy as np
from panda3d import core

from calvin_eval.worlds.playtable import cameras, looks, panda_nodes
from calvin_eval.worlds.playtable.appearance import STATIC_UP
from calvin_eval.worlds.playtable.bullet import pybullet as p
from calvin_eval.worlds.playtable.panda_nodes import Lit
from calvin_eval.worlds.playtable.panda_views import ALL, MOVING, SCENERY, StillView, View
from calvin_eval.worlds.playtable.robot import CAMERA_LINK
from calvin_eval.worlds.playtable.shapes import Shape, collect_shapes

core.load_prc_file_data(
    "calvin_eval",
    "load-display p3tinydisplay\nwindow-type offscreen\naudio-library-name null\n"
    "notify-level error\nnotify-level-x11display fatal\n"
    # Every new pose of a node is a state that Panda3D caches for its own task loop to sweep out. Without that loop
    # the cache only grows, and slows down every frame.
    "garbage-collect-states 0\ntransform-cache 0",
)

PHYSICS_STEP_S = 1 / 240
GLOWING = {"light_link": looks.BULB_ON, "led_link": looks.LED_ON}
"""Links of the table that change colour, and to which. No link of it turns: the light on all others never changes."""


class PandaRenderer:
    """The renderer of one world.

    Args:
        world: what to draw.
        sizes: edge lengths (pixels) of the images.
    """

    name = "panda3d-tinydisplay"

    def __init__(self, world: cameras.Drawn, sizes: cameras.CameraSizes) -> None:
        self._world = world
        self._root = core.NodePath("root")
        # In the order in which they were added: Panda3D's own order goes by addresses in memory, and where two faces
        # are equally far it decides the pixel.
        self._root.set_bin("unsorted", 0)
        self._engine = core.GraphicsEngine()
        pipe = core.GraphicsPipeSelection.get_global_ptr().make_module_pipe("p3tinydisplay")
        if pipe is None:
            raise ImportError("this Panda3D has no p3tinydisplay, its software renderer")
        self._add_lights()
        wall, views = core.LColor(*world.appearance.look.wall, 1), world.appearance.views
        self._static = StillView("static", sizes.static, self._root, self._engine, pipe, views.static_fov, wall)
        self._gripper = View("gripper", sizes.gripper, self._root, self._engine, pipe, views.gripper_fov, wall)
        self._static.node.set_pos(*views.eye)
        self._static.node.look_at(core.LPoint3(*views.target), core.LVector3(*STATIC_UP))
        self._links: dict[tuple[int, int], core.NodePath] = {}
        self._bodies: dict[str, list[core.NodePath]] = {}
        table = world.table
        self._glowing = {name: (table.uid, link) for link, name in table.links.items() if name in GLOWING}
        shapes = panda_nodes.on_moving_links(collect_shapes(world), world, self._glowing.values())
        self._add_depth([shape for shape in shapes if self._stands_still(shape)])
        alike = groupby(shapes, key=lambda s: (s.uid, s.link, s.texture, s.texture and s.colour))
        for _, group in alike:
            self._add_shapes(list(group))
        moving = [key for key in self._links if key[1] >= 0 and key not in self._glowing.values()]
        self._arm = [link for uid, link in moving if uid == world.robot.uid]
        self._joints = [link for uid, link in moving if uid == table.uid]
        self._moving = [self._links[world.robot.uid, link] for link in self._arm]
        self._moving += [self._links[table.uid, link] for link in self._joints]
        self._lit: tuple[int, int] | None = None

    def render(self) -> tuple[np.ndarray, np.ndarray]:
        """Static (S, S, 3) and gripper (G, G, 3) image, uint8."""
        self._sync()
        if not self._static.has_backdrop:
            self._static.show_scenery()
            self._engine.render_frame()
            self._static.keep()
        self._engine.render_frame()
        return self._static.image(), self._gripper.image()

    def masks(self) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """What is seen of each body, as boolean images by body name."""
        self._sync()
        backdrop = self._static.lay_aside()
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
        self._static.put_back(backdrop)
        static, gripper = ({name: abs(code - 10 * (i + 1)) < 5 for i, name in enumerate(names)} for code in codes)
        return static, gripper

    def close(self) -> None:
        """Frees buffers and scene graph."""
        self._engine.remove_all_windows()
        self._root.remove_node()

    def _add_lights(self) -> None:
        ambient = core.AmbientLight("ambient")
        lighting = self._world.appearance.lighting
        ambient.set_color((*lighting.ambient, 1))
        self._root.set_light(self._root.attach_new_node(ambient))
        for number, (name, strength, direction) in enumerate(lighting.directional):
            light = core.DirectionalLight(name)
            light.set_priority(number)  # or else the order of addition, and with it the rounding, goes by addresses
            light.set_color((strength, strength, strength, 1))
            node = self._root.attach_new_node(light)
            node.look_at(core.LPoint3(*direction))
            self._root.set_light(node)

    def _stands_still(self, shape: Shape) -> bool:
        return shape.body not in self._world.blocks and (
            shape.link < 0 or (shape.uid, shape.link) in self._glowing.values()
        )

    def _add_shapes(self, shapes: list[Shape]) -> None:
        """Adds shapes of one link that share a texture, or have none."""
        first = shapes[0]
        key = (first.uid, first.link)
        if key not in self._links:
            self._links[key] = self._root.attach_new_node(f"{first.body}:{first.link}")
            pose = panda_nodes.link_pose(self._world, *key)
            self._links[key].set_pos_quat(core.LPoint3(*pose[0]), _quaternion(pose[1]))
        still = self._stands_still(first)
        turns = first.body in self._world.blocks or (first.body == "robot" and not still)
        unseen_by_static = MOVING if still else SCENERY
        if turns or key in self._glowing.values():
            self._add_node(shapes, Lit.BY_PANDA).hide(unseen_by_static)
            return
        if first.texture and still:  # floor and table top fill most of both pictures
            upward, shapes = panda_nodes.split_upward(shapes, panda_nodes.link_turn(self._world, *key))
            self._add_node(upward, Lit.IN_TEXTURE).hide(unseen_by_static)
        if first.body != "plane":  # of which nobody sees anything but its top
            self._add_node(shapes, Lit.IN_VERTICES).hide(unseen_by_static)

    def _add_node(self, shapes: list[Shape], lit: Lit) -> core.NodePath:
        first = shapes[0]
        turn = panda_nodes.link_turn(self._world, first.uid, first.link)
        lighting = self._world.appearance.lighting
        geometry = panda_nodes.geometry(shapes, lit, turn, lighting)
        node = self._links[first.uid, first.link].attach_new_node(geometry)
        if lit is not Lit.BY_PANDA:
            node.set_light_off()
        if first.texture:
            grain = self._world.appearance.look.grain
            image = looks.checker(first.colour) if first.texture == "floor" else looks.wood(first.colour, grain)
            upward = np.array([[0.0, 0.0, 1.0]])
            light = panda_nodes.brightness(upward, lighting) if lit is Lit.IN_TEXTURE else 1.0
            node.set_texture(panda_nodes.texture((image * light).round().astype(np.uint8)))
        if lit is Lit.IN_TEXTURE:
            node.set_color(1, 1, 1, 1)
        elif lit is Lit.BY_PANDA and len({shape.colour for shape in shapes}) == 1:
            node.set_color(*first.colour, 1)
        self._bodies.setdefault(first.body, []).append(node)
        return node

    def _add_depth(self, shapes: list[Shape]) -> None:
        """Adds to an empty scene, as depth alone, what the static camera sees of shapes that never move.

        What lies behind those faces hides nothing that they do not hide. Nothing is ever under the floor.
        """
        poses = {key: panda_nodes.link_pose(self._world, *key) for key in {(s.uid, s.link) for s in shapes}}
        solid = [panda_nodes.moved(shape, poses[shape.uid, shape.link]) for shape in shapes if shape.body != "plane"]
        triangles = np.concatenate([panda_nodes.placed(shape) for shape in solid])
        numbered = self._root.attach_new_node(panda_nodes.numbered(triangles))
        numbered.set_light_off()
        self._static.show_all(panda_nodes.NO_NUMBER)
        self._engine.render_frame()
        numbered.remove_node()
        seen = panda_nodes.numbers(self._static.colours())
        node = self._root.attach_new_node(panda_nodes.outline(triangles[seen]))
        node.set_light_off()
        node.set_attrib(core.ColorWriteAttrib.make(core.ColorWriteAttrib.C_off))
        node.set_bin("background", 0)
        node.hide(ALL | SCENERY)

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
        for node, state in zip(self._moving, states, strict=True):
            node.set_pos_quat(*_present_frame(state))
        for uid in world.blocks.values():
            position, (x, y, z, w) = p.getBasePositionAndOrientation(uid, physicsClientId=client)
            self._links[uid, -1].set_pos_quat(core.LPoint3(*position), core.LQuaternion(w, x, y, z))
        lit = (world.table.lightbulb, world.table.led)
        if lit != self._lit:
            self._lit = lit
            self._static.show_all()  # forgets the backdrop, which holds the lamps
            for name, on in zip(GLOWING, lit, strict=True):
                _glow(self._links[self._glowing[name]], GLOWING[name], on)


def _present_frame(state: tuple[Any, ...]) -> tuple[core.LPoint3, core.LQuaternion]:
    """Where a link's frame is as the physics has it now. Component by component: NumPy takes longer to call.

    pybullet reports link states from the start of the last physics step. CALVIN's gripper camera stands where it is
    reported to be, while the renderer draws the shapes where they are; at a camera that close to the fingers the
    half millimetre between the two is a pixel.
    """
    centre, (px, py, pz), (x, y, z, w), (vx, vy, vz), (sx, sy, sz) = state[0], *state[4:8]
    dx, dy, dz = px - centre[0], py - centre[1], pz - centre[2]
    position = core.LPoint3(
        px + PHYSICS_STEP_S * (vx + sy * dz - sz * dy),
        py + PHYSICS_STEP_S * (vy + sz * dx - sx * dz),
        pz + PHYSICS_STEP_S * (vz + sx * dy - sy * dx),
    )
    half = 0.5 * PHYSICS_STEP_S
    turned = core.LQuaternion(  # no longer quite of length one, which Panda3D divides by
        w - half * (sx * x + sy * y + sz * z),
        x + half * (w * sx + sy * z - sz * y),
        y + half * (w * sy + sz * x - sx * z),
        z + half * (w * sz + sx * y - sy * x),
    )
    return position, turned


def _quaternion(xyzw: Sequence[float]) -> core.LQuaternion:
    x, y, z, w = xyzw
    return core.LQuaternion(w, x, y, z)


def _glow(link: core.NodePath, colour: looks.RGB, on: int) -> None:
    for node in link.get_children():
        if on:
            node.set_light_off(1)
            node.set_color(*colour, 1)
        else:
            node.clear_light()
            node.set_color(*looks.LIGHT_OFF, 1)
