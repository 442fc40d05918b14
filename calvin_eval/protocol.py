"""The contract that simulators, policies and the benchmark keep.

Everything in this package (oracle, chains, recorder, evaluator, demonstrators) and every policy sees a
robot only through the types below, so another simulator, a real robot or somebody else's policy plugs in
by providing them. This module imports nothing but numpy; the rest of the package needs more (see setup.py).

Units are metres, radians and seconds; quaternions are (x, y, z, w). Shapes: B episodes, K actions in a chunk.

Non-obvious behaviours
    - Actions are relative and in units of 0.02 m and 0.05 rad; the environment adds them to its *target*
      pose, not to the measured one (CALVIN SPEC 1.4), so a blocked arm winds up unless the caller holds back.
    - Chunks are executed whole: whoever runs a policy executes all K actions that `Policy.act` returned before
      it observes again. How many of its predicted actions a policy gives away is the policy's own choice.
    - `render=False` leaves images out, for callers who only need the state.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, TypeAlias

import numpy as np

from calvin_eval.system.errors import UserError

CONTROL_RATE_HZ = 30
ACTION_SIZE = 7
"""dx, dy, dz, droll, dpitch, dyaw in [-1, 1], then the gripper: -1 close, +1 open."""
MAX_REL_POS = 0.02
"""Metres that a relative translation of 1 stands for."""
MAX_REL_ORN = 0.05
"""Radians that a relative rotation of 1 stands for."""

SCENES = ("A", "B", "C", "D")
BLOCKS = ("block_red", "block_blue", "block_pink")
DOORS = ("base__slide", "base__drawer")
LIGHTS = ("lightbulb", "led")

STATIC, GRIPPER = "rgb_static", "rgb_gripper"
"""CALVIN's cameras: the one that looks at the whole table, and the one on the hand."""
ROBOT_OBS, SCENE_OBS = "robot_obs", "scene_obs"
"""CALVIN's states: of the robot, and of the table (privileged)."""


@dataclass(frozen=True)
class Observation:
    """What is known at one control step. Arrays go by name; which names there are, the environment says.

    Attributes:
        images: (H, W, 3) uint8 by camera; none where nothing was rendered. CALVIN: `rgb_static` (200, 200, 3) and
            `rgb_gripper` (84, 84, 3), or the sizes asked of the simulator.
        state: (n,) floats by name. CALVIN: `robot_obs` (15,): tool position 3, euler xyz 3, finger opening 1, arm
            joints 7, last gripper command 1 (CALVIN SPEC 1.2).
        privileged: the same for what no robot could measure; only demonstrators, oracle and auxiliary losses read it.
            CALVIN: `scene_obs` (24,): slide, drawer, button, switch, lightbulb, led, then position and euler xyz of
            three blocks **in the scene's own block order** (CALVIN SPEC 1.3).
    """

    images: Mapping[str, np.ndarray] = field(default_factory=dict)
    state: Mapping[str, np.ndarray] = field(default_factory=dict)
    privileged: Mapping[str, np.ndarray] = field(default_factory=dict)


def calvin_observation(
    rgb_static: np.ndarray | None,
    rgb_gripper: np.ndarray | None,
    robot_obs: np.ndarray,
    scene_obs: np.ndarray | None = None,
    **state: np.ndarray,
) -> Observation:
    """An observation under CALVIN's names.

    Args:
        rgb_static: (H, W, 3) uint8, or None where it was not rendered.
        rgb_gripper: likewise.
        robot_obs: (15,).
        scene_obs: (24,), or None where nobody knows it.
        state: what else is measured, by name: force, tactile features ...
    """
    images = {STATIC: rgb_static, GRIPPER: rgb_gripper}
    return Observation(
        {name: image for name, image in images.items() if image is not None},
        {ROBOT_OBS: robot_obs, **state},
        {} if scene_obs is None else {SCENE_OBS: scene_obs},
    )


class Contact(NamedTuple):
    """One touching partner: the other body and its link, by name, as ("table", "plank_link").

    The robot is "robot", the play table "table", blocks go by their names of `BLOCKS`; a body's root link is
    "base_link". A simulator may name its other bodies as it likes as long as the names differ.
    """

    body: str
    link: str


