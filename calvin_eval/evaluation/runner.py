"""Runs episodes in this process, several environments side by side.

Per episode: one reset, then its sub-tasks back to back without reset; each has the episode's step budget and is tested
after every control step; the first failure ends the episode. What sub-tasks are, how many an episode has and what an
action is made of, only benchmark and environment know.

Non-obvious behaviours
    - A chunk ends early where the sub-task is solved or out of time within it.
    - Images are rendered only where the policy looks next, or at every step for policies that watch and for films; for
      policies that see none, only for films.
    - What a policy returns is checked before anything moves: a policy is often somebody else's program.
    - Every memory that `Policy.start` gave is ended once, however the run ends.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from calvin_eval.benchmark.metrics import root_mean_square_jerk
from calvin_eval.evaluation.films import Clip
from calvin_eval.protocol import Env, Episode, EpisodeResult, Memory, Observation, Policy, SubTask, check_returned
from calvin_eval.system.errors import UserError


def no_films(episode: Episode) -> Path | None:
    """No episode is filmed."""
    return None


def run_episodes(
    policy: Policy,
    envs: Sequence[Env],
    episodes: Iterable[Episode],
    film: Callable[[Episode], Path | None] = no_films,
    make_clip: Callable[[Path, float], Clip] = Clip,
) -> Generator[EpisodeResult, None, None]:
    """Runs episodes; each environment takes the next one as soon as it is free.

    Args:
        policy: who acts; all environments share its forward passes.
        envs: at least one; all of one kind.
        episodes: read one at a time.
        film: where the film of an episode goes; None for none.
        make_clip: begins a film, given where it goes and control steps a second.

    Raises:
        UserError: the policy returned something else than chunks of actions that the environment takes, and a memory
            for each (see `check_returned`); or films are wanted of an environment that renders nothing.
    """
    free, running, upcoming = list(envs), list[_Rollout](), iter(episodes)
    try:
        while True:
            while free and (episode := next(upcoming, None)) is not None:
                path = film(episode)
                clip = None if path is None else make_clip(path, free[-1].spec.rate_hz)
                running.append(_Rollout(free.pop(), episode, policy, clip))
                running[-1].begin()
            if not running:
                return
            actions, memories = policy.act([r.observation for r in running], [r.memory for r in running])
            check_returned(actions, memories, len(running), running[0].env.spec.actions)
            for rollout, chunk, memory in zip(running, actions, memories, strict=True):
                rollout.memory = memory
                rollout.execute(chunk)
                if rollout.over:
                    yield rollout.finish()
            free += [rollout.env for rollout in running if rollout.over]
            running = [rollout for rollout in running if not rollout.over]
    finally:
        with ExitStack() as stack:  # one that fails keeps none of the others from being called
            for rollout in running:
                stack.callback(rollout.abandon)


@dataclass
class _Rollout:
    """One episode under way in one environment."""

    env: Env
    episode: Episode
    policy: Policy
    clip: Clip | None
    solved: int = 0
    steps: list[int] = field(default_factory=list)
    calls: list[int] = field(default_factory=list)
    path: list[np.ndarray] = field(default_factory=list)
    """Where the tool was."""
    over: bool = False
    remembered: bool = False
    """Whether there is a memory that has not been ended."""
    step: int = field(init=False)
    observation: Observation = field(init=False)
    memory: Memory = field(init=False)
    start: Any = field(init=False)
    since: list[Any] = field(init=False)
    """What `Env.info` said after each step of the attempt, where the sub-task can tell what was done instead."""
    instead: tuple[tuple[str, int], ...] = ()

    @property
    def subtask(self) -> SubTask:
        return self.episode.subtasks[self.solved]

    def begin(self) -> None:
        """Resets the environment, and begins the first sub-task."""
        self.observation = self.episode.reset(self.env)
        if self.clip is not None and not self.observation.images:
            raise UserError(
                f"films are wanted, but the environment renders nothing ({self.env.renderer}); choose another "
                "renderer, or set settings.videos to 0"
            )
        self._follow_tool()
        self._begin_subtask()

    def execute(self, actions: np.ndarray) -> None:
        """Executes a chunk (K, A), unless the sub-task is solved or out of time within it."""
        watches, most = self.policy.watches, self.episode.max_steps
        self.calls[-1] += 1
        for number, action in enumerate(actions, start=1):
            looks_next = self.policy.sees and (watches or number == len(actions)) and self.step + 1 < most
            rendered = looks_next or self.clip is not None
            self.observation = self.env.step(action, render=rendered)
            self.step += 1
            self._follow_tool()
            if self.clip is not None:
                self.clip.add(self.observation, action)
            now = self.env.info()
            if self.subtask.others is not None:
                self.since.append(now)
            if self.subtask.solved(self.start, now):
                self._end_subtask(True)
                if not self.over:
                    if self.policy.sees and not rendered:
                        self.observation = self.env.observe()
                    self._begin_subtask()
                return
            if self.step == most:
                self._end_subtask(False)
                return
            if watches and number < len(actions):
                self.memory = self.policy.watch(self.observation, self.memory)

    def finish(self) -> EpisodeResult:
        """What came of it, once it is over."""
        if self.clip is not None:
            self.clip.save()
        jerk = root_mean_square_jerk(np.array(self.path), self.env.spec.rate_hz)
        steps, calls = tuple(self.steps), tuple(self.calls)
        return EpisodeResult(self.episode.index, self.episode.tasks, self.solved, steps, self.instead, calls, jerk)

    def abandon(self) -> None:
        """Leaves it as it is: nobody will go on with it."""
        if self.clip is not None:
            self.clip.discard()
        self._end_memory()

    def _follow_tool(self) -> None:
        if self.episode.tool is not None:
            self.path.append(self.episode.tool(self.observation))

    def _begin_subtask(self) -> None:
        self.start, self.step, self.since = self.env.info(), 0, []
        self.calls.append(0)
        self.memory = self.policy.start(self.subtask.instruction)
        self.remembered = True
        if self.clip is not None:
            self.clip.begin(f"{self.solved + 1}  {self.subtask.instruction}", self.observation)

    def _end_subtask(self, success: bool) -> None:
        self.steps.append(self.step)
        if not success and self.subtask.others is not None:
            self.instead = _in_order(self.subtask.others, self.start, self.since)
        self._end_memory()
        if self.clip is not None:
            self.clip.end(success)
        self.solved += int(success)
        self.over = not success or self.solved == len(self.episode.subtasks)

    def _end_memory(self) -> None:
        if self.remembered:
            self.remembered = False
            self.policy.end(self.memory)


def _in_order(
    others: Callable[[Any, Any], Collection[str]], start: Any, since: Sequence[Any]
) -> tuple[tuple[str, int], ...]:
    """What was done between the start and any step after it, each with the first such step, counted from one."""
    first: dict[str, int] = {}
    for step, now in enumerate(since, start=1):
        for name in sorted(others(start, now)):
            first.setdefault(name, step)
    return tuple(first.items())
