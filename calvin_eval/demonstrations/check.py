"""How good the scripted experts are: success per task and scene from random starts."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from calvin_eval.benchmark.tasks import TASKS
from calvin_eval.demonstrations.episodes import NO_NOISE, EpisodeSettings, demonstrate_task
from calvin_eval.demonstrations.starts import start_for
from calvin_eval.system.errors import UserError
from calvin_eval.system.machine import cores
from calvin_eval.system.processes import run_jobs
from calvin_eval.worlds.leash import TargetLeash
from calvin_eval.worlds.playtable.scenes import scene_geometry
from calvin_eval.worlds.playtable.world import PlayTable

SETTINGS = EpisodeSettings(max_steps=360, noise=NO_NOISE, render=False)

Rates = Mapping[tuple[str, str], float]
"""Success rate by (task, scene)."""


def check_experts(scenes: str = "ABCD", starts: int = 50, *, workers: int | None = None, seed: int = 0) -> Rates:
    """Runs every scripted expert from random starts.

    Args:
        scenes: which scenes.
        starts: random starts per task and scene.
        workers: processes; one per core by default.
        seed: of the starts.

    Raises:
        UserError: there is no such scene, or nothing to run.
    """
    for scene in scenes:
        scene_geometry(scene)
    if not scenes or starts < 1:
        raise UserError(f"a check needs a scene and at least 1 start, not scenes {scenes!r} and {starts} starts")
    jobs = [(task, scene, starts, seed) for task in TASKS for scene in scenes]
    found = run_jobs(_rate, jobs, min(workers or cores(), len(jobs)))
    return dict(track(found, "Checking scripted experts", total=len(jobs)))


def print_check(rates: Rates) -> None:
    """Prints success in per cent, one row a task, one column a scene."""
    scenes = sorted({scene for _, scene in rates})
    table = Table(title="scripted experts: success in % from random starts", title_justify="left")
    table.add_column("task")
    for scene in scenes:
        table.add_column(scene, justify="right")
    for task in TASKS:
        values = [rates[task, scene] for scene in scenes]
        table.add_row(task, *[f"{100 * v:.0f}" if v >= 0.95 else f"[red]{100 * v:.0f}[/red]" for v in values])
    table.add_section()
    table.add_row("mean", *[f"{100 * np.mean([rates[t, scene] for t in TASKS]):.1f}" for scene in scenes])
    Console().print(table)


def _rate(job: tuple[str, str, int, int]) -> tuple[tuple[str, str], float]:
    task, scene, starts, seed = job
    env = _world(scene)
    solved = [
        demonstrate_once(env, task, np.random.default_rng([seed, list(TASKS).index(task), i])) for i in range(starts)
    ]
    return (task, scene), float(np.mean(solved))


def demonstrate_once(env: TargetLeash, task: str, rng: np.random.Generator) -> bool:
    """Whether the scripted expert solves the task from a random start.

    A placing task starts with a held block; where the lift before it fails, another start is drawn.
    """
    while True:
        scene_obs, before = start_for(task, env.scene, rng)
        observation = env.reset(None, scene_obs, render=False)
        lifted = True
        for first in before:
            segment = demonstrate_task(env, observation, first, first, SETTINGS, rng)
            observation, lifted = segment.observations[-1], segment.solved
        if lifted:
            return demonstrate_task(env, observation, task, task, SETTINGS, rng).solved


@lru_cache(maxsize=4)
def _world(scene: str) -> TargetLeash:
    return TargetLeash(PlayTable(scene, renderer="none"))
