"""What every kind of policy is told: what it reads, how far it looks back and ahead, what it gives."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import ClassVar, Literal, TypeVar

from calvin_eval.calvin import CALVIN_ACTIONS, GRIPPER, ROBOT_OBS, SCENE_OBS, STATIC
from calvin_eval.specs import ActionPart, ActionSpec, PolicySpec, RobotSpec
from calvin_eval.system.errors import UserError
from calvin_eval.system.ranges import ABOVE_ZERO, AMOUNT, COUNT, Range, check_ranges
from roboflamingo.policy.actions import NEED_ROBOT_OBS, ActionKind, Statistics
from roboflamingo.policy.inputs import STATE_SIZES

ROBOT_OBS_SIZE, SCENE_OBS_SIZE = 15, 24
TAKEN = ("actions", "action_mask", "frame_mask", "instruction", ROBOT_OBS, SCENE_OBS)
"""Names in a batch that cannot be a camera's."""


@dataclass
class CameraConfig:
    """A camera's images as the policy is shown them. `PolicyConfig` checks the ranges, as it knows the names.

    Attributes:
        size: edge (pixels) of the square image; others are resized to it.
        shift: largest random shift (pixels) of training images.
    """

    size: int = 96
    shift: int = 3


@dataclass(frozen=True)
class ActingConfig:
    """How the policy acts where nobody says otherwise: what `evaluate` and `watch` take as their defaults.

    Nothing in training depends on it, so it is no part of what makes a policy the one that it is
    (`roboflamingo.weights.acting.identity`).

    Attributes:
        execute: E, actions executed of each predicted chunk; None where none was chosen, which is closed loop.
        leash: how far (m) the target pose may lead the measured one; None for no bound. Training takes it from the data
            sets if all of them were collected with the same one.
    """

    execute: int | None = None
    leash: float | None = None

    def __post_init__(self) -> None:
        check_ranges(self, "policy.acting", execute=COUNT, leash=ABOVE_ZERO)


def calvin_cameras(
    static: int = 96, gripper: int = 64, static_shift: int = 3, gripper_shift: int = 3
) -> dict[str, CameraConfig]:
    """CALVIN's two cameras, with sizes and random shifts in pixels."""
    return {STATIC: CameraConfig(static, static_shift), GRIPPER: CameraConfig(gripper, gripper_shift)}


Config = TypeVar("Config", bound="BasePolicyConfig")


