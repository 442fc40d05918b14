"""Keeps the target pose of an environment near the arm.

CALVIN adds every relative action to a target that the arm then follows. Against an obstacle the target runs
away by metres (it was seen 3 m off), and the arm is stuck until a policy has undone it all. Whoever issues
relative actions can prevent that, since target and measured pose are both known to it: this wrapper shortens
actions so that the target stays within reach of the measured pose.
"""

from __future__ import annotations

import numpy as np

from calvin_eval.protocol import MAX_REL_ORN, MAX_REL_POS, Env, Info, Observation

ANGLE_PER_METRE = 8.0
"""Leash on the orientation target, in rad per metre of leash: 0.4 rad at 5 cm."""


class TargetLeash:
    """An environment whose target pose stays near the measured one.

    Args:
        env: the environment; it must take relative actions as CALVIN does.
        reach: greatest distance (m) between target and measured position.
    """

    def __init__(self, env: Env, reach: float = 0.05) -> None:
        if reach <= 0:
            raise ValueError(f"the leash must be longer than 0 m, not {reach}; to run without one, leave it out")
        self._env, self._reach = env, reach
        self._lead = np.zeros(6)
        self._pose = np.zeros(6)

    @property
    def scene(self) -> str:
        """The environment's scene."""
        return self._env.scene

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
        self._pose = observation.robot_obs[:6]
        return observation

    def step(self, action: np.ndarray, *, render: bool = True) -> Observation:
        """Executes a relative action (7,), shortened where the target would run away."""
        action = np.array(action, dtype=float)
        scale = np.repeat([MAX_REL_POS, MAX_REL_ORN], 3)
        wanted = self._lead + scale * action[:6]
        lead = np.concatenate([_shorten(wanted[:3], self._reach), _shorten(wanted[3:], self._reach * ANGLE_PER_METRE)])
        action[:6] += (lead - wanted) / scale  # nothing, to the bit, within reach
        observation = self._env.step(action, render=render)
        moved = observation.robot_obs[:6] - self._pose
        moved[3:] = (moved[3:] + np.pi) % (2 * np.pi) - np.pi
        self._lead, self._pose = lead - moved, observation.robot_obs[:6]
        return observation

    def observe(self) -> Observation:
        """The present observation."""
        return self._env.observe()

    def info(self) -> Info:
        """The environment's privileged state."""
        return self._env.info()

    def close(self) -> None:
        """Closes the environment."""
        self._env.close()


def _shorten(vector: np.ndarray, length: float) -> np.ndarray:
    return vector * min(1.0, length / max(float(np.linalg.norm(vector)), 1e-12))
