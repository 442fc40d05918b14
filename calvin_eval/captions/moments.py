"""Moments of play tables to be told about: scripted experts at work, and states that no expert comes into.

The second kind puts blocks, joints and arm anywhere: blocks in the drawer, in the cabinet, on each other, on their end
or between the fingers; the hand over the table or near something to be handled.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from scipy.spatial.transform import Rotation

from calvin_eval.benchmark.tasks import TASKS
from calvin_eval.calvin import BLOCKS, ROBOT_OBS
from calvin_eval.demonstrations.episodes import Disturbance, Noise
from calvin_eval.demonstrations.experts import demonstrate
from calvin_eval.demonstrations.experts.motion import FRONT_YAW, reach_lean, tilt
from calvin_eval.demonstrations.experts.policy import PLACING
from calvin_eval.demonstrations.experts.state import State
from calvin_eval.demonstrations.starts import (
    DOOR_FRONT,
    DRAWER_HEIGHT,
    PLANK_HEIGHT,
    STACK_STEP,
    TABLE_HEIGHT,
    possible,
    random_scene_obs,
)
from calvin_eval.protocol import Observation
from calvin_eval.worlds.leash import TargetLeash
from calvin_eval.worlds.playtable.bullet import pybullet as p
from calvin_eval.worlds.playtable.robot import TCP_LINK
from calvin_eval.worlds.playtable.scenes import (
    BLOCK_THICKNESS,
    BUTTON_TRAVEL,
    DRAWER_TRAVEL,
    RESTING_JOINTS,
    RESTING_ROBOT_OBS,
    SWITCH_TRAVEL,
    TABLE_TOP,
    SceneGeometry,
)
from calvin_eval.worlds.playtable.world import PlayTable

TASKS_IN_A_ROW, TASK_STEPS = 5, 120
"""Of an episode of the scripted expert."""
STARTS = 40
"""Draws of a start before another task is tried: not every task is possible in every layout."""
LEASH = 0.05
NOISE = Noise()
IK_ROUNDS = 6
GRASP_WIDTH = 0.0375
"""Opening (m) that fingers measure while they hold the narrow side of a block."""
IK_ERROR = 0.01
"""How far (m) the tool may be off the place that was drawn."""
DEEP = -0.002
"""Distance (m) of contacts below which bodies are inside each other."""
BLOCK_ROOM = 0.012
"""Room (m) between two blocks' corners, at least."""


