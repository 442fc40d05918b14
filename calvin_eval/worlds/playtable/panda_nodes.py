"""Shapes as Panda3D draws them: geometry, textures, and light for what never turns."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from enum import Enum

import numpy as np
from panda3d import core

from calvin_eval.worlds.playtable.appearance import Lighting
from calvin_eval.worlds.playtable.bullet import pybullet as p
from calvin_eval.worlds.playtable.cameras import Drawn
from calvin_eval.worlds.playtable.shapes import Shape

Pose = tuple[Sequence[float], Sequence[float]]
"""Position and quaternion xyzw."""
WOOD_TILE, FLOOR_TILE = 0.5, 1.6
"""Edge length (m) of a texture tile."""
DIGITS, DIGIT = 32, 8
"""How many values of a colour channel number triangles, and how far apart they lie."""
NO_NUMBER = core.LColor(0, 0, 0, 1)


class Lit(Enum):
    """Where the light on a node comes from."""

    BY_PANDA = "Panda3D's lights, in every frame"
    IN_VERTICES = "the vertices' colours, stored once: for what never turns"
    IN_TEXTURE = "the texture: for what never turns and looks one way"


def brightness(normals: np.ndarray, lighting: Lighting) -> np.ndarray:
    """How brightly (n, 3) surfaces with these unit normals (n, 3) are lit, as Panda3D would light them."""
    total = np.tile(lighting.ambient, (len(normals), 1))
    for _, strength, direction in lighting.directional:
        towards = -np.array(direction) / np.linalg.norm(direction)
        total += strength * np.maximum(0.0, normals @ towards)[:, None]
    return np.minimum(total, 1.0)


def link_pose(world: Drawn, uid: int, link: int) -> Pose:
    """Position and quaternion xyzw of a link's frame in the world, or of the base's for link -1."""
    client = world.client
    if link >= 0:
        position, quaternion = p.getLinkState(uid, link, 0, 1, physicsClientId=client)[4:6]
        return position, quaternion
    inertial = p.getDynamicsInfo(uid, -1, physicsClientId=client)[3:5]  # pybullet places bases by centre of mass
    base = p.getBasePositionAndOrientation(uid, physicsClientId=client)
    position, quaternion = p.multiplyTransforms(*base, *p.invertTransform(*inertial))
    return position, quaternion


def link_turn(world: Drawn, uid: int, link: int) -> np.ndarray:
    """Rotation matrix (3, 3) of a link's frame in the world."""
    return _matrix(link_pose(world, uid, link)[1])


def on_moving_links(shapes: list[Shape], world: Drawn, apart: Collection[tuple[int, int]]) -> list[Shape]:
    """The shapes in frames of links that joints move, or of their base: drawing costs by the node.

    Links (uid, link) that stand `apart` keep their own.
    """
    client = world.client
    result = []
    for shape in shapes:
        link = shape.link
        while link >= 0 and (shape.uid, link) not in apart:
            joint = p.getJointInfo(shape.uid, link, physicsClientId=client)
            if joint[2] != p.JOINT_FIXED:
                break
            link = joint[16]
        if link != shape.link:
            there, here = (link_pose(world, shape.uid, n) for n in (link, shape.link))
            shape = moved(replace(shape, link=link), p.multiplyTransforms(*p.invertTransform(*there), *here))
        result.append(shape)
    return sorted(result, key=lambda shape: (shape.uid, shape.link))


def moved(shape: Shape, pose: Pose) -> Shape:
    """The shape as it lies once the frame it lies in has this pose."""
    position, quaternion = p.multiplyTransforms(*pose, shape.position, shape.quaternion)
    return replace(shape, position=np.array(position), quaternion=np.array(quaternion))


def split_upward(shapes: list[Shape], turn: np.ndarray) -> tuple[list[Shape], list[Shape]]:
    """Faces that look straight up, and the others, of shapes of a link turned by a matrix (3, 3)."""
    upward: list[Shape] = []
    others: list[Shape] = []
    for shape in shapes:
        up = shape.normals[:, 0] @ (turn @ _matrix(shape.quaternion))[2] > 1 - 1e-6
        for part, faces in ((upward, up), (others, ~up)):
            if faces.any():
                triangles, normals, uv = shape.triangles[faces], shape.normals[faces], shape.uv[faces]
                part.append(replace(shape, triangles=triangles, normals=normals, uv=uv))
    return upward, others


