"""Action spaces: the actions that a head predicts, made from recorded ones and turned back into commands.

What was recorded can be predicted as it is, for any robot. The other spaces are CALVIN's, where commands are
relative actions (SPEC 1.4): numbers of 0.02 m and 0.05 rad in the world's frame, angles added
to the tool's euler angles (R = Rz Ry Rx). Actions of a chunk all refer to the robot's state at the chunk's frame, so
what was encoded is decoded exactly with what a controller knows. Shapes: ... any, K actions in a chunk.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from calvin_eval.calvin import CALVIN_ACTIONS, MAX_REL_ORN, MAX_REL_POS
from calvin_eval.specs import ActionPart, ActionSpec
from calvin_eval.system.errors import UserError
from calvin_eval.system.ranges import ABOVE_ZERO, FINITE, check_ranges

ActionKind = Literal["relative", "absolute", "tcp_relative", "recorded"]
NEED_ROBOT_OBS: tuple[ActionKind, ...] = ("absolute", "tcp_relative")
"""Kinds whose commands depend on CALVIN's robot_obs."""

TOOL_TRANSLATION, TOOL_ROTATION = math.sqrt(3.0), 3.0
"""How long a relative translation and rotation can become along an axis of the tool, in units of theirs."""


@dataclass
class Statistics:
    """What a vector is like in the training data; values are normalised as (x - centre) / scale.

    Attributes:
        centre: of each number.
        scale: likewise.
    """

    centre: tuple[float, ...]
    scale: tuple[float, ...]

    def __post_init__(self) -> None:
        self.centre, self.scale = tuple(self.centre), tuple(self.scale)
        check_ranges(self, "policy.statistics", centre=FINITE, scale=ABOVE_ZERO)
        if len(self.centre) != len(self.scale):
            raise UserError(f"statistics need equally many centres and scales: {self}")

    def normalise(self, x: Tensor) -> Tensor:
        """(..., n) -> (..., n)."""
        return (x - x.new_tensor(self.centre)) / x.new_tensor(self.scale)

    def restore(self, x: Tensor) -> Tensor:
        """The inverse of `normalise`."""
        return x * x.new_tensor(self.scale) + x.new_tensor(self.centre)


SMALLEST_SCALE = 1e-6
"""What changes less than that in the training data counts as constant."""


def _with_sizes(one: tuple[float, ...]) -> ActionSpec:
    """CALVIN's actions with another length and angle for 1 in each number of the pose."""
    pose, gripper = CALVIN_ACTIONS.parts
    return ActionSpec((replace(pose, one=one), gripper))


class ActionSpace(ABC):
    """The coordinates in which a head predicts actions.

    CALVIN's change the pose, whose numbers lie in [-1, 1]; the gripper is -1 or 1 everywhere.

    Attributes:
        spec: what a predicted action is.
        commands: what a command is.
    """

    spec: ActionSpec = CALVIN_ACTIONS
    commands: ActionSpec = CALVIN_ACTIONS

    @abstractmethod
    def encode(self, actions: Tensor, robot_obs: Tensor | None) -> Tensor:
        """Recorded actions (..., K, A), CALVIN's robot states (..., 15) -> actions to predict (..., K, A).

        The kinds in `NEED_ROBOT_OBS` need the states.
        """

    @abstractmethod
    def decode(self, values: Tensor, robot_obs: Tensor | None) -> Tensor:
        """Predicted actions (..., K, A), CALVIN's robot states (..., 15) -> commands (..., K, A).

        What is predicted may be soft (see `roboflamingo.heads.Actions.soft`); what comes out then is so too.
        """


class Recorded(ActionSpace):
    """The actions of any robot as they were recorded; what is normalised, their specification says.

    Args:
        spec: of the data set, with statistics for the parts that need them.
    """

    def __init__(self, spec: ActionSpec) -> None:
        self.spec = self.commands = spec

    def encode(self, actions: Tensor, robot_obs: Tensor | None) -> Tensor:
        """Nothing changes."""
        return actions

    def decode(self, values: Tensor, robot_obs: Tensor | None) -> Tensor:
        """Nothing changes."""
        return values


class Relative(ActionSpace):
    """CALVIN's relative actions as they are."""

    def encode(self, actions: Tensor, robot_obs: Tensor | None) -> Tensor:
        """Nothing changes."""
        return actions

    def decode(self, values: Tensor, robot_obs: Tensor | None) -> Tensor:
        """Nothing changes."""
        return values