@dataclass
class BasePolicyConfig:
    """What every policy is told. A kind derives a dataclass from it, all of whose keys have defaults.

    Attributes:
        kind: of policy, its name in the registry (see `base.py`).
        window: T, frames that the policy sees.
        stride: control steps from one frame of the window to the next. Training fills it in from `data.stride`, so
            that acting shows the policy what training did.
        chunk: K, actions predicted at each frame.
        cameras: which ones the policy looks through, by the names that robot and data set give them, in this order:
            the images' sizes and, in training, random shifts. One part is typed as `--policy.cameras.front.size 48`.
        robot_obs: what of CALVIN's robot_obs the policy reads, prepared as suits it: none; pose (tool pose and
            opening, its first 7 numbers); full (all 15, with joints and the last gripper command).
        vectors: states of any name that the policy reads, normalised by `statistics`: a robot's joints, force ...
        actions: recorded as the data set has them, of any robot; or CALVIN's: relative ones, absolute poses, or
            tcp_relative: relative in the tool's frame.
        action_parts: what recorded actions are made of, and how each part is normalised. Training takes them from the
            data set where none are given, and fills in their centre and scale.
        statistics: of `vectors`, and of `actions` where they are absolute. Training fills them in.
        acting: E and leash with which it acts where nobody says otherwise.
    """

    RANGES: ClassVar[Mapping[str, Range]] = {"window": COUNT, "stride": COUNT, "chunk": COUNT}
    """Of the numbers of this class; a derived class has its own beside them."""

    kind: str = ""
    window: int = 1
    stride: int = 1
    chunk: int = 8
    cameras: dict[str, CameraConfig] = field(default_factory=calvin_cameras)
    robot_obs: Literal["none", "pose", "full"] = "pose"
    vectors: tuple[str, ...] = ()
    actions: ActionKind = "relative"
    action_parts: tuple[ActionPart, ...] = ()
    statistics: dict[str, Statistics] = field(default_factory=dict)
    acting: ActingConfig = field(default_factory=ActingConfig)

    def __post_init__(self) -> None:
        self.vectors, self.action_parts = tuple(self.vectors), tuple(self.action_parts)
        own = next(field.default for field in fields(self) if field.name == "kind")
        if self.kind != own:
            raise UserError(f"policy.kind is {self.kind!r}, and {type(self).__name__} is the configuration of {own!r}")
        ranges: dict[str, Range] = {}
        for cls in type(self).__mro__:
            ranges = dict(vars(cls).get("RANGES", {})) | ranges
        check_ranges(self, "policy", UserError, **ranges)
        if self.action_parts and self.actions != "recorded":
            raise UserError(f"policy.action_parts does nothing with policy.actions {self.actions}; it is of recorded")
        if (self.acting.execute or 1) > self.chunk:
            raise UserError(
                f"policy.acting.execute is {self.acting.execute}, more actions than the {self.chunk} that policy.chunk "
                "predicts"
            )
        self._check_names()
        for name, camera in self.cameras.items():
            check_ranges(camera, f"policy.cameras.{name}", size=COUNT, shift=AMOUNT)

    def _check_names(self) -> None:
        """A batch has images and states by name, so no name stands for two things."""
        if not self.cameras:
            raise UserError("policy.cameras is empty; name at least one, as {front: {size: 96, shift: 3}}")
        for name in self.cameras:
            if name in TAKEN or name in self.vectors:
                raise UserError(f"policy.cameras has {name}, which is the name of something else in the data")
        if len(set(self.vectors)) < len(self.vectors):
            raise UserError(f"policy.vectors names one twice: {', '.join(self.vectors)}")

    @property
    def seen(self) -> tuple[str, ...]:
        """The cameras that the policy looks through."""
        return tuple(self.cameras)

    @property
    def grows(self) -> bool:
        """Whether windows at an episode's start hold the frames there are, and not the first one repeated before."""
        return True

    @property
    def pretrained(self) -> bool:
        """Whether it begins with published weights, so that not everything trains unless asked for."""
        return False

    @property
    def taught_by(self) -> Mapping[str, int]:
        """Sizes of the states that only training reads, by name; the privileged ones are among them."""
        return {}

    @property
    def libraries(self) -> Mapping[str, tuple[str, str]]:
        """What else must be installed, by module: the key that needs it, and our extra that brings it."""
        return {}

    @property
    def acts_on_robot_obs(self) -> bool:
        """Whether it cannot act without CALVIN's robot_obs."""
        return self.robot_obs != "none" or self.actions in NEED_ROBOT_OBS

    @property
    def trains_on(self) -> tuple[str, ...]:
        """The states that a training batch must have, by name."""
        calvin = [ROBOT_OBS] if self.acts_on_robot_obs else []
        return tuple(dict.fromkeys([*calvin, *self.taught_by, *self.vectors]))

    @property
    def low_dimensional(self) -> int:
        """Numbers of robot_obs and vectors that the policy reads at every frame."""
        return STATE_SIZES[self.robot_obs] + sum(len(self._statistics_of(name).centre) for name in self.vectors)

    def _statistics_of(self, name: str) -> Statistics:
        if name not in self.statistics:
            raise UserError(f"policy.statistics has no {name!r}, which policy.vectors names; training fills it in")
        return self.statistics[name]

    def spec(self, robot: RobotSpec | None = None) -> PolicySpec:
        """What the policy reads and gives.

        Args:
            robot: which tells what training has yet to fill in: sizes of `vectors`, and what recorded actions are.

        Raises:
            UserError: nobody tells it.
        """
        sizes = {} if robot is None else robot.state
        state = {ROBOT_OBS: ROBOT_OBS_SIZE} if self.acts_on_robot_obs else {}
        for name in self.vectors:
            new = name not in self.statistics and name in sizes
            state[name] = sizes[name] if new else len(self._statistics_of(name).centre)
        actions = CALVIN_ACTIONS
        if self.actions == "recorded":
            known = robot is None or self.action_parts
            actions = ActionSpec(self.action_parts) if known or robot is None else robot.actions
        return PolicySpec(self.seen, state, actions, self.stride)

    def check_data(self, robot: RobotSpec, what: str) -> None:
        """Makes sure that a data set has all that training the policy reads.

        Args:
            robot: what the data set was recorded from. Training may read what is privileged; acting may not.
            what: its name, for messages.

        Raises:
            UserError: something is missing or of another size. Names it, and what is there.
        """
        states = {**robot.privileged, **robot.state}
        for name in self.vectors:
            if name not in states:
                raise UserError(f"policy.vectors names {name}, and {what} has {', '.join(states) or 'no states'}")
        robot = replace(robot, state=states)
        spec = self.spec(robot)
        if self.actions != "recorded" and _kinds(spec.actions) != _kinds(robot.actions):
            raise UserError(
                f"policy.actions {self.actions} is for actions like CALVIN's, and those of {what} are "
                f"{', '.join(part.name for part in robot.actions.parts)}: set it to recorded"
            )
        spec.check(robot, what)
        self.check_teaching(states, what)

    def check_teaching(self, states: Mapping[str, int], what: str) -> None:
        """Makes sure that a data set with these states has what only training reads.

        Raises:
            UserError: it has not. Names what is missing.
        """
        for name, size in self.taught_by.items():
            if states.get(name) != size:
                raise UserError(f"training reads {size} numbers of {name}, which {what} lacks")

    def with_words(self: Config, sentences: Iterable[str]) -> Config:
        """The same policy with what it must know of the training data's instructions before it is made."""
        return self

    def described(self) -> str:
        """What the policy is, in a few words."""
        return f"kind {self.kind}"


def _kinds(spec: ActionSpec) -> list[tuple[str, int, int]]:
    """What kinds of numbers an action has, whatever their names."""
    return [(part.kind, part.size, part.choices) for part in spec.parts]
