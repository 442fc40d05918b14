"""What is true of a play table at one moment, with names that sentences can be made of.

Frame of reference: that of one who stands where the robot stands, at the table's front edge, and looks at the cabinet.
Left is -x, right +x, in front is -y (nearer to the edge), behind +y, as CALVIN's instructions mean them. The static
camera stands in front to the right, so in its picture right is right and a little down, behind is up and right.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from calvin_eval.calvin import BLOCKS, Info
from calvin_eval.demonstrations.experts import grasp
from calvin_eval.demonstrations.experts.state import Block, State
from calvin_eval.protocol import Observation
from calvin_eval.worlds.playtable.scenes import TABLE_TOP, SceneGeometry

CAMERAS = ("static", "gripper")
TABLE, DRAWER, CABINET, GRIPPER, BLOCK, ELSEWHERE = "table", "drawer", "cabinet", "gripper", "block", "elsewhere"
PLACES = (TABLE, DRAWER, CABINET, GRIPPER, BLOCK)
"""Where a block can be; ELSEWHERE is a block that falls, leans on something, or lies on the floor."""
SEEN = {"static": (0.0007, 0.0002), "gripper": (0.004, 0.0005)}
"""Share of a picture from which a block counts as seen, and up to which as not seen. In between nothing is said."""
BULB_CENTRE, LED_CENTRE = np.array([0.0, 0.028, 0.022]), np.array([0.0, 0.0, 0.008])
"""Middle (m) of the two lights, from where they are fixed."""
BUTTON_CENTRE = np.array([0.0, 0.0, 0.012])
ABOUT_FINGERS = 0.07
"""Distance (m) from the tool to a block's middle up to which the fingers might hold it."""
GRID_ORIGIN = np.array([-0.44, -0.50, 0.30])
"""Where numbers of places count from: the table's left edge, half a metre before its middle, 30 cm high (m)."""
LARGEST = 99


@dataclass(frozen=True)
class Facts:
    """What is true at one moment.

    Attributes:
        observation: the moment itself; its images are not looked at.
        state: robot, table and blocks.
        places: where each block is: one of `PLACES` or ELSEWHERE.
        below: on which block each block of place BLOCK lies.
        held: the block between closed fingers, if any; it may still touch what it was taken from.
        unsure: whether a block that is not held is so near to the fingers, and touched by the robot, that it might be.
        shares: the share of each camera's picture that each block fills; None where nobody looked.
    """

    observation: Observation
    state: State
    places: Mapping[str, str]
    below: Mapping[str, str]
    held: str | None
    unsure: bool
    shares: Mapping[str, Mapping[str, float]] | None

    @property
    def geometry(self) -> SceneGeometry:
        """Where the fixtures are."""
        return self.state.scene

    @property
    def blocks(self) -> dict[str, Block]:
        """The blocks by name."""
        return self.state.blocks

    def seen(self, camera: str, block: str) -> bool | None:
        """Whether a camera sees a block; None where that is a matter of a few pixels, or nobody looked."""
        if self.shares is None:
            return None
        share, (enough, little) = self.shares[camera][block], SEEN[camera]
        return True if share >= enough else False if share <= little else None

    def visible(self, block: str) -> bool:
        """Whether something can be said of a block: one of the cameras sees it, or nobody looked."""
        return self.shares is None or any(self.seen(camera, block) for camera in CAMERAS)

    def told(self) -> list[str]:
        """The blocks that are visible and in a place that has a name."""
        return [name for name in BLOCKS if self.visible(name) and self.places[name] != ELSEWHERE]

    def side_in_cabinet(self, block: str) -> str | None:
        """The half of the cabinet in which a block lies, left or right; None in the middle."""
        offset = self.blocks[block].position[0] - float(np.mean(self.geometry.cabinet_opening))
        return None if abs(offset) < 0.015 else "right" if offset > 0 else "left"

    @cached_property
    def positions(self) -> dict[str, np.ndarray]:
        """Middles (3,) (m) of the fixtures that a hand or an eye looks for, by name."""
        geometry, state = self.geometry, self.state
        return {
            "door": geometry.slide_handle(state.slide),
            "drawer": geometry.drawer_bar(state.drawer),
            "button": geometry.button + BUTTON_CENTRE - np.array([0.0, 0.0, state.button]),
            "switch": geometry.switch_bar(state.switch),
            "bulb": geometry.bulb + BULB_CENTRE,
            "led": geometry.led + LED_CENTRE,
        }


def facts_of(
    geometry: SceneGeometry,
    observation: Observation,
    info: Info,
    masks: tuple[Mapping[str, np.ndarray], Mapping[str, np.ndarray]] | None = None,
) -> Facts:
    """The facts of a moment.

    Args:
        geometry: of the world.
        observation: with scene_obs.
        info: of the same moment.
        masks: what each camera sees of each body (`PlayTable.masks`).

    Raises:
        UserError: the observation carries no scene_obs.
    """
    state = State.read(observation, geometry)
    touched = {name for name, block in info.blocks.items() if any(c.body == "robot" for c in block.contacts)}
    held = next((name for name, block in state.blocks.items() if name in touched and state.held(block)), None)
    near = (name for name in touched if np.linalg.norm(state.blocks[name].position - state.tool) < ABOUT_FINGERS)
    places, below = {}, {}
    for name, block in state.blocks.items():
        supports = {contact for contact in info.blocks[name].contacts if contact.body != "robot"}
        lower = _lower(block, state)
        if not supports:
            places[name] = GRIPPER if held == name else ELSEWHERE
        elif lower is not None:
            places[name], below[name] = BLOCK, lower
        else:
            places[name] = _surface(block, geometry)
    shares = None
    if masks is not None:
        shares = {
            camera: {name: float(mask[name].mean()) for name in BLOCKS}
            for camera, mask in zip(CAMERAS, masks, strict=True)
        }
    return Facts(observation, state, places, below, held, any(name != held for name in near), shares)


def _lower(block: Block, state: State) -> str | None:
    """The block on which a block lies."""
    for other in state.others(block):
        offset = block.position - other.position
        rests = abs(offset[2] - block.half_height - other.half_height) < 0.008
        if rests and np.hypot(offset[0], offset[1]) < 0.5 * (block.size[0] + other.size[0]):
            return other.name
    return None


def _surface(block: Block, geometry: SceneGeometry) -> str:
    """What a block lies on that lies on no other one and is not held."""
    x, _, z = block.position
    low, high = geometry.cabinet_opening
    if grasp.in_drawer(block):
        inside = geometry.drawer_interior[0] < x < geometry.drawer_interior[1] and z > 0.33
        return DRAWER if inside else ELSEWHERE
    if abs(z - block.half_height - TABLE_TOP) > 0.012 or abs(x) > 0.44:
        return ELSEWHERE
    if grasp.in_cabinet(block):
        return CABINET if low < x < high else ELSEWHERE
    return TABLE


def grid(position: np.ndarray) -> tuple[int, int, int]:
    """Whole centimetres (x, y, z) of a place (3,), counted from `GRID_ORIGIN`, 0 to 99."""
    x, y, z = (int(np.clip(round(float(value)), 0, LARGEST)) for value in 100 * (position - GRID_ORIGIN))
    return x, y, z
