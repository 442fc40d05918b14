"""Builds the URDFs of table, blocks and robot: our own primitives, and pybullet_data's Panda with CALVIN's tool.

Link and joint names, and their order, are CALVIN's, because scene_obs and the oracle refer to them. The arm is
pybullet_data's (Apache-2.0), drawn with its low-poly collision meshes; fingers, finger tips, tool frame and gripper
camera are CALVIN's dimensions as boxes (CALVIN SPEC 1.5).
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from calvin_eval.worlds.playtable.scenes import BUTTON_TRAVEL, DRAWER_TRAVEL, SWITCH_TRAVEL, SceneGeometry

Box = tuple[Sequence[float], Sequence[float]]
"""Low and high corner (m)."""

BACK, FRONT = 0.18, -0.18
SLOPE = float(np.tan(np.radians(30.0)))
"""The cabinet's front leans back by this much per metre of height."""


def write_table(folder: Path, scene: SceneGeometry) -> Path:
    """Writes the play table of a scene and returns its URDF's path."""
    robot = ET.Element("robot", name="play_table")
    base = _link(robot, "base_link", mass=0.0)
    for low, high in _base_boxes(scene):
        _add_box(base, low, high)
    opening = scene.cabinet_opening
    for name, span in (("left", (-0.44, opening[0])), ("right", (opening[1], 0.44))):
        _add_mesh(base, _write_wedge(folder / f"wedge_{name}.obj", span))
    _add_cylinder(base, radius=0.035, length=0.02, centre=(*scene.button[:2], 0.45))

    button = _link(robot, "button_link", mass=0.1538)
    _add_cylinder(button, radius=0.032, length=0.024, centre=(0, 0.012, 0), roll=np.pi / 2)
    _joint(robot, "base__button", "button_link", scene.button, 1.5708, axis=(0, -1, 0), upper=BUTTON_TRAVEL)

    switch = _link(robot, "switch_link", mass=0.2388)
    for box in (
        ((-0.0603, 0, -0.0242), (-0.0396, 0.0643, 0.008)),
        ((0.0386, 0, -0.0242), (0.0602, 0.0643, 0.008)),
        ((-0.0396, 0.0416, -0.0242), (0.0386, 0.0643, 0.008)),
    ):
        _add_box(switch, *box)
    _joint(robot, "base__switch", "switch_link", scene.switch, 2.618, axis=(0, 0, -1), upper=SWITCH_TRAVEL)

    slide = _link(robot, "slide_link", mass=1.5435)
    for box in (
        ((0, -0.1206, 0), (0.2806, 0.1203, 0.0219)),
        ((0.1192, -0.0803, 0.0219), (0.1608, -0.0577, 0.0801)),
        ((0.1192, 0.0577, 0.0219), (0.1608, 0.0803, 0.0801)),
        ((0.1192, -0.0577, 0.0565), (0.1608, 0.0577, 0.0801)),
    ):
        _add_box(slide, *box)
    _joint(robot, "base__slide", "slide_link", scene.slide, 1.0472, axis=(-1, 0, 0), upper=scene.slide_limit)

    drawer = _link(robot, "drawer_link", mass=4.2313)
    for box in (
        ((-0.2209, -0.0209, 0.1574), (0.2209, 0.0812, 0.182)),
        ((-0.2015, -0.0015, -0.0609), (0.2015, 0.0812, -0.038)),
        ((-0.2015, -0.0015, -0.038), (-0.1769, 0.0812, 0.1574)),
        ((0.1769, -0.0015, -0.038), (0.2015, 0.0812, 0.1574)),
        ((-0.1769, -0.0015, -0.038), (0.1769, 0.0224, 0.1574)),  # floor, as the plank
        ((0.0959, 0.0196, 0.182), (0.1206, 0.0618, 0.2612)),
        ((-0.1206, 0.0196, 0.182), (-0.0959, 0.0618, 0.2612)),
        ((-0.0959, 0.0196, 0.2383), (0.0959, 0.0601, 0.2612)),
    ):
        _add_box(drawer, *box)
    _joint(
        robot,
        "base__drawer",
        "drawer_link",
        (scene.drawer_x, 0, 0.32),
        1.5708,
        axis=(0, 0, 1),
        upper=DRAWER_TRAVEL,
    )

    led = _link(robot, "led_link", mass=0.204)
    _add_box(led, (-0.08, 0, -0.02), (0.08, 0.016, 0.02))
    _joint(robot, "base__led", "led_link", scene.led, 1.5708)
    light = _link(robot, "light_link", mass=0.1739)
    _add_sphere(light, radius=0.028, centre=(0, 0.022, -0.028))
    _joint(robot, "base__light", "light_link", scene.bulb, 1.5708)
    plank = _link(robot, "plank_link", mass=2.8438)
    # Plank and drawer floor are a millimetre thicker than they look: that much higher do blocks rest there in CALVIN.
    _add_box(plank, (-0.26, 0, -0.07), (0.26, 0.021, 0.07))
    centre = 0.5 * (opening[0] + opening[1])
    _joint(robot, "base__plank", "plank_link", (centre, 0.09, 0.42), 1.5708)
    return _write(robot, folder / "table.urdf")


