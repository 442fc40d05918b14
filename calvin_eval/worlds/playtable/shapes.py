"""What there is to draw: every visual shape of a world as a triangle mesh with a colour.

Read from the physics server itself, so that any renderer shows what the physics has.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

import fast_simplification
import numpy as np
import pybullet_data

from calvin_eval.worlds.playtable import looks
from calvin_eval.worlds.playtable.bullet import pybullet as p
from calvin_eval.worlds.playtable.cameras import Drawn
from calvin_eval.worlds.playtable.robot import FINGERS

MOST_TRIANGLES = 150
"""Of a mesh: drawing costs by the vertex. The robot's links have 200 and 300, one 1308."""
WELD, CAREFUL = 0.006, 3
"""Size (m) of the cells whose corners become one; how greedily triangles are taken away, of 0 to 10."""
CREASE = np.radians(60.0)
"""Faces that meet at a sharper angle than this are drawn with an edge."""


@dataclass(frozen=True)
class Shape:
    """One visual shape.

    Attributes:
        body: the body's name. uid, link: pybullet's ids. index: its number among the link's shapes.
        position, quaternion: pose in the link's frame.
        triangles: (F, 3, 3) corners in the shape's frame, m.
        normals: (F, 3, 3) unit normals at the corners: smooth within a mesh, but for its creases.
        uv: (F, 3, 2) texture coordinates in metres along the surface.
        colour: RGB in [0, 1]. texture: "wood", "floor" or "" for plain.
    """

    body: str
    uid: int
    link: int
    index: int
    position: np.ndarray
    quaternion: np.ndarray
    triangles: np.ndarray
    normals: np.ndarray
    uv: np.ndarray
    colour: looks.RGB
    texture: str


def collect_shapes(world: Drawn) -> list[Shape]:
    """Every visual shape of a world."""
    shapes: list[Shape] = []
    for uid, body in world.names.items():
        counts: dict[int, int] = {}
        for data in p.getVisualShapeData(uid, physicsClientId=world.client):
            link, kind, dimensions, filename, position, quaternion = data[1:7]
            index = counts.get(link, 0)
            counts[link] = index + 1
            name = filename.decode()
            lasting = kind != p.GEOM_MESH or name.startswith(pybullet_data.getDataPath())
            mesh = (_kept_mesh if lasting else _mesh)(kind, dimensions, name)
            colour, texture = _paint(world, body, link, index)
            shapes.append(
                Shape(
                    body, uid, link, index, np.array(position), np.array(quaternion), *mesh, colour, texture
                )
            )  # fmt: skip
    return shapes


def _mesh(kind: int, dimensions: tuple[float, ...], filename: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Triangles, normals at their corners and texture coordinates of a shape."""
    triangles = _triangles(kind, dimensions, filename)
    crease = CREASE if kind in (p.GEOM_MESH, p.GEOM_SPHERE, p.GEOM_CYLINDER) else 0.0
    arrays = triangles, corner_normals(triangles, crease), _planar_uv(triangles)
    for array in arrays:
        array.setflags(write=False)  # shared between worlds
    return arrays


_kept_mesh = lru_cache(maxsize=512)(_mesh)
"""The same for shapes that their arguments tell all about: a process makes the robot's but once."""


def _paint(world: Drawn, body: str, link: int, index: int) -> tuple[looks.RGB, str]:
    look = world.appearance.look
    if body in look.blocks:
        return look.blocks[body], ""
    if body == "plane":
        return look.floor, "floor"
    if body in ("robot", "pedestal"):
        if link in (*FINGERS, FINGERS[0] + 1, FINGERS[1] + 1):
            return looks.FINGER, ""
        return (looks.HAND if link >= 8 else looks.ROBOT), ""
    name = world.table.links[link]
    if name == "slide_link":
        return (look.door, "wood") if index == 0 else (look.handle, "")
    if name == "drawer_link":
        return (look.drawer, "wood") if index < 5 else (look.handle, "")
    plain = {
        "button_link": look.button,
        "switch_link": look.lever,
        "led_link": looks.LIGHT_OFF,
        "light_link": looks.LIGHT_OFF,
    }
    if name in plain:
        return plain[name], ""
    return look.base, "wood"


def _triangles(kind: int, dimensions: tuple[float, ...], filename: str) -> np.ndarray:
    if kind == p.GEOM_BOX:
        return _box(np.array(dimensions))
    if kind == p.GEOM_CYLINDER:
        return _revolved([(dimensions[1], -dimensions[0] / 2), (dimensions[1], dimensions[0] / 2)], 24)
    if kind == p.GEOM_SPHERE:
        angles = np.linspace(-np.pi / 2, np.pi / 2, 9)
        return _revolved([(dimensions[0] * np.cos(a), dimensions[0] * np.sin(a)) for a in angles[1:-1]], 16)
    if kind == p.GEOM_MESH:
        return thinned(read_obj(Path(filename)) * np.array(dimensions))
    raise ValueError(f"visual shape of pybullet kind {kind} cannot be drawn")


def read_obj(path: Path) -> np.ndarray:
    """The triangles (F, 3, 3) of a Wavefront OBJ file; polygons are fanned."""
    vertices: list[list[float]] = []
    faces: list[tuple[int, int, int]] = []
    for line in path.read_text().splitlines():
        words = line.split()
        if words[:1] == ["v"]:
            vertices.append([float(w) for w in words[1:4]])
        elif words[:1] == ["f"]:
            corners = [int(w.split("/")[0]) for w in words[1:]]
            corners = [c - 1 if c > 0 else len(vertices) + c for c in corners]
            faces += [(corners[0], corners[i], corners[i + 1]) for i in range(1, len(corners) - 1)]
    return np.array(vertices)[np.array(faces)]


def thinned(triangles: np.ndarray) -> np.ndarray:
    """The mesh of triangles (F, 3, 3) with `MOST_TRIANGLES` of them, or as many more as it takes to keep its shape.

    Corners in one cell of `WELD` become one first: a mesh of several shells would else come apart where they meet.
    """
    if len(triangles) <= MOST_TRIANGLES:
        return triangles
    corners = triangles.reshape(-1, 3)
    _, place, count = np.unique((corners / WELD).round(), axis=0, return_inverse=True, return_counts=True)
    faces = place.reshape(-1, 3)
    vertices = np.stack([np.bincount(faces.ravel(), axis) for axis in corners.T], axis=1) / count[:, None]
    faces = faces[[len(set(face)) == 3 for face in faces.tolist()]]
    vertices, faces = fast_simplification.simplify(
        vertices.astype(np.float32), faces.astype(np.int32), target_count=MOST_TRIANGLES, agg=CAREFUL
    )
    return vertices[faces].astype(float)


def _box(size: np.ndarray) -> np.ndarray:
    corners = np.array([(x, y, z) for x in (-0.5, 0.5) for y in (-0.5, 0.5) for z in (-0.5, 0.5)]) * size
    quads = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)]
    return np.array([corners[[a, b, c]] for q in quads for a, b, c in ((q[0], q[1], q[2]), (q[0], q[2], q[3]))])