def expert_moments(world: PlayTable, rng: np.random.Generator, every: int) -> Iterator[Observation]:
    """Observations without images of scripted experts at work, without end; draw the world to see each.

    Args:
        world: where they work; it is in the observed state when the next is asked for.
        rng: of starts, tasks and noise.
        every: control steps from one to the next on average.
    """
    env = TargetLeash(world, LEASH)
    while True:
        scene_obs, wanted = _start(world.geometry, rng)
        observation = env.reset(None, scene_obs, render=False)
        wait = int(rng.integers(every))
        for _ in range(TASKS_IN_A_ROW):
            state = State.read(observation, world.geometry)
            if not wanted:
                wanted = [task for task in TASKS if possible(task, state)]
                wanted = [wanted[rng.integers(len(wanted))]] if wanted else []
            if not wanted:
                break
            task, *wanted = wanted
            start, solved, disturb = env.info(), False, Disturbance(NOISE, rng)
            for _ in range(TASK_STEPS):
                if wait == 0:
                    yield observation
                    wait = int(rng.integers(max(1, every // 2), every + every // 2 + 1))
                wait -= 1
                observation = env.step(disturb(demonstrate(task, observation, world.geometry)), render=False)
                if solved := TASKS[task](start, env.info()):
                    break
            if not solved:
                break


def _start(geometry: SceneGeometry, rng: np.random.Generator) -> tuple[np.ndarray, list[str]]:
    """A random start and the tasks to begin with."""
    names = list(TASKS)
    while True:
        task = names[rng.integers(len(names))]
        for _ in range(STARTS):
            scene_obs = random_scene_obs(geometry, rng, wish=task)
            state = State.read(Observation({}, {ROBOT_OBS: RESTING_ROBOT_OBS}, {"scene_obs": scene_obs}), geometry)
            if task not in PLACING:
                if possible(task, state):
                    return scene_obs, [task]
                continue
            if lifts := [t for t in names if t.startswith("lift_") and possible(t, state)]:
                return scene_obs, [lifts[rng.integers(len(lifts))], task]


def scattered_moments(world: PlayTable, rng: np.random.Generator) -> Iterator[Observation]:
    """Observations without images of random states, without end; each is the world's state when it is given."""
    while True:
        joints = _random_joints(world.geometry, rng)
        poses = _random_blocks(world.geometry, float(joints[1]), rng)
        robot = _random_arm(world, joints, poses, rng)
        if robot is None:
            continue
        scene_obs = np.concatenate([joints, *(poses[name] for name in world.geometry.block_order)])
        observation = world.reset(robot, scene_obs, render=False)
        if not _inside_each_other(world):
            yield observation


def _random_joints(geometry: SceneGeometry, rng: np.random.Generator) -> np.ndarray:
    """Slide, drawer, button, switch (m), bulb and LED: often at an end, else anywhere."""
    limits = np.array([geometry.slide_limit, DRAWER_TRAVEL, BUTTON_TRAVEL, SWITCH_TRAVEL])
    parts = np.where(rng.random(4) < (0.4, 0.4, 0.05, 0.25), rng.random(4), rng.integers(0, 2, 4))
    parts[2] *= rng.random() < 0.15
    return np.concatenate([limits * parts, rng.integers(0, 2, 2)])


def _random_blocks(geometry: SceneGeometry, drawer: float, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Poses (6,) of the blocks, none inside another."""
    while True:
        poses: dict[str, np.ndarray] = {}
        for name in (str(block) for block in rng.permutation(BLOCKS)):
            lower = [other for other in poses if poses[other][2] == TABLE_HEIGHT]
            if lower and rng.random() < 0.18:
                poses[name] = _on_top(poses[lower[rng.integers(len(lower))]], rng)
            else:
                poses[name] = _anywhere(geometry, geometry.block_lengths[name], drawer, rng)
        if _apart(geometry, poses):
            return poses


def _on_top(lower: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return lower + [*rng.uniform(-0.01, 0.01, 2), STACK_STEP, 0, 0, rng.uniform(-0.6, 0.6)]


def _anywhere(geometry: SceneGeometry, length: float, drawer: float, rng: np.random.Generator) -> np.ndarray:
    """A pose (6,) in the drawer, in the cabinet, or on the table, there now and then on its end."""
    place, yaw = rng.random(), rng.uniform(-np.pi, np.pi)
    if place < 0.2 and drawer > 0.12:
        low, high = geometry.drawer_interior
        y = rng.uniform(max(-0.13, 0.02 - drawer), -0.02) - drawer
        return np.array([rng.uniform(low + 0.05, high - 0.05), y, DRAWER_HEIGHT, 0, 0, yaw])
    if place < 0.45:
        low, high = geometry.cabinet_opening
        y = rng.uniform(0.055, 0.115)
        return np.array([rng.uniform(low + 0.045, high - 0.045), y, PLANK_HEIGHT, 0, 0, yaw])
    while True:
        x, y = rng.uniform(-0.38, 0.40), rng.uniform(-0.155, -0.02)
        back = y + 0.5 * (length * abs(np.sin(yaw)) + BLOCK_THICKNESS * abs(np.cos(yaw)))
        if np.hypot(x - geometry.button[0], y - geometry.button[1]) > 0.085 and back < DOOR_FRONT:
            break
    if length > BLOCK_THICKNESS and rng.random() < 0.08:
        return np.array([x, y, TABLE_TOP + 0.5 * length - 0.0002, 0, np.pi / 2, yaw])
    return np.array([x, y, TABLE_HEIGHT, 0, 0, yaw])


def _apart(geometry: SceneGeometry, poses: dict[str, np.ndarray]) -> bool:
    """Whether blocks at about one height are clear of each other."""
    names = list(poses)
    for number, first in enumerate(names):
        for second in names[:number]:
            offset = poses[first] - poses[second]
            room = 0.5 * (geometry.block_lengths[first] + geometry.block_lengths[second]) + BLOCK_ROOM
            if abs(offset[2]) < 0.03 and np.hypot(offset[0], offset[1]) < room:
                return False
            if 0.03 <= abs(offset[2]) < 0.09 and 0.03 < np.hypot(offset[0], offset[1]) < room:
                return False
    return True


def _random_arm(
    world: PlayTable, joints: np.ndarray, poses: dict[str, np.ndarray], rng: np.random.Generator
) -> np.ndarray | None:
    """robot_obs (15,) of a reachable pose; None where inverse kinematics found none. A held block's pose is set."""
    place = _random_place(world.geometry, joints, poses, rng)
    yaw = FRONT_YAW + rng.uniform(-1.9, 1.9)
    roll, pitch = tilt(reach_lean(place) + rng.normal(0, 0.08, 2), yaw)
    euler = np.array([np.pi + roll, pitch, yaw])
    found = _inverse_kinematics(world, place, euler)
    if found is None:
        return None
    arm, position, hand = found
    width = float(rng.choice([0.0, 0.08, 0.08, rng.uniform(0.0, 0.08)]))
    if rng.random() < 0.3:
        free = [name for name in BLOCKS if not any(_lies_on(pose, poses[name]) for pose in poses.values())]
        name = free[rng.integers(len(free))]
        width = GRASP_WIDTH
        aside = hand.apply(
            [rng.uniform(-0.012, 0.012), 0, rng.uniform(-0.012, 0.012)]
        )  # not along the fingers' opening
        turn = hand * Rotation.from_euler("x", -np.pi)
        poses[name] = np.concatenate([position + aside, turn.as_euler("xyz")])
    return np.concatenate([np.zeros(6), [width], arm, [1.0]])


def _lies_on(upper: np.ndarray, lower: np.ndarray) -> bool:
    return bool(0.03 < upper[2] - lower[2] < 0.09 and np.hypot(*(upper - lower)[:2]) < 0.06)


def _random_place(
    geometry: SceneGeometry, joints: np.ndarray, poses: dict[str, np.ndarray], rng: np.random.Generator
) -> np.ndarray:
    """Where the tool is (3,): over the table, or near something."""
    if rng.random() < 0.45:
        return rng.uniform((-0.32, -0.34, 0.455), (0.36, 0.02, 0.66))
    slide, drawer, _, switch = joints[:4]
    near = [pose[:3] for pose in poses.values()]
    near += [geometry.slide_handle(slide), geometry.drawer_bar(drawer), geometry.button, geometry.switch_bar(switch)]
    spread = float(rng.choice([0.01, 0.04, 0.10]))
    offset = rng.normal(0, spread, 3)
    offset[2] = 0.005 + (rng.uniform(0, 0.15) if rng.random() < 0.5 else abs(offset[2]))  # straight above, or about
    return near[rng.integers(len(near))] + offset


def _inverse_kinematics(
    world: PlayTable, place: np.ndarray, euler: np.ndarray
) -> tuple[np.ndarray, np.ndarray, Rotation] | None:
    """Arm joints (7,) that bring the tool about there, and where they bring it: its position (3,) and orientation."""
    robot, client = world.robot, world.client
    joints = np.array(RESTING_JOINTS)
    for _ in range(IK_ROUNDS):
        for joint, value in enumerate(joints):
            p.resetJointState(robot.uid, joint, value, physicsClientId=client)
        state = p.getLinkState(robot.uid, TCP_LINK, computeForwardKinematics=1, physicsClientId=client)
        if np.linalg.norm(place - state[0]) < IK_ERROR:
            return joints, np.array(state[0]), Rotation.from_quat(state[1])
        joints = np.array(robot.joints_for(place, euler))
    return None


def _inside_each_other(world: PlayTable) -> bool:
    """Whether the arm is inside the table or a block, or a block inside something."""
    for uid in (world.robot.uid, *world.blocks.values()):
        for contact in p.getContactPoints(bodyA=uid, physicsClientId=world.client):
            if contact[8] < DEEP and contact[1] != contact[2]:
                return True
    return False
