"""Checks of the play table.

`python -m calvin_eval.world check ROLLOUTS.npz`: how far our physics is from recorded rollouts of the original.
`python -m calvin_eval.world silhouettes`: how far the fast renderer's pictures are from its judge's.
"""

from __future__ import annotations

import argparse
import sys
import zipfile
import zlib
from pathlib import Path

import numpy as np

from calvin_eval.protocol import SCENES
from calvin_eval.system.errors import UserError
from calvin_eval.world.playtable import PlayTable
from calvin_eval.world.silhouettes import silhouette_overlap

KEYS = ("actions", "robot_obs", "reset_robot_obs", "reset_scene_obs", "robot_contacts")
LIMIT_MM = 0.1
LEAST_OVERLAP = 0.95
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
                offset = observation.robot_obs[:3] - data["robot_obs"][index, step, :3]
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


def main(arguments: list[str] | None = None) -> int:
    """The command line; 1 if what it checks is not good enough."""
    parser = argparse.ArgumentParser(prog="python -m calvin_eval.world", description="The embedded play table.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    verb = verbs.add_parser("check", help="replay recorded rollouts of the original and print the tool's error")
    verb.add_argument("rollouts", type=Path, help="npz file of rollouts")
    verb.add_argument("--scene", default="D", help="scene they were recorded in (default: D)")
    verb = verbs.add_parser("silhouettes", help="compare what the fast renderer and TinyRenderer see of each body")
    verb.add_argument("--states", type=int, default=50, help="random states (default: 50)")
    verb.add_argument("--scene", default="D", choices=SCENES, help="default: D")
    options = parser.parse_args(arguments)
    if options.verb == "silhouettes":
        return _compare_silhouettes(options.scene, options.states)
    if not options.rollouts.is_file():
        parser.error(f"{options.rollouts} does not exist")
    try:
        return _check(options.rollouts, options.scene)
    except ValueError as error:
        parser.error(str(error))


def _check(rollouts: Path, scene: str) -> int:
    """Prints a line a rollout; 1 if fewer than eleven in twelve stay within a tenth of a millimetre."""
    results = tcp_errors(rollouts, scene)
    for index, (steps, error_mm) in enumerate(results):
        print(f"rollout {index:3d}: {steps:3d} steps before contact, tool error at most {error_mm:.4f} mm")
    within = sum(error_mm <= LIMIT_MM for _, error_mm in results)
    print(f"max_tcp_error_mm={max(e for _, e in results):.4f} within_0.1mm={within}/{len(results)}")
    return int(within < len(results) * 11 / 12)


def _compare_silhouettes(scene: str, states: int) -> int:
    """Prints intersection over union by camera and body; 1 if any is below 0.95."""
    overlap = silhouette_overlap(scene, states)
    for (camera, body), value in overlap.items():
        print(f"{camera:8s} {body:6s} {value:.3f}")
    print(f"least_overlap={min(overlap.values()):.3f} states={states} scene={scene}")
    return int(min(overlap.values()) < LEAST_OVERLAP)


if __name__ == "__main__":
    sys.exit(main())
