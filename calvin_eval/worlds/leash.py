"""Keeps the target pose of an environment near the arm.

CALVIN adds every relative action to a target that the arm then follows. Against an obstacle the target runs
away by metres (it was seen 3 m off), and the arm is stuck until a policy has undone it all. Whoever issues
relative actions can prevent that, since target and measured pose are both known to it: this wrapper shortens
actions so that the target stays within reach of the measured pose.

Non-obvious behaviours
    - What is executed is never longer than what was wanted, neither its translation nor its rotation, and its entries
      stay within [-1, 1] where the wanted ones did. Its direction may change: a target at the end of the leash slides
      along the sphere around the arm.
    - Where the arm itself has come away from its target by more, and drawing the target back at once would take a
      longer action than the wanted one, the target only comes no farther.
    - Euler angles jump where the pitch passes the vertical, and are not unique. The measured pose is read in whichever
      of its two sets of angles is nearer to the target; and close to the vertical, where large differences of angles
      can be a small turn, what counts is the turn.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.spatial.transform import Rotation

from calvin_eval.calvin import CALVIN_ACTIONS, MAX_REL_ORN, MAX_REL_POS, ROBOT_OBS, CalvinEnv, Info
from calvin_eval.protocol import Observation
from calvin_eval.specs import RobotSpec
from calvin_eval.system.errors import UserError

ANGLE_PER_METRE = 8.0
"""Leash on the orientation target, in rad per metre of leash: 0.4 rad at 5 cm."""
SMALL_TURN = 0.5
"""A turn below this part of the leash is not held, however far its euler angles are apart. Where the pitch is less
than 0.8 rad, angles are never that misleading."""
ROUNDING = 1e-9
SCALE = np.repeat([MAX_REL_POS, MAX_REL_ORN], 3)


class TargetLeash:
    """An environment whose target pose stays near the measured one.

    Args:
        env: the environment; it must take relative actions as CALVIN does.
        reach: greatest distance (m) between target and measured position.

    Raises:
        UserError: the reach is not longer than 0, or the environment takes other actions or does not measure its pose.
    """

    def __init__(self, env: CalvinEnv, reach: float = 0.05) -> None:
        if not reach > 0:
            raise UserError(f"the leash must be longer than 0 m, not {reach}; to run without one, leave it out")
        if env.spec.actions != CALVIN_ACTIONS or ROBOT_OBS not in env.spec.state:
            parts = ", ".join(part.name for part in env.spec.actions.parts)
            raise UserError(
                f"the leash shortens CALVIN's relative actions by its measured {ROBOT_OBS}; this environment takes "
                f"{parts} and measures {', '.join(env.spec.state) or 'nothing'}: leave the leash out"
            )
        self._env, self._reach = env, reach
        self._lead = np.zeros(6)
        self._pose = np.zeros(6)

    @property
    def spec(self) -> RobotSpec:
        """The environment's."""
        return self._env.spec

    @property
    def most(self) -> int | None:
        """The environment's."""
        return self._env.most

    @property
    def scene(self) -> str:
        """The environment's scene."""
        return self._env.scene

    @property
    def geometry(self) -> Any:
        """The environment's own geometry, as a play table has; None where it has none."""
        return getattr(self._env, "geometry", None)

    @property
    def renderer(self) -> str:
        """The environment's renderer."""
        return self._env.renderer

    def reset(
        self, robot_obs: np.ndarray | None = None, scene_obs: np.ndarray | None = None, *, render: bool = True
    ) -> Observation:
        """Resets the environment; target and measured pose are then the same."""
        observation = self._env.reset(robot_obs, scene_obs, render=render)
        self._lead = np.zeros(6)
        self._pose = observation.state[ROBOT_OBS][:6]
        return observation

    def step(self, action: np.ndarray, *, render: bool = True) -> Observation:
        """Executes a relative action (7,), shortened where the target would run away."""
        action = np.array(action, dtype=float)
        wanted = self._lead + SCALE * action[:6]
        lead = wanted.copy()  # within reach everything passes, to the bit
        for part, length in ((slice(0, 3), self._reach), (slice(3, 6), self._reach * ANGLE_PER_METRE)):
            held = np.linalg.norm(wanted[part]) > length
            if held and (part.start == 0 or self._turn(wanted[part]) > SMALL_TURN * length):
                action[part], lead[part] = _shorten(action[part], SCALE[part], self._lead[part], wanted[part], length)
        observation = self._env.step(action, render=render)
        self._follow(lead, observation.state[ROBOT_OBS][:6])
        return observation

    def _turn(self, lead: np.ndarray) -> float:
        """The angle (rad) between a target that leads by these euler angles and the measured orientation."""
        measured, target = Rotation.from_euler("xyz", self._pose[3:]), Rotation.from_euler("xyz", self._pose[3:] + lead)
        return float((measured.inv() * target).magnitude())

    def _follow(self, lead: np.ndarray, pose: np.ndarray) -> None:
        """Takes the measured pose in, given by how much the target led the last one."""
        target = self._pose[3:] + lead[3:]
        flipped = np.array([pose[3] + np.pi, np.pi - pose[4], pose[5] + np.pi])  # the same orientation
        if np.linalg.norm(_wrapped(target - flipped)) < np.linalg.norm(_wrapped(target - pose[3:])):
            pose = np.concatenate([pose[:3], flipped])
        moved = pose - self._pose
        moved[3:] = _wrapped(moved[3:])
        self._lead, self._pose = lead - moved, pose
        if self._reach * ANGLE_PER_METRE < np.pi < np.abs(self._lead[3:]).max():
            self._lead[3:] = _wrapped(self._lead[3:])

    def observe(self) -> Observation:
        """The present observation."""
        return self._env.observe()

    def info(self) -> Info:
        """The environment's privileged state."""
        return self._env.info()

    def close(self) -> None:
        """Closes the environment."""
        self._env.close()


def leashed(make_env: Callable[[], CalvinEnv], reach: float | None) -> CalvinEnv:
    """An environment on a leash of this reach (m); None leaves it as CALVIN has it."""
    env = make_env()
    return env if reach is None else TargetLeash(env, reach)


def _shorten(
    action: np.ndarray, scale: np.ndarray, before: np.ndarray, wanted: np.ndarray, length: float
) -> tuple[np.ndarray, np.ndarray]:
    """An action (3,) that keeps the lead within a length, and the lead (3,) that it makes of the one before."""
    lead = _within(wanted, length)
    shorter = action + (lead - wanted) / scale
    if np.linalg.norm(shorter) > np.linalg.norm(action) * (1 + ROUNDING):
        lead = _within(wanted, max(length, float(np.linalg.norm(before))))
        shorter = action + (lead - wanted) / scale
    greatest, allowed = float(np.abs(shorter).max()), max(1.0, float(np.abs(action).max()))
    if greatest > allowed:
        shorter = np.clip(shorter * (allowed / greatest), -allowed, allowed)
        lead = before + scale * shorter
    return shorter, lead


def _within(vector: np.ndarray, length: float) -> np.ndarray:
    return vector * min(1.0, length / max(float(np.linalg.norm(vector)), 1e-12))


def _wrapped(angles: np.ndarray) -> np.ndarray:
    """Angles in [-pi, pi)."""
    return (angles + np.pi) % (2 * np.pi) - np.pi