def _base_boxes(scene: SceneGeometry) -> Iterable[Box]:
    (o0, o1), (b0, b1) = scene.cabinet_opening, scene.drawer_bay
    yield (-0.44, FRONT, 0.40), (0.44, 0.02, 0.44)  # top, in front of the cabinet
    yield (-0.44, 0.02, 0.40), (0.44, BACK, 0.42)  # floor under the plank
    yield (o0, 0.16, 0.42), (o1, BACK, 0.648)  # cabinet's back
    yield (o0, 0.137, 0.628), (o1, 0.16, 0.648)  # lintel
    yield (b0, -0.16, 0.30), (b1, 0.06, 0.32)  # floor of the drawer's bay
    yield (b0, 0.06, 0.30), (b1, 0.16, 0.40)  # back of the bay
    yield (-0.40, -0.16, 0.30), (b0, 0.16, 0.40)  # housing left of the bay
    yield (b1, -0.16, 0.30), (0.40, 0.16, 0.40)  # and right of it
    for x in (-0.44, 0.40):
        for y in (-0.18, 0.148):
            yield (x, y, 0.0), (x + 0.04, y + 0.032, 0.40)  # legs


def _write_wedge(path: Path, span: tuple[float, float]) -> Path:
    """The solid beside the cabinet's opening: a prism along x with a sloping front."""
    low, high = 0.42, 0.648
    profile = [
        (0.0198, low),
        (BACK, low),
        (BACK, high),
        (0.0198 + (high - 0.44) * SLOPE, high),
        (0.0198, 0.44),
    ]
    count = len(profile)
    vertices = [(x, y, z) for x in span for y, z in profile]
    faces = [list(range(count)), list(range(2 * count - 1, count - 1, -1))]
    faces += [[i, i + count, (i + 1) % count + count, (i + 1) % count] for i in range(count)]
    lines = [f"v {x:.5f} {y:.5f} {z:.5f}" for x, y, z in vertices]
    for face in faces:
        lines += [f"f {face[0] + 1} {face[i + 1] + 1} {face[i] + 1}" for i in range(1, len(face) - 1)]
    path.write_text("\n".join(lines) + "\n")
    return path


def write_block(folder: Path, name: str, size: np.ndarray) -> Path:
    """Writes a block of a size (3,) in metres and returns its URDF's path."""
    robot = ET.Element("robot", name=name)
    link = _link(robot, "base_link", mass=1.0)
    contact = ET.SubElement(link, "contact")
    ET.SubElement(contact, "lateral_friction", value="0.7")
    ET.SubElement(contact, "spinning_friction", value="0.001")
    _add_box(link, -0.5 * size, 0.5 * size)
    return _write(robot, folder / f"{name}.urdf")


def write_plane(folder: Path) -> Path:
    """Writes the floor and returns its URDF's path."""
    robot = ET.Element("robot", name="plane")
    link = _link(robot, "base_link", mass=0.0)
    contact = ET.SubElement(link, "contact")
    ET.SubElement(contact, "lateral_friction", value="1.0")
    collision = ET.SubElement(link, "collision")
    ET.SubElement(collision, "origin", xyz="0 0 -5", rpy="0 0 0")
    ET.SubElement(ET.SubElement(collision, "geometry"), "box", size="200 200 10")
    visual = ET.SubElement(link, "visual")
    ET.SubElement(visual, "origin", xyz="0 0 -0.01", rpy="0 0 0")
    ET.SubElement(ET.SubElement(visual, "geometry"), "box", size="6 6 0.02")
    return _write(robot, folder / "plane.urdf")


