"""One instruction, carried out before a camera: what `roboflamingo watch` shows.

An instruction is any sentence. Of those that a task has in any split, and of the tasks' names in words, the oracle says
whether it was solved; of others it only tells what was done.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from calvin_eval.benchmark.instructions import sentences, task_of
from calvin_eval.benchmark.tasks import TASKS
from calvin_eval.benchmark.tasks import solved as solved_tasks
from calvin_eval.calvin import CalvinEnv
from calvin_eval.demonstrations.episodes import NO_NOISE, EpisodeSettings, demonstrate_task
from calvin_eval.demonstrations.starts import random_scene_obs, start_for
from calvin_eval.evaluation.films import ClipWithActions
from calvin_eval.evaluation.runner import run_episodes
from calvin_eval.protocol import Episode, EpisodeResult, Observation, Policy, SubTask
from calvin_eval.system.errors import UserError

ARTICLES = ("the", "a")
TRIES = 20
"""Starts that are drawn where a task begins with a held block and the scripted expert drops it."""


@dataclass(frozen=True)
class Wish:
    """What is to be done.

    Attributes:
        instruction: what the policy is told.
        task: which of the 34 tasks that is; None where it is none that is known.
    """

    instruction: str
    task: str | None


def wish_for(instruction: str | None, task: str | None = None) -> Wish:
    """An instruction with its task, each found by the other where it is not given.

    Capitals and a full stop make no other sentence; a task's name in words is one of its sentences, as "open the
    drawer" is of open_drawer. The instruction of a task alone is its validation sentence.

    Raises:
        UserError: neither is given, there is no such task, or the instruction is another task's.
    """
    if task is not None and task not in TASKS:
        raise UserError(f"there is no task {task!r}; the tasks are {', '.join(TASKS)}")
    if instruction is None:
        if task is None:
            raise UserError('give an instruction, as "open the drawer", or a task, as --task open_drawer')
        return Wish(sentences(task, "validation")[0], task)
    sentence = " ".join(instruction.lower().split()).rstrip(".")
    name = "_".join(word for word in sentence.split() if word not in ARTICLES)
    try:
        found = name if name in TASKS else task_of(sentence)
    except KeyError:
        return Wish(instruction, task)
    if task not in (None, found):
        raise UserError(f"{instruction!r} asks for {found}, and --task says {task}; give one of the two")
    return Wish(sentence, found)


def watch(policy: Policy, env: CalvinEnv, wish: Wish, steps: int, seed: int, path: Path) -> EpisodeResult:
    """Lets a policy carry out an instruction from a random start, and films it.

    A task that is known begins where it can be solved: one that needs a held block, after the scripted expert has
    lifted it.

    Args:
        policy: who acts.
        env: where; it must render.
        wish: what is to be done.
        steps: most control steps.
        seed: of the start; 0 <= seed.
        path: where the mp4 goes.

    Returns:
        What came of it; `solved` is 0 for an instruction that no task has, and `instead` what else was done.

    Raises:
        UserError: the environment renders nothing; or the policy returned what no policy may (see `run_episodes`).
    """
    judged = wish.task is not None
    test = TASKS[wish.task] if wish.task is not None else _nobody_knows
    subtask = SubTask(wish.task or wish.instruction, wish.instruction, test, solved_tasks)
    episode = Episode(0, partial(_begin, wish.task, seed), (subtask,), steps)
    make_clip = partial(ClipWithActions, judged=judged, actions=env.spec.actions)
    (result,) = run_episodes(policy, [env], [episode], lambda _: path, make_clip)
    return result


def _nobody_knows(start: Any, now: Any) -> bool:
    return False


def _begin(task: str | None, seed: int, env: CalvinEnv) -> Observation:
    """Puts the environment into the start of a task, or into any."""
    rng = np.random.default_rng(seed)
    if task is None:
        return env.reset(None, random_scene_obs(env.scene, rng))
    settings = EpisodeSettings(noise=NO_NOISE, render=False, leash=None)
    for _ in range(TRIES):
        scene_obs, before = start_for(task, env.scene, rng)
        observation = env.reset(None, scene_obs)
        segments = [demonstrate_task(env, observation, first, first, settings, rng) for first in before]
        if all(segment.solved for segment in segments):
            return env.observe()
    raise UserError(f"from {TRIES} starts the scripted expert lifted no block for {task}; choose another --seed")


def told(result: EpisodeResult, wish: Wish) -> str:
    """What the oracle saw, in a line."""
    (steps,) = result.steps
    if result.solved:
        return f"solved: the oracle saw {wish.task} after {steps} steps"
    done = ", ".join(f"{name} (step {step})" for name, step in result.instead) or "none of the 34 tasks"
    if wish.task is None:
        return f"{steps} steps; no task has this sentence, so nobody says whether it was solved. Done: {done}"
    return f"not solved: {wish.task} was not done in {steps} steps. Done instead: {done}"
