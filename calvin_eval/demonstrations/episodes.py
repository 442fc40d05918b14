"""Lets the scripted experts work through tasks in a row, with noise, and keeps what the oracle calls a success.

One episode is a random start and several tasks without reset. The label of a frame is always the scripted expert's
clean action; what is executed may be disturbed by noise, or be a learned policy's action (DAgger, Ross et al.
2011), so that states off the scripted expert's own path are labelled too.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing, nullcontext
from dataclasses import dataclass, field

import numpy as np

from calvin_eval.benchmark.instructions import sentences
from calvin_eval.benchmark.tasks import TASKS
from calvin_eval.calvin import ACTION_SIZE, CalvinEnv
from calvin_eval.demonstrations.experts import demonstrate
from calvin_eval.demonstrations.experts.state import State
from calvin_eval.demonstrations.segments import Segment
from calvin_eval.demonstrations.starts import possible, start_for
from calvin_eval.protocol import Observation, Policy, check_returned
from calvin_eval.system.errors import UserError
from calvin_eval.system.ranges import ABOVE_ZERO, AMOUNT, COUNT, PROBABILITY, Range, check_ranges
from calvin_eval.worlds.leash import TargetLeash
from calvin_eval.worlds.playtable.scenes import SceneGeometry

GRIPPER = ACTION_SIZE - 1


@dataclass(frozen=True)
class Noise:
    """Disturbance of the executed actions; labels stay clean.

    Attributes:
        white: standard deviations of white noise, one drawn per demonstration, in action units.
        burst_rate: greatest chance per step that a burst of random actions begins (drawn per demonstration).
        burst_steps: shortest and longest burst, control steps.
        flip_rate: chance per step that the gripper command is inverted.
    """

    white: tuple[float, ...] = (0.0, 0.1, 0.2, 0.35)
    burst_rate: float = 0.04
    burst_steps: tuple[int, int] = (3, 8)
    flip_rate: float = 0.004

    def __post_init__(self) -> None:
        here = "settings.episode.noise"
        check_ranges(self, here, white=AMOUNT, burst_rate=PROBABILITY, burst_steps=COUNT, flip_rate=PROBABILITY)
        if not self.white:
            raise UserError(f"{here}.white is empty; (0,) is no white noise")
        if len(self.burst_steps) != 2 or self.burst_steps[0] > self.burst_steps[1]:
            raise UserError(f"{here}.burst_steps is {self.burst_steps}; it is the shortest burst and the longest")


NO_NOISE = Noise(white=(0.0,), burst_rate=0.0, flip_rate=0.0)


class Disturbance:
    """The noise of one demonstration."""

    def __init__(self, noise: Noise, rng: np.random.Generator) -> None:
        self._noise = noise
        self._rng = rng
        self._white = float(rng.choice(noise.white))
        self._burst_rate = float(rng.uniform(0.0, noise.burst_rate))
        self._burst_left = 0
        self._burst = np.zeros(GRIPPER)

    def __call__(self, action: np.ndarray) -> np.ndarray:
        """The action (7,) to execute instead of the given one."""
        rng, noise = self._rng, self._noise
        executed = action.copy()
        if self._burst_left == 0 and rng.random() < self._burst_rate:
            self._burst_left = int(rng.integers(noise.burst_steps[0], noise.burst_steps[1] + 1))
            self._burst = rng.uniform(-1, 1, GRIPPER)
        if self._burst_left > 0:
            self._burst_left -= 1
            executed[:GRIPPER] = self._burst
        executed[:GRIPPER] += rng.normal(0.0, self._white, GRIPPER) if self._white > 0 else 0.0
        executed[:GRIPPER] = np.clip(executed[:GRIPPER], -1, 1)
        if rng.random() < noise.flip_rate:
            executed[GRIPPER] = -executed[GRIPPER]
        return executed


@dataclass(frozen=True)
class EpisodeSettings:
    """How an episode runs.

    Attributes:
        tasks: how many tasks in a row, at most.
        max_steps: control steps allowed for one task.
        noise: disturbance of the executed actions.
        render: whether images are needed.
        leash: how far (m) the robot's target may lead the measured pose; None for no bound.
    """

    tasks: int = 5
    max_steps: int = 150
    noise: Noise = field(default_factory=Noise)
    render: bool = True
    leash: float | None = 0.05

    def __post_init__(self) -> None:
        check_ranges(self, "settings.episode", tasks=COUNT, max_steps=Range(2), leash=ABOVE_ZERO)


class _Acting:
    """A policy at work on one task; executes its chunks whole."""

    def __init__(self, env: CalvinEnv, policy: Policy, instruction: str) -> None:
        self._env, self._policy = env, policy
        self._memory = policy.start(instruction)
        self._pending: list[np.ndarray] = []

    def __call__(self, observation: Observation) -> np.ndarray:
        """The action (7,) to execute next; to be called at every step, since a policy may watch."""
        if not self._pending:
            actions, memories = self._policy.act([self._with_images(observation)], [self._memory])
            check_returned(actions, memories, 1, self._env.spec.actions)
            (self._memory,) = memories
            self._pending = list(actions[0])
        elif self._policy.watches:
            self._memory = self._policy.watch(self._with_images(observation), self._memory)
        return self._pending.pop(0)

    def close(self) -> None:
        """It acts no more."""
        self._policy.end(self._memory)

    def _with_images(self, observation: Observation) -> Observation:
        if not observation.images:
            observation = self._env.observe()
        if not observation.images:
            raise UserError(
                f"a policy is to act, and this environment renders nothing ({self._env.renderer}); choose a renderer"
            )
        return observation


def _layout(env: CalvinEnv) -> str | SceneGeometry:
    """Where an environment's fixtures are: its own geometry if it has one, as play tables do, else its scene's."""
    return getattr(env, "geometry", None) or env.scene


def demonstrate_task(
    env: CalvinEnv,
    observation: Observation,
    task: str,
    instruction: str,
    settings: EpisodeSettings,
    rng: np.random.Generator,
    actor: Policy | None = None,
) -> Segment:
    """Runs one task from the environment's present state until the oracle is content or time is up.

    Args:
        env: where it happens; its last observation is the next argument.
        observation: the present one.
        task: name of the task.
        instruction: what the recording, and the actor, are told.
        settings: limits and noise.
        rng: source of the noise.
        actor: a policy that acts for a random first part of the task (DAgger); the scripted expert finishes it. It sees
            images wherever it looks, also without `settings.render`.

    Raises:
        UserError: the actor returned what a policy must not return, as a chunk of no actions; or it would have to act
            blindly, since the environment renders nothing.
    """
    segment = Segment(task, instruction, [observation])
    start, solved = env.info(), TASKS[task]
    disturb = Disturbance(settings.noise, rng)
    handover = int(rng.integers(0, max(1, settings.max_steps // 2))) if actor is not None else 0
    with nullcontext() if actor is None else closing(_Acting(env, actor, instruction)) as acting:
        for step in range(settings.max_steps):
            label = demonstrate(task, observation, _layout(env))
            executed = acting(observation) if acting is not None and step < handover else disturb(label)
            observation = env.step(executed, render=settings.render)
            segment.labels.append(label)
            segment.observations.append(observation)
            if solved(start, env.info()):
                segment.solved = True
                break
    return segment


def demonstrate_episode(
    env: CalvinEnv,
    wish: str,
    settings: EpisodeSettings,
    rng: np.random.Generator,
    actor: Policy | None = None,
    next_task: Callable[[list[str], np.random.Generator], str] | None = None,
) -> list[Segment]:
    """A random start in which `wish` is possible (after a lift, for placing tasks), then tasks in a row.

    Stops early at the first failure, since the state is then no longer one that tasks usually start from.

    Args:
        env: a play table, or anything else with scene_obs.
        wish: the task this episode must contain.
        settings: limits and noise.
        rng: source of every draw.
        actor: see `demonstrate_task`.
        next_task: picks one of the possible tasks; uniformly by default.
    """
    env = TargetLeash(env, settings.leash) if settings.leash is not None else env
    scene_obs, before = start_for(wish, _layout(env), rng)
    observation = env.reset(None, scene_obs, render=settings.render)
    wanted = [*before, wish]
    segments: list[Segment] = []
    while len(segments) < settings.tasks:
        if wanted:
            task = wanted.pop(0)
        else:
            state = State.read(observation, _layout(env))
            choices = [task for task in TASKS if possible(task, state)]
            if not choices:
                break
            task = next_task(choices, rng) if next_task else str(rng.choice(choices))
        instruction = str(rng.choice(sentences(task, "training")))
        segment = demonstrate_task(env, observation, task, instruction, settings, rng, actor)
        segments.append(segment)
        if not segment.solved:
            break
        observation = segment.observations[-1]
    return segments
