"""How fast the play table steps, and whether resets leak memory.

    python benchmarks/world.py [--steps 600] [--rounds 7] [--resets 10000]

All figures come from one run on one core; the last line is one line of JSON. Steps are a scripted expert's, so the arm
moves, touches and carries. Renderers take turns, and the median of their rounds is given, and of the ratio in each
round: what else the machine does for a moment weighs on none of them. TinyRenderer is pybullet's software renderer,
with which CALVIN's own environment draws where it has no GPU; here it draws our table, in CALVIN's sizes of 200 x 200
and 84 x 84.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import time
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
from facts import made_on

from calvin_eval.demonstrations.starts import random_scene_obs, start_for
from calvin_eval.worlds.playtable.renderers import RENDERERS
from calvin_eval.worlds.playtable.world import PlayTable

WARM_UP = 20


def recorded_actions(steps: int) -> tuple[np.ndarray, np.ndarray]:
    """A start (24,) and a scripted expert's actions (steps, 7) from it."""
    from calvin_eval.demonstrations.experts import demonstrate

    scene_obs, _ = start_for("lift_red_block_table", "D", np.random.default_rng(0))
    tasks = ("lift_red_block_table", "open_drawer", "move_slider_left", "turn_on_led", "close_drawer")
    with PlayTable("D", renderer="none") as world:
        observation, actions = world.reset(None, scene_obs, render=False), []
        for step in range(steps):
            actions.append(demonstrate(tasks[step // 60 % len(tasks)], observation, "D"))
            observation = world.step(actions[-1], render=False)
    return scene_obs, np.array(actions)


def steps_per_second(renderer: str, scene_obs: np.ndarray, actions: np.ndarray) -> float:
    """Control steps a second with both cameras of a renderer at full size."""
    with PlayTable("D", renderer=renderer) as world:
        world.reset(None, scene_obs)
        for action in actions[:WARM_UP]:
            world.step(action)
        started = time.perf_counter()
        for action in actions[WARM_UP:]:
            world.step(action)
        return (len(actions) - WARM_UP) / (time.perf_counter() - started)


def growth_per_1000(count: int, reset: bool) -> float:
    """Growth of the process's memory (MB) per 1000 resets, or steps, with images, after the first thousand.

    No two of them leave robot and table in the same pose, so that caches by pose show.
    """
    rng = np.random.default_rng(0)
    starts = [random_scene_obs("D", rng) for _ in range(500)]
    with PlayTable("D") as world:
        world.reset(None, starts[0])
        for number in range(1000 + count):
            if number == 1000:
                before = resident_mb()
            if reset:
                scene_obs = starts[number % len(starts)].copy()
                scene_obs[2] = rng.uniform(0.0, 0.01)
                world.reset(None, scene_obs)
            else:
                world.step(np.append(rng.uniform(-1, 1, 6), 1.0))
        return (resident_mb() - before) / (count / 1000)


def resident_mb() -> float:
    """Resident memory of this process, MB."""
    statm = Path("/proc/self/statm")
    if statm.exists():
        return int(statm.read_text().split()[1]) * resource.getpagesize() / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--resets", type=int, default=10_000)
    options = parser.parse_args()
    scene_obs, actions = recorded_actions(options.steps)
    rounds: dict[str, list[float]] = {renderer: [] for renderer in sorted(RENDERERS)}
    for _ in range(options.rounds):
        for renderer, measured in rounds.items():
            part = actions[:120] if renderer == "tinyrenderer" else actions
            measured.append(steps_per_second(renderer, scene_obs, part))
    speeds = {}
    for renderer, measured in rounds.items():
        speeds["no_cameras" if renderer == "none" else renderer] = median = float(np.median(measured))
        print(f"{renderer:13s} {median:7.1f} steps/s ({min(measured):.1f} to {max(measured):.1f})")
    ratios = np.array(rounds["panda3d"]) / np.array(rounds["tinyrenderer"])
    print(f"panda3d over tinyrenderer {np.median(ratios):.1f} ({ratios.min():.1f} to {ratios.max():.1f})")
    growth = {
        "resets": growth_per_1000(options.resets, reset=True),
        "steps": growth_per_1000(options.resets, reset=False),
    }
    for what, megabytes in growth.items():
        print(f"{options.resets} {what}: {megabytes:+.3f} MB per 1000")
    print(
        json.dumps(
            {
                "steps_per_s": {name: round(speed, 1) for name, speed in speeds.items()},
                "panda3d_over_tinyrenderer": round(float(np.median(ratios)), 1),
                "panda3d_over_tinyrenderer_by_round": [round(float(ratio), 1) for ratio in ratios],
                "renderers_cost_ms": {
                    name: round(1000 / speed - 1000 / speeds["no_cameras"], 2) for name, speed in speeds.items()
                },
                "growth_mb_per_1000_resets": round(growth["resets"], 3),
                "growth_mb_per_1000_steps": round(growth["steps"], 3),
                "resets": options.resets,
                **made_on(1),
            }
        )
    )


if __name__ == "__main__":
    main()
