"""The configuration file that CALVIN expects beside its data: scene, robot and cameras as recorded."""

from __future__ import annotations

from typing import Any

from calvin_eval.worlds.playtable import appearance, cameras
from calvin_eval.worlds.playtable.robot import (
    ARM,
    ARM_FORCE,
    ARM_LOWER,
    ARM_UPPER,
    ARM_VELOCITY,
    FINGER_OPEN,
    FINGERS,
    TCP_LINK,
)
from calvin_eval.worlds.playtable.scenes import BIG, MIDDLE, RESTING_JOINTS, ROBOT_BASE, scene_geometry


def merged_config(scene: str) -> dict[str, Any]:
    """CALVIN's merged_config.yaml of a scene, from which its get_env builds the original environment."""
    return {
        "cameras": _cameras(),
        "env": {
            "_target_": "calvin_env.envs.play_table_env.PlayTableSimEnv",
            "_recursive_": False,
            "cameras": "${cameras}",
            "seed": 0,
            "bullet_time_step": 240.0,
            "use_vr": "${use_vr}",
            "show_gui": False,
            "robot_cfg": "${robot}",
            "scene_cfg": "${scene}",
            "use_scene_info": False,
            "use_egl": False,
            "control_freq": 30,
        },
        "scene": _scene(scene),
        "robot": _robot(),
        "seed": 0,
        "use_vr": False,
        "data_path": "data",
    }


def _cameras() -> dict[str, Any]:
    return {
        "static": {
            "_target_": "calvin_env.camera.static_camera.StaticCamera",
            "name": "static",
            "fov": appearance.STATIC_FOV,
            "aspect": 1,
            "nearval": cameras.STATIC_NEAR_FAR[0],
            "farval": cameras.STATIC_NEAR_FAR[1],
            "width": 200,
            "height": 200,
            "look_at": list(appearance.STATIC_TARGET),
            "look_from": list(appearance.STATIC_EYE),
            "up_vector": list(appearance.STATIC_UP),
        },
        "gripper": {
            "_target_": "calvin_env.camera.gripper_camera.GripperCamera",
            "name": "gripper",
            "fov": appearance.GRIPPER_FOV,
            "aspect": 1,
            "nearval": cameras.GRIPPER_NEAR_FAR[0],
            "farval": cameras.GRIPPER_NEAR_FAR[1],
            "width": 84,
            "height": 84,
        },
    }


def _scene(scene: str) -> dict[str, Any]:
    geometry = scene_geometry(scene)
    kinds = {BIG: "big", MIDDLE: "middle"}
    return {
        "_target_": "calvin_env.scene.play_table_scene.PlayTableScene",
        "_recursive_": False,
        "data_path": "${data_path}",
        "global_scaling": 0.8,
        "euler_obs": "${robot.euler_obs}",
        "robot_base_position": list(ROBOT_BASE),
        "robot_base_orientation": [0, 0, 0],
        "robot_initial_joint_positions": list(RESTING_JOINTS),
        "surfaces": {
            name: [[*map(float, corner), 0.46] for corner in corners] for name, corners in geometry.surfaces.items()
        },
        "objects": {
            "fixed_objects": {
                "table": {
                    "file": f"calvin_table_{scene}/urdf/calvin_table_{scene}.urdf",
                    "initial_pos": [0, 0, 0],
                    "initial_orn": [0, 0, 0],
                    "joints": {"base__slide": {"initial_state": 0}, "base__drawer": {"initial_state": 0}},
                    "buttons": {"base__button": {"initial_state": 0, "effect": "led"}},
                    "switches": {"base__switch": {"initial_state": 0, "effect": "lightbulb"}},
                    "lights": {
                        "lightbulb": {"link": "light_link", "color": [1, 1, 0, 1]},
                        "led": {"link": "led_link", "color": [0, 1, 0, 1]},
                    },
                }
            },
            "movable_objects": {
                block: {
                    "file": f"blocks/{block}_{kinds.get(geometry.block_lengths[block], 'small')}.urdf",
                    "initial_pos": "any",
                    "initial_orn": "any",
                }
                for block in geometry.block_order
            },
        },
    }


def _robot() -> dict[str, Any]:
    return {
        "_target_": "calvin_env.robot.robot.Robot",
        "filename": "franka_panda/panda_longer_finger.urdf",
        "base_position": "${scene.robot_base_position}",
        "base_orientation": "${scene.robot_base_orientation}",
        "initial_joint_positions": "${scene.robot_initial_joint_positions}",
        "max_joint_force": ARM_FORCE,
        "gripper_force": 200,
        "arm_joint_ids": list(ARM),
        "lower_joint_limits": list(ARM_LOWER),
        "upper_joint_limits": list(ARM_UPPER),
        "gripper_joint_ids": list(FINGERS),
        "gripper_joint_limits": [0, FINGER_OPEN],
        "tcp_link_id": TCP_LINK,
        "end_effector_link_id": 7,
        "gripper_cam_link": 12,
        "use_nullspace": True,
        "max_velocity": ARM_VELOCITY,
        "use_ik_fast": False,
        "magic_scaling_factor_pos": 1,
        "magic_scaling_factor_orn": 1,
        "use_target_pose": True,
        "euler_obs": True,
    }
