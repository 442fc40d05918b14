"""What robots and policies say of themselves: what they see, what they measure, what an action is.

An action is a row of A numbers, made of named parts. Whoever joins a policy with a robot, a simulator or a data set
lets `PolicySpec.check` compare the two first.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import numpy as np

from calvin_eval.system.errors import UserError

Kind: TypeAlias = Literal["continuous", "binary", "categorical"]
Normalise: TypeAlias = Literal["none", "range", "deviation"]


@dataclass(frozen=True)
class ActionPart:
    """One named part of an action.

    Attributes:
        name: what it is called; errors and losses are reported under it.
        kind: continuous: `size` numbers. binary: one number, -1 or 1. categorical: one whole number
            from 0 to `choices` - 1.
        size: numbers of a continuous part.
        choices: of a categorical part.
        units: of a continuous part's numbers, one each, such as "m" or "rad"; none where they have none.
        one: what 1 stands for in the unit, for each number; none where it is 1.
        low: least command of a continuous part; None for no bound.
        high: greatest command, likewise.
        normalise: which numbers of the training data centre and scale are made of: none; range, which lays the least
            and the greatest at -1 and 1; deviation, mean and standard deviation.
        centre: normalisation of a continuous part's numbers: what is predicted is (command - centre) / scale. None
            where commands are predicted as they are. Training fills both in for the parts that need it.
        scale: likewise.
    """

    name: str
    kind: Kind = "continuous"
    size: int = 1
    choices: int = 2
    units: tuple[str, ...] = ()
    one: tuple[float, ...] = ()
    low: float | None = None
    high: float | None = None
    normalise: Normalise = "none"
    centre: tuple[float, ...] = ()
    scale: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        for name in ("units", "one", "centre", "scale"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
            if len(getattr(self, name)) not in (0, self.size):
                raise UserError(f"action part {self.name}: {name} needs one entry for each of {self.size} numbers")
        if self.size < 1 or self.choices < 2:
            raise UserError(f"action part {self.name}: size must be at least 1 and choices at least 2")
        if self.kind != "continuous" and self.size != 1:
            raise UserError(f"action part {self.name}: a {self.kind} part is one number, not {self.size}")
        if self.kind != "continuous" and (self.normalise != "none" or self.centre or self.scale):
            raise UserError(f"action part {self.name}: a {self.kind} part cannot be normalised")
        if any(value <= 0 for value in (*self.one, *self.scale)):
            raise UserError(f"action part {self.name}: one and scale must be above 0")
        if self.low is not None and self.high is not None and self.low >= self.high:
            raise UserError(f"action part {self.name}: low {self.low} is not below high {self.high}")


@dataclass(frozen=True)
class ActionSpec:
    """What an action is: its parts, whose numbers follow one another.

    Attributes:
        parts: at least one; no name twice.
    """

    parts: tuple[ActionPart, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "parts", tuple(self.parts))
        names = [part.name for part in self.parts]
        if not names or len(set(names)) != len(names):
            raise UserError(f"an action needs parts of different names, not {names}")

    @property
    def size(self) -> int:
        """A, numbers of an action."""
        return sum(part.size for part in self.parts)

    def slices(self) -> dict[str, slice]:
        """Where each part's numbers stand, by name."""
        found, first = {}, 0
        for part in self.parts:
            found[part.name] = slice(first, first + part.size)
            first += part.size
        return found

    def as_commands(self, actions: np.ndarray) -> np.ndarray:
        """Actions (..., A) float64 as they may be executed: within bounds, -1 or 1, whole numbers."""
        commands = np.array(actions, dtype=np.float64)
        for part, place in zip(self.parts, self.slices().values(), strict=True):
            values = commands[..., place]
            if part.kind == "continuous":
                if part.low is not None or part.high is not None:
                    commands[..., place] = np.clip(values, part.low, part.high)
            elif part.kind == "binary":
                commands[..., place] = np.where(values > 0, 1.0, -1.0)
            else:
                commands[..., place] = np.clip(np.rint(values), 0, part.choices - 1)
        return commands

    def problem(self, actions: np.ndarray) -> str | None:
        """What keeps actions (..., A) from being commands, in words that follow "actions"; None if nothing does."""
        if actions.shape[-1] != self.size:
            return f"of {actions.shape[-1]} numbers, where one has {self.size}"
        if not np.isfinite(actions).all():
            return "that are not finite"
        for part, place in zip(self.parts, self.slices().values(), strict=True):
            values = actions[..., place]
            if part.kind == "binary" and not np.isin(values, (-1, 1)).all():
                return f"whose {part.name} is neither -1 nor 1"
            if part.kind == "categorical" and not np.isin(values, np.arange(part.choices)).all():
                return f"whose {part.name} is no whole number from 0 to {part.choices - 1}"
        return None


@dataclass(frozen=True)
class RobotSpec:
    """What a robot, a simulator or a data set gives, and what it takes.

    Attributes:
        cameras: height and width (pixels) by name.
        state: numbers by name.
        privileged: numbers by name of what no robot could measure.
        actions: what it executes, or what was recorded.
        rate_hz: control steps a second.
    """

    cameras: Mapping[str, tuple[int, int]]
    state: Mapping[str, int]
    actions: ActionSpec
    rate_hz: float
    privileged: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class PolicySpec:
    """What a policy reads and gives.

    Attributes:
        cameras: names of those it looks through.
        state: numbers by name of the states that it reads.
        actions: what it gives.
        stride: control steps from one frame that it sees to the next.
    """

    cameras: tuple[str, ...]
    state: Mapping[str, int]
    actions: ActionSpec
    stride: int = 1

    def check(self, robot: RobotSpec, what: str) -> None:
        """Makes sure that the policy can act there.

        Args:
            robot: what there is.
            what: the name of the robot, simulator or data set, for messages.

        Raises:
            UserError: something is missing or has another size. Names it, and what is there.
        """
        if missing := [name for name in self.cameras if name not in robot.cameras]:
            there = f"has {', '.join(robot.cameras)}" if robot.cameras else "renders no images"
            raise UserError(f"the policy looks through {', '.join(missing)}, and {what} {there}")
        for name, size in self.state.items():
            if name not in robot.state:
                there = f"has {', '.join(robot.state)}" if robot.state else "measures no state"
                raise UserError(f"the policy reads the state {name} ({size} numbers), and {what} {there}")
            if robot.state[name] != size:
                raise UserError(
                    f"the policy reads {size} numbers of the state {name}, and {what} has {robot.state[name]} of it"
                )
        if _numbers(self.actions) != _numbers(robot.actions):
            raise UserError(
                f"the policy's actions are {_in_words(self.actions)}, and {what} takes {_in_words(robot.actions)}"
            )


def _numbers(spec: ActionSpec) -> list[tuple[str, int]]:
    """What each number of an action is; how continuous ones are grouped and called does not matter."""
    return [
        (part.kind, part.choices if part.kind == "categorical" else 0) for part in spec.parts for _ in range(part.size)
    ]


def _in_words(spec: ActionSpec) -> str:
    sizes = {"continuous": "{0.size} numbers", "binary": "-1 or 1", "categorical": "one of {0.choices}"}
    return ", ".join(f"{part.name} ({sizes[part.kind].format(part)})" for part in spec.parts)
