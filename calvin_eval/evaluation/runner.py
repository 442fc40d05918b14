"""Runs chains in this process, several environments side by side (CALVIN SPEC 1.11).

Per chain: one reset to the official initial state, then the tasks back to back without reset; each has 360
control steps and is tested after every one of them; the first failure ends the chain.

Non-obvious behaviours
    - A chunk ends early where the task is solved or out of time within it.
    - Images are rendered only where the policy looks next, or at every step for policies that watch and for films.
    - What a policy returns is checked before anything moves: a policy is often somebody else's program.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from calvin_eval.benchmark.chains import CHAINS, Chain, chains, initial_state
from calvin_eval.benchmark.instructions import SPLITS, sentences
from calvin_eval.benchmark.metrics import ChainResult
from calvin_eval.benchmark.tasks import TASKS
from calvin_eval.calvin import CalvinEnv, Info
from calvin_eval.evaluation.films import Clip
from calvin_eval.protocol import Memory, Observation, Policy, check_returned
from calvin_eval.system.errors import UserError
from calvin_eval.system.ranges import ABOVE_ZERO, AMOUNT, COUNT, SEED, Range, check_ranges


@dataclass(frozen=True)
class EvaluateSettings:
    """How chains are run.

    Attributes:
        chains: how many of the official 1000, from the first.
        max_steps: control steps a task may take.
        sentences: split of the instructions; "validation" is the benchmark's one sentence per task,
            "enriched" takes another wording for every chain.
        leash: how far (m) the target pose may lead the measured one (`TargetLeash`); None as CALVIN does.
        videos: how many chains are filmed, from the first.
        seed: for the bootstrap of the intervals.
    """

    chains: int = CHAINS
    max_steps: int = 360
    sentences: str = "validation"
    leash: float | None = None
    videos: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        check_ranges(
            self, "settings", chains=Range(1, CHAINS), max_steps=COUNT, leash=ABOVE_ZERO, videos=AMOUNT, seed=SEED
        )
        if self.sentences not in SPLITS:
            raise UserError(f"settings.sentences must be one of {', '.join(SPLITS)}, not {self.sentences!r}")
        if self.videos > self.chains:
            raise UserError(f"settings.videos is {self.videos}, but there are only {self.chains} chains to film")


def run_chains(
    policy: Policy, envs: Sequence[CalvinEnv], indices: Iterable[int], settings: EvaluateSettings, videos: Path
) -> Iterator[ChainResult]:
    """Runs the chains of these indices; each environment takes the next one as soon as it is free.

    Args:
        policy: who acts; all environments share its forward passes.
        envs: at least one.
        indices: numbers of official chains, read one at a time.
        settings: how they are run.
        videos: folder for films.

    Raises:
        UserError: the policy returned something else than actions (B, K, 7) with K of at least 1, finite and with a
            gripper entry of -1 or 1, and B memories; or films are wanted of an environment that renders nothing.
    """
    official, upcoming = chains(settings.chains), iter(indices)
    free, running = list(envs), list[_Rollout]()
    while True:
        while free and (index := next(upcoming, None)) is not None:
            clip = Clip(videos / f"chain_{index:03d}.mp4") if index < settings.videos else None
            running.append(_Rollout(free.pop(), index, official[index], settings, policy, clip))
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


@dataclass
class _Rollout:
    """One chain under way in one environment."""

    env: CalvinEnv
    index: int
    chain: Chain
    settings: EvaluateSettings
    policy: Policy
    clip: Clip | None
    solved: int = 0
    steps: list[int] = field(default_factory=list)
    over: bool = False
    step: int = field(init=False)
    observation: Observation = field(init=False)
    memory: Memory = field(init=False)
    start: Info = field(init=False)

    def __post_init__(self) -> None:
        self.observation = self.env.reset(*initial_state(self.chain.condition, self.env.scene))
        if self.clip is not None and not self.observation.images:
            raise UserError(
                f"films are wanted, but the environment renders nothing ({self.env.renderer}); choose another "
                "renderer, or set settings.videos to 0"
            )
        self._begin_task()

    @property
    def task(self) -> str:
        return self.chain.tasks[self.solved]

    @property
    def instruction(self) -> str:
        choices = sentences(self.task, self.settings.sentences)
        return choices[self.index % len(choices)]

    def execute(self, actions: np.ndarray) -> None:
        """Executes a chunk (K, 7), unless the task is solved or out of time within it."""
        watches = self.policy.watches
        for number, action in enumerate(actions, start=1):
            looks_next = (watches or number == len(actions)) and self.step + 1 < self.settings.max_steps
            rendered = looks_next or self.clip is not None
            self.observation = self.env.step(action, render=rendered)
            self.step += 1
            if self.clip is not None:
                self.clip.add(self.observation)
            if TASKS[self.task](self.start, self.env.info()):
                self._end_task(True)
                if not self.over:
                    self.observation = self.observation if rendered else self.env.observe()
                    self._begin_task()
                return
            if self.step == self.settings.max_steps:
                self._end_task(False)
                return
            if watches and number < len(actions):
                self.memory = self.policy.watch(self.observation, self.memory)

    def finish(self) -> ChainResult:
        """What came of it, once it is over."""
        if self.clip is not None:
            self.clip.save()
        return ChainResult(self.index, self.chain.tasks, self.solved, tuple(self.steps))

    def _begin_task(self) -> None:
        self.start, self.step = self.env.info(), 0
        self.memory = self.policy.start(self.instruction)
        if self.clip is not None:
            self.clip.begin(f"{self.solved + 1}  {self.instruction}", self.observation)

    def _end_task(self, success: bool) -> None:
        self.steps.append(self.step)
        if self.clip is not None:
            self.clip.end(success)
        self.solved += int(success)
        self.over = not success or self.solved == len(self.chain.tasks)