def geometry(shapes: list[Shape], lit: Lit, turn: np.ndarray, lighting: Lighting) -> core.GeomNode:
    """One node for shapes of a link that look alike, its vertices with no more to them than its light needs.

    Args:
        shapes: of one link, all with one texture or all without.
        lit: where their light comes from.
        turn: rotation matrix (3, 3) of the link's frame, for light in vertices.
        lighting: the lights, likewise.
    """
    textured, colours = bool(shapes[0].texture), {shape.colour for shape in shapes}
    by_vertex = lit is Lit.IN_VERTICES or (not textured and len(colours) > 1)
    columns = {"v": 3, "n": 3 * (lit is Lit.BY_PANDA), "c": 4 * by_vertex, "t": 2 * textured}
    rows = []
    for shape in shapes:
        keep = _with_area(shape.triangles)
        frame = _matrix(shape.quaternion).T
        tile = FLOOR_TILE if shape.texture == "floor" else WOOD_TILE
        corners = placed(shape).reshape(-1, 3)
        normals = (shape.normals[keep] @ frame).reshape(-1, 3)
        colour = np.tile((1.0, 1.0, 1.0, 1.0) if textured else (*shape.colour, 1.0), (len(corners), 1))
        if lit is Lit.IN_VERTICES:  # this rasteriser multiplies the colour of a lit vertex in twice
            colour[:, :3] *= colour[:, :3] * brightness(normals @ turn.T, lighting)
        values = (corners, normals, colour, (shape.uv[keep] / tile).reshape(-1, 2))
        rows.append(np.hstack([value for value, width in zip(values, columns.values(), strict=True) if width]))
    return _node(np.concatenate(rows), columns)


def placed(shape: Shape) -> np.ndarray:
    """Its triangles (F, 3, 3) in the frame it lies in, but for those without an area."""
    return shape.triangles[_with_area(shape.triangles)] @ _matrix(shape.quaternion).T + shape.position


def outline(triangles: np.ndarray) -> core.GeomNode:
    """One node for triangles (F, 3, 3) of which nothing but where they are will be drawn."""
    return _node(triangles.reshape(-1, 3), {"v": 3})


def numbered(triangles: np.ndarray) -> core.GeomNode:
    """One node that shows by its colours, to `numbers`, which of its triangles (F, 3, 3) are seen."""
    if len(triangles) > DIGITS**3:
        raise ValueError(f"{len(triangles)} triangles are more than there are colours to number them, {DIGITS**3}")
    number = np.arange(len(triangles))
    digits = np.stack([number // DIGITS**place % DIGITS for place in range(3)], axis=1)
    colours = np.hstack([(digits * DIGIT + DIGIT // 2) / 255, np.ones((len(triangles), 1))])
    return _node(np.hstack([triangles.reshape(-1, 3), colours.repeat(3, axis=0)]), {"v": 3, "c": 4})


def numbers(colours: np.ndarray) -> np.ndarray:
    """Which triangles of `numbered` were seen (n,), by the colours (m, 3) uint8 drawn of it on `NO_NUMBER`."""
    colours = colours[(colours >= DIGIT // 4).all(axis=1)].astype(int)
    return np.unique(colours // DIGIT @ DIGITS ** np.arange(3))


def _matrix(quaternion: Sequence[float] | np.ndarray) -> np.ndarray:
    return np.reshape(p.getMatrixFromQuaternion(quaternion), (3, 3))


def _with_area(triangles: np.ndarray) -> np.ndarray:
    edges = triangles[:, 1] - triangles[:, 0], triangles[:, 2] - triangles[:, 0]
    return np.linalg.norm(np.cross(*edges), axis=1) > 0


def _node(corners: np.ndarray, columns: dict[str, int]) -> core.GeomNode:
    """A node of triangles, three rows of `corners` each. Equal ones are stored once: drawing costs by the vertex.

    `columns` gives the width of each of their columns in the order in which they lie, by the letter with which
    Panda3D's formats name it.
    """
    columns = {letter: width for letter, width in columns.items() if width}
    vertices, index = np.unique(corners.round(6), axis=0, return_inverse=True)
    layout = getattr(core.GeomVertexFormat, "get_" + "".join(f"{letter}{width}" for letter, width in columns.items()))
    data = core.GeomVertexData("shapes", layout(), core.Geom.UH_static)
    names = {"v": "vertex", "n": "normal", "c": "color", "t": "texcoord"}
    start = 0
    for letter, width in columns.items():
        writer = core.GeomVertexWriter(data, names[letter])
        for row in vertices[:, start : start + width]:
            writer.add_data4(*row, *[1.0] * (4 - width))
        start += width
    triangles = core.GeomTriangles(core.Geom.UH_static)
    for triangle in index.reshape(-1, 3):
        triangles.add_vertices(*(int(corner) for corner in triangle))
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
