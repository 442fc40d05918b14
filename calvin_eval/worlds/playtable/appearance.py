"""How a world appears: its colours, its lights, and where the two cameras stand (CALVIN SPEC 1.6)."""

from __future__ import annotations

from dataclasses import dataclass, field

from calvin_eval.worlds.playtable.looks import LOOKS, RGB, Look

STATIC_EYE = (2.871459009488717, -2.166602199425597, 2.555159848480571)
STATIC_TARGET = (-0.026242351159453392, -0.0302329882979393, 0.3920000493526459)
STATIC_UP = (0.4041403970338857, 0.22629790978217404, 0.8862616969685161)
STATIC_FOV, GRIPPER_FOV = 10.0, 75.0
"""Opening angles (degrees)."""

Vector = tuple[float, float, float]


@dataclass(frozen=True)
class Lighting:
    """The light on everything; Panda3D's only, as TinyRenderer has its own.

    Attributes:
        ambient: what falls on every face, RGB.
        directional: strength of each further light, and where it shines to, by name.
    """

    ambient: RGB = (0.50, 0.50, 0.52)
    directional: tuple[tuple[str, float, Vector], ...] = (
        ("key", 0.52, (-0.45, 0.55, -0.9)),
        ("fill", 0.22, (0.8, 0.5, -0.3)),
    )


@dataclass(frozen=True)
class Views:
    """Where the static camera stands, and how wide both see. The gripper camera's place is the robot's.

    Attributes:
        eye, target: (3,) m, from where to where the static camera looks.
        static_fov, gripper_fov: opening angles, degrees.
    """

    eye: Vector = STATIC_EYE
    target: Vector = STATIC_TARGET
    static_fov: float = STATIC_FOV
    gripper_fov: float = GRIPPER_FOV


@dataclass(frozen=True)
class Appearance:
    """Everything that decides a picture besides the state and the geometry.

    Attributes:
        look: colours.
        lighting: lights.
        views: cameras.
    """

    look: Look
    lighting: Lighting = field(default_factory=Lighting)
    views: Views = field(default_factory=Views)


def appearance_of(scene: str) -> Appearance:
    """How a scene appears; `scene` is one of `calvin_eval.calvin.SCENES`."""
    return Appearance(LOOKS[scene])
