"""Compares what the fast renderer and its judge, pybullet's TinyRenderer, see of each body."""

from __future__ import annotations

from collections import Counter

import numpy as np

from calvin_eval.demonstrations.starts import random_scene_obs
from calvin_eval.worlds.playtable.world import PlayTable

BODIES = ("robot", "table", "block_red", "block_blue", "block_pink")
STEPS = 12
"""Random steps before the comparison, so that the arm is anywhere and moving."""


def silhouette_overlap(scene: str, states: int, seed: int = 0) -> dict[tuple[str, str], float]:
    """Pixels that both renderers give to a body by pixels that either does, over random states.

    Args:
        scene: one of `calvin_eval.calvin.SCENES`.
        states: how many.
        seed: of the states.

    Returns:
        Intersection over union by (camera, body), the three blocks taken together as "block".
    """
    both, either = Counter[tuple[str, str]](), Counter[tuple[str, str]]()
    with PlayTable(scene) as fast, PlayTable(scene, renderer="tinyrenderer") as judge:
        for number in range(states):
            rng = np.random.default_rng([seed, number])
            state, actions = random_scene_obs(scene, rng), rng.uniform(-1, 1, (STEPS, 6))
            for world in (fast, judge):
                world.reset(None, state, render=False)
                for action in actions:
                    world.step(np.append(action, 1.0), render=False)
            for camera, ours, theirs in zip(("static", "gripper"), fast.masks(), judge.masks(), strict=True):
                for body in BODIES:
                    kind = camera, body.split("_")[0]
                    both[kind] += int((ours[body] & theirs[body]).sum())
                    either[kind] += int((ours[body] | theirs[body]).sum())
    return {kind: both[kind] / either[kind] for kind in sorted(either)}