class ToolRelative(ActionSpace):
    """Relative motion in the tool's own frame, scaled so that it fits into [-1, 1].

    RoboFlamingo's conversion reads the angles in another order (R = Rx Ry Rz), which is not the tool's frame.
    """

    spec = _with_sizes((MAX_REL_POS * TOOL_TRANSLATION,) * 3 + (MAX_REL_ORN * TOOL_ROTATION,) * 3)

    def encode(self, actions: Tensor, robot_obs: Tensor | None) -> Tensor:
        """World -> tool."""
        angles = _needed(robot_obs)[..., None, 3:6].expand_as(actions[..., 3:6])
        tool = euler_to_matrix(angles)
        translation = (tool.mT @ actions[..., :3, None]).squeeze(-1) / TOOL_TRANSLATION
        turned = tool.mT @ euler_to_matrix(angles + MAX_REL_ORN * actions[..., 3:6])
        rotation = matrix_to_euler(turned) / (MAX_REL_ORN * TOOL_ROTATION)
        return torch.cat([translation, rotation, actions[..., 6:]], dim=-1)

    def decode(self, values: Tensor, robot_obs: Tensor | None) -> Tensor:
        """Tool -> world."""
        angles = _needed(robot_obs)[..., None, 3:6].expand_as(values[..., 3:6])
        tool = euler_to_matrix(angles)
        translation = (tool @ (TOOL_TRANSLATION * values[..., :3, None])).squeeze(-1)
        turned = tool @ euler_to_matrix(MAX_REL_ORN * TOOL_ROTATION * values[..., 3:6])
        rotation = wrap(matrix_to_euler(turned) - angles) / MAX_REL_ORN
        return torch.cat([translation, rotation, values[..., 6:]], dim=-1)


class Absolute(ActionSpace):
    """The tool's pose to go to, normalised by the training data's range.

    Args:
        statistics: of position 3 and euler angles 3; angles are taken as the way from the centre.
    """

    def __init__(self, statistics: Statistics) -> None:
        self._statistics = statistics
        self.spec = _with_sizes(statistics.scale)

    def encode(self, actions: Tensor, robot_obs: Tensor | None) -> Tensor:
        """Poses -> [-1, 1]."""
        centre = actions.new_tensor(self._statistics.centre)
        away = actions[..., :6] - centre
        pose = torch.cat([away[..., :3], wrap(away[..., 3:])], dim=-1) / actions.new_tensor(self._statistics.scale)
        return torch.cat([pose, actions[..., 6:]], dim=-1)

    def poses(self, values: Tensor) -> Tensor:
        """The inverse of `encode`, angles in [-pi, pi)."""
        pose = self._statistics.restore(values[..., :6])
        return torch.cat([pose[..., :3], wrap(pose[..., 3:]), values[..., 6:]], dim=-1)

    def decode(self, values: Tensor, robot_obs: Tensor | None) -> Tensor:
        """The way from each pose of the chunk to the next, the first from where the tool is, as far as commands go."""
        poses = self.poses(values)
        before = torch.cat([_needed(robot_obs)[..., None, :6], poses[..., :-1, :6]], dim=-2)
        translation = (poses[..., :3] - before[..., :3]) / MAX_REL_POS
        rotation = wrap(poses[..., 3:6] - before[..., 3:]) / MAX_REL_ORN
        return torch.cat([translation.clamp(-1, 1), rotation.clamp(-1, 1), poses[..., 6:]], dim=-1)


def action_space(
    kind: ActionKind, statistics: Statistics | None = None, parts: Sequence[ActionPart] = ()
) -> ActionSpace:
    """The action space of that name.

    Args:
        kind: the name.
        statistics: of absolute actions.
        parts: of recorded actions.

    Raises:
        UserError: absolute actions without statistics, or recorded ones without parts.
    """
    if kind == "absolute":
        if statistics is None:
            raise UserError("absolute actions need statistics: policy.statistics has no `actions`")
        return Absolute(statistics)
    if kind == "recorded":
        if not parts:
            raise UserError("recorded actions need policy.action_parts; training takes them from the data set")
        return Recorded(ActionSpec(tuple(parts)))
    return ToolRelative() if kind == "tcp_relative" else Relative()


