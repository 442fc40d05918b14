"""What one recorded frame holds: CALVIN's keys and dtypes, and its two arrays of one action (CALVIN SPEC 1.4)."""

from __future__ import annotations

import numpy as np

from calvin_eval.calvin import GRIPPER, MAX_REL_ORN, MAX_REL_POS, ROBOT_OBS, SCENE_OBS, STATIC
from calvin_eval.protocol import Observation
from calvin_eval.system.errors import UserError

STEP = np.array([MAX_REL_POS] * 3 + [MAX_REL_ORN] * 3)
"""What 1 stands for in each number of a relative pose (m, rad)."""


def frame_arrays(observation: Observation, label: np.ndarray) -> dict[str, np.ndarray]:
    """What one frame's file holds.

    Args:
        observation: of the frame.
        label: the relative action (7,) that belongs there.

    Raises:
        UserError: the frame lacks scene_obs or an image.
    """
    if SCENE_OBS not in observation.privileged:
        raise UserError("recording needs scene_obs, and this environment does not give it")
    if not {STATIC, GRIPPER} <= observation.images.keys():
        raise UserError("recording needs images; choose a renderer, and step and reset with render=True")
    robot_obs = observation.state[ROBOT_OBS].astype(np.float64)
    return {
        "actions": absolute_action(label, robot_obs),
        "rel_actions": np.asarray(label, np.float64),
        ROBOT_OBS: robot_obs,
        SCENE_OBS: observation.privileged[SCENE_OBS].astype(np.float64),
        STATIC: observation.images[STATIC],
        GRIPPER: observation.images[GRIPPER],
    }


def absolute_action(label: np.ndarray, robot_obs: np.ndarray) -> np.ndarray:
    """The tool pose (position, euler xyz in [-pi, pi)) and gripper command (7,) that a relative action asks for.

    CALVIN derives relative actions from absolute ones and the measured pose; this is the inverse, so its formula gives
    the label back.

    Args:
        label: (7,), its first six in [-1, 1].
        robot_obs: (15,).
    """
    pose = robot_obs[:6] + STEP * label[:6]
    pose[3:] = (pose[3:] + np.pi) % (2 * np.pi) - np.pi
    return np.append(pose, label[6])


def standing_still(label: np.ndarray) -> np.ndarray:
    """The action (7,) after the last one of an episode: no motion, and the same gripper command."""
    return np.append(np.zeros(6), label[6])
