"""Shapes as Panda3D draws them: geometry, textures, and light for what never turns."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from panda3d import core

from calvin_eval.world.bullet import pybullet as p
from calvin_eval.world.shapes import Shape

if TYPE_CHECKING:
    from calvin_eval.world.playtable import PlayTable

WOOD_TILE, FLOOR_TILE = 0.5, 1.6
"""Edge length (m) of a texture tile."""
AMBIENT = (0.50, 0.50, 0.52)
DIRECTIONAL = {"key": (0.52, (-0.45, 0.55, -0.9)), "fill": (0.22, (0.8, 0.5, -0.3))}
"""Strength of each light, and where it shines to."""


def brightness(normals: np.ndarray) -> np.ndarray:
    """How brightly (n, 3) surfaces with these unit normals (n, 3) are lit, as Panda3D would light them."""
    total = np.tile(AMBIENT, (len(normals), 1))
    for strength, direction in DIRECTIONAL.values():
        towards = -np.array(direction) / np.linalg.norm(direction)
        total += strength * np.maximum(0.0, normals @ towards)[:, None]
    return np.minimum(total, 1.0)


def link_frame(world: PlayTable, uid: int, link: int) -> np.ndarray:
    """Rotation matrix (3, 3) of a link's frame in the world."""
    base = p.getBasePositionAndOrientation(uid, physicsClientId=world.client)[1]
    quaternion = base if link < 0 else p.getLinkState(uid, link, physicsClientId=world.client)[5]
    return np.reshape(p.getMatrixFromQuaternion(quaternion), (3, 3))


def on_moving_links(shapes: list[Shape], world: PlayTable) -> list[Shape]:
    """The shapes, those of the robot in frames of links that its joints move: drawing costs by the node."""
    uid, client = world.robot.uid, world.client
    result = []
    for shape in shapes:
        link = shape.link
        while shape.uid == uid and link > 0:
            joint = p.getJointInfo(uid, link, physicsClientId=client)
            if joint[2] != p.JOINT_FIXED:
                break
            link = joint[16]
        if link != shape.link:
            there, here = (p.getLinkState(uid, n, 0, 1, physicsClientId=client)[4:6] for n in (link, shape.link))
            frame = p.multiplyTransforms(*p.invertTransform(*there), *here)
            position, quaternion = p.multiplyTransforms(*frame, shape.position, shape.quaternion)
            shape = replace(shape, link=link, position=np.array(position), quaternion=np.array(quaternion))
        result.append(shape)
    return sorted(result, key=lambda shape: (shape.uid, shape.link))


def split_upward(shapes: list[Shape], frame: np.ndarray) -> tuple[list[Shape], list[Shape]]:
    """Faces that look straight up, and the others, of shapes of a link whose frame is (3, 3)."""
    upward: list[Shape] = []
    others: list[Shape] = []
    for shape in shapes:
        turn = frame @ np.reshape(p.getMatrixFromQuaternion(shape.quaternion), (3, 3))
        up = shape.normals[:, 0] @ turn[2] > 1 - 1e-6
        for part, faces in ((upward, up), (others, ~up)):
            if faces.any():
                triangles, normals, uv = shape.triangles[faces], shape.normals[faces], shape.uv[faces]
                part.append(replace(shape, triangles=triangles, normals=normals, uv=uv))
    return upward, others


def geometry(shapes: list[Shape], frame: np.ndarray | None) -> core.GeomNode:
    """One node for shapes of a link that look alike, with shared vertices stored once: drawing costs by the vertex.

    Given the `frame` (3, 3) of a link that never turns, the vertices' colours carry the light: lit here once, and not
    again for every frame.
    """
    rows = []
    for shape in shapes:
        area = np.linalg.norm(
            np.cross(shape.triangles[:, 1] - shape.triangles[:, 0], shape.triangles[:, 2] - shape.triangles[:, 0]),
            axis=1,
        )
        keep = area > 0
        turn = np.reshape(p.getMatrixFromQuaternion(shape.quaternion), (3, 3)).T
        colour = (1.0, 1.0, 1.0) if shape.texture else shape.colour
        tile = FLOOR_TILE if shape.texture == "floor" else WOOD_TILE
        corners = (shape.triangles[keep] @ turn + shape.position).reshape(-1, 3)
        normals = (shape.normals[keep] @ turn).reshape(-1, 3)
        colours = np.tile((*colour, 1.0), (len(corners), 1))
        if frame is not None:  # this rasteriser multiplies the colour of a lit vertex in twice
            colours[:, :3] *= colours[:, :3] * brightness(normals @ frame.T)
        uv = (shape.uv[keep] / tile).reshape(-1, 2) * bool(shape.texture)
        rows.append(np.hstack([corners, normals, colours, uv]))
    vertices, index = np.unique(np.concatenate(rows).round(6), axis=0, return_inverse=True)
    data = core.GeomVertexData("shapes", core.GeomVertexFormat.get_v3n3c4t2(), core.Geom.UH_static)
    writers = [core.GeomVertexWriter(data, name) for name in ("vertex", "normal", "color", "texcoord")]
    for row in vertices:
        writers[0].add_data3(*row[:3])
        writers[1].add_data3(*row[3:6])
        writers[2].add_data4(*row[6:10])
        writers[3].add_data2(*row[10:])
    triangles = core.GeomTriangles(core.Geom.UH_static)
    for corners in index.reshape(-1, 3):
        triangles.add_vertices(*(int(corner) for corner in corners))
    mesh = core.Geom(data)
    mesh.add_primitive(triangles)
    node = core.GeomNode("shapes")
    node.add_geom(mesh)
    return node


def texture(image: np.ndarray) -> core.Texture:
    """A texture of an image (H, W, 3) uint8, repeated in both directions."""
    height, width, _ = image.shape
    result = core.Texture("procedural")
    result.setup_2d_texture(width, height, core.Texture.T_unsigned_byte, core.Texture.F_rgb)
    result.set_ram_image(np.ascontiguousarray(image[::-1, :, ::-1]).tobytes())
    result.set_wrap_u(core.SamplerState.WM_repeat)
    result.set_wrap_v(core.SamplerState.WM_repeat)
    return result