@dataclass(frozen=True)
class BlockState:
    """A movable block: pose, velocities and what it touches.

    Attributes:
        position: (3,) m. orientation: (4,) quaternion xyzw.
        linear_velocity: (3,) m/s. angular_velocity: (3,) rad/s.
        contacts: every (body, link) that has a contact point with it, speculative ones (distance > 0) included.
    """

    position: np.ndarray
    orientation: np.ndarray
    linear_velocity: np.ndarray
    angular_velocity: np.ndarray
    contacts: frozenset[Contact]


@dataclass(frozen=True)
class Info:
    """What the oracle reads: the privileged state of one moment.

    Attributes:
        scene: one of `SCENES`.
        doors: joint positions (m) of `DOORS`.
        lights: 0 or 1 for each of `LIGHTS`.
        blocks: the state of each of `BLOCKS`.
        robot_contacts: every (body, link) that touches the robot.
    """

    scene: str
    doors: Mapping[str, float]
    lights: Mapping[str, int]
    blocks: Mapping[str, BlockState]
    robot_contacts: frozenset[Contact]


class Env(Protocol):
    """A simulator or robot that executes relative actions at 30 Hz."""

    @property
    def scene(self) -> str:
        """One of `SCENES`."""

    @property
    def renderer(self) -> str:
        """The name of what draws the images, for result files."""

    def reset(
        self,
        robot_obs: np.ndarray | None = None,
        scene_obs: np.ndarray | None = None,
        *,
        render: bool = True,
    ) -> Observation:
        """Puts robot (15,) and scene (24,) into the given state; without one, into the default state."""

    def step(self, action: np.ndarray, *, render: bool = True) -> Observation:
        """Executes one action (7,) for 1/30 s. The gripper entry must be exactly -1 or 1.

        Raises:
            ValueError: wrong shape, a value that is not finite, or a gripper entry other than -1 and 1.
        """

    def observe(self) -> Observation:
        """The present observation with its images, without moving on."""

    def info(self) -> Info:
        """The state the oracle reads, as of the last reset or step."""

    def close(self) -> None:
        """Frees everything. Closing twice is fine."""


Memory: TypeAlias = Any
"""What a policy remembers of one episode; only the policy that made it looks inside."""


class Policy(Protocol):
    """Observations and an instruction in, chunks of actions out.

    A policy keeps no episode in itself: memory goes in and comes out, so that many episodes share one forward
    pass and an episode can be paused, copied or moved.

    A policy whose attribute `watches` is true (it may be missing) has a method `watch(observation, memory) -> memory`
    as well, which is called for every observation between two calls of `act`, in order.
    """

    def start(self, instruction: str) -> Memory:
        """The memory of an episode that begins now."""

    def act(
        self, observations: Sequence[Observation], memories: Sequence[Memory]
    ) -> tuple[np.ndarray, Sequence[Memory]]:
        """The next actions of B episodes, (B, K, 7), and the B memories to pass in next time.

        All K are executed before the next call. Gripper entries are exactly -1 or 1.
        """


def check_returned(actions: np.ndarray, memories: Sequence[Memory], episodes: int) -> None:
    """Refuses what a policy must not return, as an error of the policy.

    Args:
        actions: what `Policy.act` returned.
        memories: likewise.
        episodes: B, how many it was given.

    Raises:
        UserError: they are not B chunks (B, K, 7), K at least 1, finite and with gripper entries of -1 and 1; or not
            B memories.
    """
    try:
        values = np.asarray(actions, float)
    except (TypeError, ValueError) as error:
        raise UserError(f"the policy returned actions that are no array of numbers ({error}): mend its `act`") from None
    shape = values.shape
    if len(shape) != 3 or shape[0] != episodes or shape[1] < 1 or shape[2] != ACTION_SIZE:
        raise UserError(
            f"the policy returned actions of shape {shape}; "
            f"{episodes} episodes need ({episodes}, K, {ACTION_SIZE}) with K of at least 1: mend its `act`"
        )
    if len(memories) != episodes:
        raise UserError(f"the policy returned {len(memories)} memories for {episodes} episodes: mend its `act`")
    if not np.isfinite(values).all():
        raise UserError("the policy returned actions that are not finite: its weights or its `act` are broken")
    if not np.isin(values[..., -1], (-1, 1)).all():
        raise UserError("the policy returned gripper entries other than -1 (close) and 1 (open): mend its `act`")
