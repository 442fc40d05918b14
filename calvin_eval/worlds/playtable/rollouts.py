"""How far the play table's physics is from recorded rollouts of the original."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path

import numpy as np

from calvin_eval.system.errors import UserError
from calvin_eval.worlds.playtable.world import PlayTable

KEYS = ("actions", "robot_obs", "reset_robot_obs", "reset_scene_obs", "robot_contacts")
LIMIT_MM = 0.1
DAMAGED = (ValueError, KeyError, EOFError, OSError, zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError)
"""What numpy raises on damaged npz files."""


def tcp_errors(path: Path, scene: str) -> list[tuple[int, float]]:
    """For each rollout: steps before the first contact, and the greatest tool position error (mm) within them.

    Args:
        path: npz with actions (n, t, 7), robot_obs (n, t, 15) after each, reset_robot_obs (n, 15), reset_scene_obs
            (n, 24) and robot_contacts (n, t), the number of the robot's contact points after each step.
        scene: where they were recorded.

    Raises:
        UserError: the file is none of rollouts, or damaged.
    """
    data = _read_rollouts(path)
    results = []
    with PlayTable(scene, renderer="none") as world:
        for index, actions in enumerate(data["actions"]):
            touched = np.flatnonzero(data["robot_contacts"][index])
            steps = int(touched[0]) if len(touched) else len(actions)
            world.reset(data["reset_robot_obs"][index], data["reset_scene_obs"][index], render=False)
            error = 0.0
            for step in range(steps):
                observation = world.step(actions[step], render=False)
                offset = observation.state["robot_obs"][:3] - data["robot_obs"][index, step, :3]
                error = max(error, 1000.0 * float(np.linalg.norm(offset)))
            results.append((steps, error))
    return results


def _read_rollouts(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path) as file:
            missing = [key for key in KEYS if key not in file.files]
            if missing:
                raise UserError(f"{path} lacks {', '.join(missing)}; a rollouts file has {', '.join(KEYS)}")
            data = {key: np.asarray(file[key], float) for key in KEYS}
    except (*DAMAGED, AttributeError) as error:  # AttributeError: a bare .npy
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path} is damaged, or no npz file of rollouts: {error!r}") from error
    if data["actions"].ndim != 3:
        raise UserError(f"{path}: actions have shape {data['actions'].shape}; rollouts have (n, t, 7)")
    n, t, _ = data["actions"].shape
    for key, shape in zip(KEYS, ((n, t, 7), (n, t, 15), (n, 15), (n, 24), (n, t)), strict=True):
        if data[key].shape != shape or not np.isfinite(data[key]).all():
            raise UserError(f"{path}: {key} must be finite numbers of shape {shape}, not {data[key].shape}")
    return data
