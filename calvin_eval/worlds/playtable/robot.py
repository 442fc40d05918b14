"""The Panda: reset, relative and absolute control, and its part of the observation (CALVIN SPEC 1.2, 1.4, 1.5).

Non-obvious behaviours
    - A relative action moves the *target* pose, not the measured one; a blocked arm winds up without bound. Absolute
      actions leave the target where it was.
    - Orientation targets add up as euler angles, component by component.
    - Inverse kinematics is pybullet's damped least squares with a null-space pull to the resting joints; far targets
      are approached only as well as its few iterations allow.
    - CALVIN keeps the last gripper command over a reset; here a reset opens the gripper's command again, so that an
      episode does not depend on the one before.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from calvin_eval.calvin import ACTION_SIZE, MAX_REL_ORN, MAX_REL_POS
from calvin_eval.system.errors import UserError
from calvin_eval.worlds.playtable.bullet import pybullet as p
from calvin_eval.worlds.playtable.scenes import RESTING_JOINTS, ROBOT_BASE

ARM = tuple(range(7))
FINGERS = (9, 11)
CAMERA_LINK, TCP_LINK = 14, 15
ARM_FORCE, ARM_VELOCITY = 200.0, 2.0
GRIP_FORCE, OPENING_FORCE, FINGER_VELOCITY = 200.0, 2.0, 1.0
FINGER_OPEN = 0.04
ARM_LOWER = (-2.8973, -1.7628, -2.8973, -3.0718, -2.8973, -0.0175, -2.8973)
ARM_UPPER = (2.8973, 1.7628, 2.8973, -0.0698, 2.8973, 3.7525, 2.8973)
NULL_SPACE = {
    "lowerLimits": [-7.0] * 9,
    "upperLimits": [7.0] * 9,
    "jointRanges": [7.0] * 9,
    "restPoses": [*RESTING_JOINTS, FINGER_OPEN, FINGER_OPEN],
}


class Robot:
    """The arm in one physics server.

    Args:
        urdf: path of the robot's URDF.
        client: pybullet's physics client id.
    """

    def __init__(self, urdf: str, client: int) -> None:
        self.client = client
        self.uid = p.loadURDF(urdf, basePosition=ROBOT_BASE, useFixedBase=True, physicsClientId=client)
        gear = p.createConstraint(
            self.uid, FINGERS[0], self.uid, FINGERS[1], p.JOINT_GEAR, [1, 0, 0], [0, 0, 0], [0, 0, 0],
            physicsClientId=client,
        )  # fmt: skip
        p.changeConstraint(gear, gearRatio=-1, erp=0.1, maxForce=50, physicsClientId=client)
        self.gripper = 1.0
        self.target_position = np.zeros(3)
        self.target_euler = np.zeros(3)

    def reset(self, robot_obs: np.ndarray | None) -> None:
        """Puts joints and fingers where robot_obs (15,) says, or in the resting pose; tool entries are ignored."""
        joints = RESTING_JOINTS if robot_obs is None else robot_obs[7:14]
        finger = FINGER_OPEN if robot_obs is None else robot_obs[6] / 2
        for joint, position in zip((*ARM, *FINGERS), (*joints, finger, finger), strict=True):
            p.resetJointState(self.uid, joint, position, physicsClientId=self.client)
        self._drive_arm(joints)
        self._drive_fingers(finger, GRIP_FORCE)
        self.gripper = 1.0
        position, quaternion = self._tool_pose()
        self.target_position = np.array(position)
        self.target_euler = np.array(p.getEulerFromQuaternion(quaternion))

    def apply(self, action: Sequence[float] | np.ndarray | tuple[Any, ...] | Mapping[str, Any]) -> None:
        """Sets the motors for one control step.

        Args:
            action: relative (7,); or absolute (position (3,), euler (3,) or quaternion (4,), gripper); or CALVIN's
                dictionaries {"type": "cartesian_rel" | "cartesian_abs" | "joint_rel" | "joint_abs", "action": ..}.

        Raises:
            UserError: another form, a value that is not finite, or a gripper entry other than -1 and 1.
        """
        if isinstance(action, Mapping):
            joints, gripper = self._from_dictionary(action)
        elif len(action) == ACTION_SIZE:
            joints, gripper = self._relative(np.asarray(action, dtype=float))
        elif len(action) == 3:
            position, orientation, gripper = tuple(action)
            joints = self.joints_for(position, orientation)
        else:
            raise UserError(f"an action has 7 numbers, or is (position, orientation, gripper); this has {len(action)}")
        value = float(np.asarray(gripper).reshape(-1)[0])
        if value not in (-1.0, 1.0):
            raise UserError(f"the gripper entry of an action must be exactly -1 (close) or 1 (open), not {value}")
        if not all(map(math.isfinite, joints)):
            raise UserError(f"the action leads to joint targets that are not finite: {action}")
        self.gripper = value
        self._drive_arm(joints)
        if value > 0:
            self._drive_fingers(FINGER_OPEN, OPENING_FORCE)
        else:
            self._drive_fingers(0.0, GRIP_FORCE)

    def observe(self) -> np.ndarray:
        """robot_obs (15,)."""
        position, quaternion = self._tool_pose()
        states = p.getJointStates(self.uid, (*ARM, *FINGERS), physicsClientId=self.client)
        joints = [state[0] for state in states]
        euler = p.getEulerFromQuaternion(quaternion)
        return np.array([*position, *euler, joints[7] + joints[8], *joints[:7], self.gripper])

    def _tool_pose(self) -> tuple[Sequence[float], Sequence[float]]:
        return p.getLinkState(self.uid, TCP_LINK, physicsClientId=self.client)[:2]

    def _relative(self, action: np.ndarray) -> tuple[list[float], float]:
        if not np.isfinite(action).all():
            raise UserError(f"an action must be finite, not {action}")
        if action[6] not in (-1.0, 1.0):
            raise UserError(f"the gripper entry of an action must be exactly -1 (close) or 1 (open), not {action[6]}")
        self.target_position = self.target_position + MAX_REL_POS * action[:3]
        self.target_euler = self.target_euler + MAX_REL_ORN * action[3:6]
        return self.joints_for(self.target_position.tolist(), self.target_euler.tolist()), action[6]

    def joints_for(
        self, position: Sequence[float] | np.ndarray, orientation: Sequence[float] | np.ndarray
    ) -> list[float]:
        """Arm joints (7,) towards a tool pose, from the present ones; far poses take several calls to come near to.

        Args:
            position: (3,) m.
            orientation: euler xyz (3,) or quaternion (4,).
        """
        quaternion = p.getQuaternionFromEuler(orientation) if len(orientation) == 3 else orientation
        joints = p.calculateInverseKinematics(
            self.uid, TCP_LINK, position, quaternion, **NULL_SPACE, physicsClientId=self.client
        )
        # Not NumPy's clip: on seven numbers its call takes longer than all of this.
        return [min(max(joint, low), high) for joint, low, high in zip(joints, ARM_LOWER, ARM_UPPER, strict=False)]

    def _from_dictionary(self, action: Mapping[str, Any]) -> tuple[Sequence[float] | np.ndarray, Any]:
        kind, values = action.get("type"), action.get("action")
        if values is None or kind not in ("cartesian_rel", "cartesian_abs", "joint_rel", "joint_abs"):
            raise UserError(
                f"an action dictionary needs 'action' and a 'type' out of cartesian_rel, cartesian_abs, joint_rel, "
                f"joint_abs; this has type {kind!r}"
            )
        if kind == "cartesian_rel":
            return self._relative(np.asarray(values, dtype=float))
        if kind == "cartesian_abs":
            if len(values) == 3:
                return self.joints_for(values[0], values[1]), values[2]
            return self.joints_for(values[:3], values[3:-1]), values[-1]
        offset = self.observe()[7:14] if kind == "joint_rel" else np.zeros(7)
        return offset + np.asarray(values[:7], dtype=float), values[7]

    def _drive_arm(self, joints: Sequence[float] | np.ndarray) -> None:
        for joint in ARM:  # one call a joint: the batched call has no velocity limit
            p.setJointMotorControl2(
                self.uid, joint, p.POSITION_CONTROL, targetPosition=joints[joint], force=ARM_FORCE,
                maxVelocity=ARM_VELOCITY, physicsClientId=self.client,
            )  # fmt: skip

    def _drive_fingers(self, position: float, force: float) -> None:
        for joint in FINGERS:
            p.setJointMotorControl2(
                self.uid, joint, p.POSITION_CONTROL, targetPosition=position, force=force,
                maxVelocity=FINGER_VELOCITY, physicsClientId=self.client,
            )  # fmt: skip