def _revolved(profile: list[tuple[float, float]], sides: int) -> np.ndarray:
    """A solid of revolution about z from (radius, height) pairs going up, closed at both ends."""
    turn = 2 * np.pi * np.arange(sides) / sides
    rings = np.array([[(r * np.cos(a), r * np.sin(a), z) for a in turn] for r, z in profile])
    faces = []
    for lower, upper in pairwise(rings):
        for i in range(sides):
            j = (i + 1) % sides
            faces += [(lower[i], lower[j], upper[j]), (lower[i], upper[j], upper[i])]
    for ring, up in ((rings[0], False), (rings[-1], True)):
        centre = ring.mean(axis=0)
        for i in range(sides):
            pair = (ring[i], ring[(i + 1) % sides])
            faces.append((centre, *(pair if up else pair[::-1])))
    return np.array(faces)


def corner_normals(triangles: np.ndarray, crease: float) -> np.ndarray:
    """Unit normals (F, 3, 3) at the corners of triangles (F, 3, 3).

    Each is the mean of the faces that meet there at less than the crease angle (rad), larger faces counting more.
    """
    areas = np.cross(triangles[:, 1] - triangles[:, 0], triangles[:, 2] - triangles[:, 0])
    faces = areas / np.maximum(np.linalg.norm(areas, axis=1, keepdims=True), 1e-12)
    _, place = np.unique(triangles.reshape(-1, 3).round(6), axis=0, return_inverse=True)
    place = place.reshape(-1, 3)
    meeting: dict[int, list[int]] = {}
    for face, corners in enumerate(place):
        for corner in corners:
            meeting.setdefault(int(corner), []).append(face)
    normals = np.repeat(faces[:, None], 3, axis=1)
    for face, corners in enumerate(place):
        for index, corner in enumerate(corners):
            around = meeting[int(corner)]
            alike = faces[around] @ faces[face] > np.cos(crease)
            total = areas[around][alike].sum(axis=0)
            if np.linalg.norm(total) > 0:
                normals[face, index] = total / np.linalg.norm(total)
    return normals


def _planar_uv(triangles: np.ndarray) -> np.ndarray:
    """Texture coordinates by looking at each triangle along its main axis; the longer side of the rest is u."""
    normals = np.abs(np.cross(triangles[:, 1] - triangles[:, 0], triangles[:, 2] - triangles[:, 0]))
    uv = np.empty((len(triangles), 3, 2))
    extent = np.ptp(triangles.reshape(-1, 3), axis=0)
    for face, axis in enumerate(normals.argmax(axis=1)):
        first, second = (a for a in range(3) if a != axis)
        if extent[second] > extent[first]:
            first, second = second, first
        uv[face] = triangles[face][:, [first, second]]
    return uv