def taken_over(spec: ActionSpec) -> ActionSpec:
    """A data set's actions as a policy takes them over: numbers without known bounds are normalised."""

    def of(part: ActionPart) -> ActionPart:
        known = part.kind != "continuous" or part.normalise != "none" or None not in (part.low, part.high)
        return part if known else replace(part, normalise="deviation")

    return ActionSpec(tuple(map(of, spec.parts)))


def with_action_statistics(spec: ActionSpec, actions: Tensor | None) -> ActionSpec:
    """The same specification with centre and scale for the parts that are normalised by training data and have none.

    A number that never changes is centred, and its scale is 1.

    Args:
        spec: of the recorded actions.
        actions: all of them, (N, A); None for centre 0 and scale 1, which stand in until there are data.
    """
    parts = []
    for part, place in zip(spec.parts, spec.slices().values(), strict=True):
        if part.normalise == "none" or (part.centre and part.scale):
            parts.append(part)
            continue
        if actions is None:
            centre, scale = torch.zeros(part.size), torch.ones(part.size)
        elif part.normalise == "range":
            low, high = actions[:, place].double().aminmax(dim=0)
            centre, scale = (low + high) / 2, (high - low) / 2
        else:
            numbers = actions[:, place].double()
            centre, scale = numbers.mean(0), numbers.std(0, correction=0)
        scale = torch.where(scale > SMALLEST_SCALE, scale, torch.ones_like(scale))
        parts.append(replace(part, centre=tuple(centre.tolist()), scale=tuple(scale.tolist())))
    return ActionSpec(tuple(parts))


def pose_statistics(poses: Tensor) -> Statistics:
    """The middle and half the range of tool poses (N, 6 or more); angles around their mean direction."""
    angles = poses[:, 3:6]
    mean = torch.atan2(angles.sin().mean(0), angles.cos().mean(0))
    centred = torch.cat([poses[:, :3], wrap(angles - mean)], dim=-1)
    low, high = centred.amin(0), centred.amax(0)
    centre = (low + high) / 2
    scale = ((high - low) / 2).clamp(min=1e-3)
    centre = torch.cat([centre[:3], wrap(centre[3:] + mean)])
    return Statistics(tuple(centre.tolist()), tuple(scale.tolist()))


def vector_statistics(values: Tensor) -> Statistics:
    """Mean and standard deviation of vectors (N, n); one that never changes is left as it is."""
    scale = values.std(0, correction=0)
    scale = torch.where(scale > SMALLEST_SCALE, scale, torch.ones_like(scale))
    return Statistics(tuple(values.mean(0).tolist()), tuple(scale.tolist()))


def _needed(robot_obs: Tensor | None) -> Tensor:
    if robot_obs is None:
        raise UserError("policy.actions absolute and tcp_relative need CALVIN's robot_obs, and there is none")
    return robot_obs


def wrap(angles: Tensor) -> Tensor:
    """Angles (rad) into [-pi, pi)."""
    return torch.remainder(angles + math.pi, 2 * math.pi) - math.pi


def euler_to_matrix(angles: Tensor) -> Tensor:
    """Angles about x, y, z (..., 3) -> Rz Ry Rx (..., 3, 3), as pybullet has it."""
    (sx, sy, sz), (cx, cy, cz) = angles.sin().unbind(-1), angles.cos().unbind(-1)
    rows = [
        torch.stack([cz * cy, cz * sy * sx - sz * cx, cz * sy * cx + sz * sx], dim=-1),
        torch.stack([sz * cy, sz * sy * sx + cz * cx, sz * sy * cx - cz * sx], dim=-1),
        torch.stack([-sy, cy * sx, cy * cx], dim=-1),
    ]
    return torch.stack(rows, dim=-2)


def matrix_to_euler(matrix: Tensor) -> Tensor:
    """The inverse of `euler_to_matrix`, pitch in [-pi/2, pi/2]."""
    x = torch.atan2(matrix[..., 2, 1], matrix[..., 2, 2])
    y = torch.asin((-matrix[..., 2, 0]).clamp(-1, 1))
    z = torch.atan2(matrix[..., 1, 0], matrix[..., 0, 0])
    return torch.stack([x, y, z], dim=-1)
