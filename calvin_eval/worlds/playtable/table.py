"""The play table in a physics server: its joints, button, switch and lights (CALVIN SPEC 1.7).

Non-obvious behaviours, kept as CALVIN has them
    - Button and switch are looked at once per control step, after the physics.
    - The button toggles its light when it gets pressed (its joint passes half of its travel), not while it is held.
    - The switch's light follows edges of the lever: after a reset a lit bulb with the lever down stays lit until the
      lever has been up and down once; with the lever up it is lit again by the first step.

Left out: CALVIN's reset does not forget whether the button was pressed when the last episode ended. Here it does, so
that a reset into a pressed button toggles the light at the first step, as in a new world.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from calvin_eval.worlds.playtable.bullet import pybullet as p
from calvin_eval.worlds.playtable.scenes import BUTTON_TRAVEL, SWITCH_TRAVEL

JOINTS = ("base__slide", "base__drawer", "base__button", "base__switch")
FRICTION = 4.0
"""Force (N) of the motors that hold doors and switch in place and push the button back."""


class Table:
    """Doors, button, switch and lights.

    Args:
        urdf: path of the table's URDF.
        client: pybullet's physics client id.
    """

    def __init__(self, urdf: str, client: int) -> None:
        self.client = client
        self.uid = p.loadURDF(urdf, physicsClientId=client)
        self.links = {-1: "base_link"}
        joints: dict[str, int] = {}
        for index in range(p.getNumJoints(self.uid, physicsClientId=client)):
            info = p.getJointInfo(self.uid, index, physicsClientId=client)
            joints[info[1].decode()] = index
            self.links[index] = info[12].decode()
        self.joints = tuple(joints[name] for name in JOINTS)
        for name in JOINTS:
            if name == "base__button":
                p.setJointMotorControl2(
                    self.uid,
                    joints[name],
                    p.POSITION_CONTROL,
                    targetPosition=0.0,
                    force=FRICTION,
                    physicsClientId=client,
                )
            else:
                p.setJointMotorControl2(
                    self.uid, joints[name], p.VELOCITY_CONTROL, force=FRICTION, physicsClientId=client
                )
        self.lightbulb = 0
        self.led = 0
        self._button_was_pressed = False
        self._switch_on = False

    def reset(self, state: Sequence[float] | np.ndarray | None) -> None:
        """Puts the fixtures into the first six entries of scene_obs, or all to rest and dark."""
        values = np.zeros(6) if state is None else np.asarray(state)
        for joint, value in zip(self.joints, values[:4], strict=True):
            p.resetJointState(self.uid, joint, value, physicsClientId=self.client)
        self.lightbulb, self.led = int(values[4] > 0.5), int(values[5] > 0.5)
        self._button_was_pressed = False
        self._switch_on = False

    def step(self) -> None:
        """Lets button and switch act on their lights."""
        _, _, button, switch = self.positions()
        pressed = button > BUTTON_TRAVEL / 2
        if pressed and not self._button_was_pressed:
            self.led = 1 - self.led
        self._button_was_pressed = pressed
        on = switch > SWITCH_TRAVEL / 2
        if on and not self._switch_on:
            self.lightbulb = 1
        elif self._switch_on and not on:
            self.lightbulb = 0
        self._switch_on = on

    def positions(self) -> list[float]:
        """Joint positions of slide, drawer, button and switch, m."""
        return [state[0] for state in p.getJointStates(self.uid, self.joints, physicsClientId=self.client)]