def write_robot(folder: Path, panda: Path) -> Path:
    """Writes CALVIN's Panda from pybullet_data's (the path of its panda.urdf) and returns the new URDF's path."""
    robot = ET.parse(panda).getroot()
    for mesh in robot.iter("mesh"):
        name = Path(mesh.attrib["filename"]).name
        mesh.attrib["filename"] = str(panda.parent / "meshes" / "collision" / name)
    links = {link.attrib["name"]: link for link in robot.findall("link")}
    for side, sign in (("left", 1.0), ("right", -1.0)):
        finger = links[f"panda_{side}finger"]
        for part in [*finger.findall("visual"), *finger.findall("collision")]:
            finger.remove(part)
        for low, high in (((0.0062, 0.0), (0.027, 0.034)), ((0.0039, 0.034), (0.0115, 0.0964))):
            ys = sorted((sign * low[0], sign * high[0]))
            _add_box(finger, (-0.0105, ys[0], low[1]), (0.0105, ys[1], high[1]))
    _extra_link(robot, "gripper_cam", "panda_hand", "camera_joint", (-0.1, 0, 0), (1.3, 0, -1.57), mass=0.2)
    camera = robot.findall("link")[-1]
    _add_box(camera, (-0.04, -0.0125, -0.005), (0.04, 0.0125, 0.005), collides=False)
    _extra_link(robot, "tcp", "panda_hand", "tcp_joint", (0, 0, 0.14), (0, 0, 0), mass=0.00001)
    for side, sign in (("left", 1.0), ("right", -1.0)):
        joint = f"joint_finger_tip_{side}"
        _extra_link(
            robot,
            f"finger_{side}_tip",
            f"panda_{side}finger",
            joint,
            (0, sign * 0.004, 0.083),
            (0, 0, 0),
            mass=0.0001,
        )
        tip = robot.findall("link")[-1]
        contact = ET.SubElement(tip, "contact")
        ET.SubElement(contact, "lateral_friction", value="1.0")
        ET.SubElement(contact, "spinning_friction", value="0.001")
        ys = sorted((-sign * 0.003, sign * 0.001))
        _add_box(tip, (-0.0085, ys[0], -0.013), (0.0085, ys[1], 0.013))
    return _write(robot, folder / "panda.urdf")


def _extra_link(
    robot: ET.Element,
    name: str,
    parent: str,
    joint: str,
    xyz: Sequence[float],
    rpy: Sequence[float],
    mass: float,
) -> None:
    link = ET.SubElement(robot, "link", name=name)
    inertial = ET.SubElement(link, "inertial")
    ET.SubElement(inertial, "mass", value=str(mass))
    ET.SubElement(inertial, "inertia", ixx="0.1", ixy="0", ixz="0", iyy="0.1", iyz="0", izz="0.1")
    element = ET.SubElement(robot, "joint", name=joint, type="fixed")
    ET.SubElement(element, "parent", link=parent)
    ET.SubElement(element, "child", link=name)
    ET.SubElement(element, "origin", xyz=_numbers(xyz), rpy=_numbers(rpy))


def _link(robot: ET.Element, name: str, mass: float) -> ET.Element:
    link = ET.SubElement(robot, "link", name=name)
    inertial = ET.SubElement(link, "inertial")
    ET.SubElement(inertial, "mass", value=str(mass))
    ET.SubElement(inertial, "inertia", ixx="0.01", ixy="0", ixz="0", iyy="0.01", iyz="0", izz="0.01")
    return link


def _joint(
    robot: ET.Element,
    name: str,
    child: str,
    xyz: Sequence[float] | np.ndarray,
    roll: float,
    axis: Sequence[float] | None = None,
    upper: float = 0.0,
) -> None:
    """A sliding joint along an axis, or a fixed one without."""
    joint = ET.SubElement(robot, "joint", name=name, type="prismatic" if axis else "fixed")
    ET.SubElement(joint, "parent", link="base_link")
    ET.SubElement(joint, "child", link=child)
    ET.SubElement(joint, "origin", xyz=_numbers(xyz), rpy=f"{roll} 0 0")
    if axis:
        ET.SubElement(joint, "axis", xyz=_numbers(axis))
        ET.SubElement(joint, "limit", lower="0", upper=str(upper), effort="100", velocity="10")


def _add_box(
    link: ET.Element,
    low: Sequence[float] | np.ndarray,
    high: Sequence[float] | np.ndarray,
    *,
    collides: bool = True,
) -> None:
    size, centre = np.subtract(high, low), 0.5 * np.add(high, low)
    _add_shape(link, ET.Element("box", size=_numbers(size)), centre, collides=collides)


def _add_cylinder(link: ET.Element, radius: float, length: float, centre: Sequence[float], roll: float = 0.0) -> None:
    _add_shape(link, ET.Element("cylinder", radius=str(radius), length=str(length)), centre, roll)


def _add_sphere(link: ET.Element, radius: float, centre: Sequence[float]) -> None:
    _add_shape(link, ET.Element("sphere", radius=str(radius)), centre)


def _add_mesh(link: ET.Element, path: Path) -> None:
    _add_shape(link, ET.Element("mesh", filename=str(path)), (0, 0, 0))


def _add_shape(
    link: ET.Element,
    shape: ET.Element,
    centre: Sequence[float] | np.ndarray,
    roll: float = 0.0,
    *,
    collides: bool = True,
) -> None:
    for kind in ("visual", "collision") if collides else ("visual",):
        element = ET.SubElement(link, kind)
        ET.SubElement(element, "origin", xyz=_numbers(centre), rpy=f"{roll} 0 0")
        ET.SubElement(element, "geometry").append(shape)


def _numbers(values: Iterable[float]) -> str:
    return " ".join(f"{float(v):.8g}" for v in values)


def _write(robot: ET.Element, path: Path) -> Path:
    ET.indent(robot)  # pybullet breaks lines of more than a kilobyte, also inside a word
    ET.ElementTree(robot).write(path)
    return path
