"""How fast the arm's joints must turn for a motion of the tool, so that no more is asked of it than it can follow.

The joints turn by at most 2 rad/s (CALVIN SPEC 1.5). Where a motion needs more, the arm lags behind its target, which
nobody sees, and shoots past the goal once it has caught up.
"""

from __future__ import annotations

import numpy as np

from calvin_eval.calvin import CONTROL_RATE_HZ, MAX_REL_ORN, MAX_REL_POS

JOINT_SPEED = 2.0
"""rad/s, of the fastest joint."""
USED = 0.9
"""Share of that speed which is asked for; the rest lets the arm catch up."""
LEAST = 0.4
"""Share of a motion that is asked for in any case: stretched, the arm would creep out of its posture otherwise."""
DAMPING = 0.02
"""Of the inverse near postures in which the arm cannot move in every direction."""
TOOL = 0.107 + 0.14
"""From the last joint to the tool point, along the hand (m)."""
SHIFTS = ((0.0, 0.333), (0.0, 0.0), (0.0, 0.316), (0.0825, 0.0), (-0.0825, 0.384), (0.0, 0.0), (0.088, 0.0))
"""Of each of the Panda's joints from the one before: along x and along its own axis (m)."""
TWISTS = tuple(np.array([0.0, -1.0, 1.0, 1.0, -1.0, 1.0, 1.0]) * np.pi / 2)
"""Of each joint's axis from the one before, about x (rad)."""


def jacobian(joints: np.ndarray) -> np.ndarray:
    """What the joints' (7,) motion does to the tool, (6, 7): m and rad in the world, per rad."""
    turn, place = np.eye(3), np.zeros(3)
    axes, places = [], []
    for angle, (along_x, along_axis), twist in zip(joints, SHIFTS, TWISTS, strict=True):
        place = place + along_x * turn[:, 0]
        c, s = np.cos(twist), np.sin(twist)
        y, z = c * turn[:, 1] + s * turn[:, 2], c * turn[:, 2] - s * turn[:, 1]
        place = place + along_axis * z
        c, s = np.cos(angle), np.sin(angle)
        turn = np.stack([c * turn[:, 0] + s * y, c * y - s * turn[:, 0], z], axis=1)
        axes.append(z)
        places.append(place)
    tool = place + TOOL * turn[:, 2]
    z = np.array(axes)
    return np.concatenate([np.cross(z, tool - np.array(places)), z], axis=1).T


def followed(joints: np.ndarray, euler: np.ndarray, motion: np.ndarray) -> np.ndarray:
    """A relative motion (6,), in units of an action, shortened to what the arm can follow, at most to `LEAST` of it.

    Args:
        joints: (7,) rad.
        euler: (3,) euler xyz of the tool, rad.
        motion: the first six entries of an action.
    """
    (_, sin_pitch, sin_yaw), (_, cos_pitch, cos_yaw) = np.sin(euler), np.cos(euler)
    roll, pitch, yaw = MAX_REL_ORN * motion[3:]
    rotation = np.array([
        cos_yaw * cos_pitch * roll - sin_yaw * pitch,
        sin_yaw * cos_pitch * roll + cos_yaw * pitch,
        yaw - sin_pitch * roll,
    ])  # fmt: skip
    velocity = np.concatenate([MAX_REL_POS * motion[:3], rotation])
    j = jacobian(joints)
    turns = j.T @ np.linalg.solve(j @ j.T + DAMPING**2 * np.eye(6), velocity)
    fastest = float(np.abs(turns).max()) * CONTROL_RATE_HZ
    return motion * min(1.0, max(LEAST, USED * JOINT_SPEED / max(fastest, 1e-9)))
