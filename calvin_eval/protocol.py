"""The contract that robots, simulators, policies and benchmarks keep.

Recorder, runner and server see a robot and a policy only through the types below, so another simulator, a real robot
or somebody else's policy plugs in by providing them. What these say of themselves is in `specs.py`. Nothing here knows
CALVIN (`calvin.py` does), and nothing is imported but numpy. Shapes: B episodes, K actions in a chunk, A numbers in an
action.

Non-obvious behaviours
    - Chunks are executed whole: whoever runs a policy executes all K actions that `Policy.act` returned before
      it observes again. How many of its predicted actions a policy gives away is the policy's own choice.
    - `render=False` leaves images out, for callers who only need the state.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

import numpy as np

from calvin_eval.specs import ActionSpec, PolicySpec, RobotSpec
from calvin_eval.system.errors import UserError


@dataclass(frozen=True)
class Observation:
    """What is known at one control step. Arrays go by name; which names there are, the environment says.

    Attributes:
        images: (H, W, 3) uint8 by camera; none where nothing was rendered. CALVIN: `rgb_static` (200, 200, 3) and
            `rgb_gripper` (84, 84, 3), or the sizes asked of the simulator.
        state: (n,) floats by name. CALVIN: `robot_obs` (15,): tool position 3, euler xyz 3, finger opening 1, arm
            joints 7, last gripper command 1 (CALVIN SPEC 1.2).
        privileged: the same for what no robot could measure; only scripted experts, oracle and auxiliary losses see it.
            CALVIN: `scene_obs` (24,): slide, drawer, button, switch, lightbulb, led, then position and euler xyz of
            three blocks **in the scene's own block order** (CALVIN SPEC 1.3).
    """

    images: Mapping[str, np.ndarray] = field(default_factory=dict)
    state: Mapping[str, np.ndarray] = field(default_factory=dict)
    privileged: Mapping[str, np.ndarray] = field(default_factory=dict)


class Env(Protocol):
    """A simulator or robot that executes actions at a fixed rate."""

    @property
    def spec(self) -> RobotSpec:
        """What it gives and takes."""

    @property
    def most(self) -> int | None:
        """How many of its kind one process may hold; None for any number."""

    @property
    def renderer(self) -> str:
        """The name of what draws the images, for result files."""

    def step(self, action: np.ndarray, *, render: bool = True) -> Observation:
        """Executes one action (A,) for one control step.

        Raises:
            ValueError: it is no command of `spec.actions`.
        """

    def observe(self) -> Observation:
        """The present observation with its images, without moving on."""

    def info(self) -> Any:
        """What the benchmark's tests read, as of the last reset or step."""

    def close(self) -> None:
        """Frees everything. Closing twice is fine."""


Memory: TypeAlias = Any
"""What a policy remembers of one episode; only the policy that made it looks inside."""


class Policy(ABC):
    """Observations and an instruction in, chunks of actions out.

    A policy keeps no episode in itself: memory goes in and comes out, so that many episodes share one forward
    pass and an episode can be paused, copied or moved.

    Attributes:
        spec: what it reads and gives; None where it reads the privileged state and suits one environment only.
        watches: whether `watch` must be called for the observations between two calls of `act`.
        sees: whether it looks at images; none are rendered for a policy that does not.
    """

    spec: PolicySpec | None = None
    watches: bool = False
    sees: bool = True

    @abstractmethod
    def start(self, instruction: str) -> Memory:
        """The memory of an episode that begins now."""

    @abstractmethod
    def act(
        self, observations: Sequence[Observation], memories: Sequence[Memory]
    ) -> tuple[np.ndarray, Sequence[Memory]]:
        """The next actions of B episodes, (B, K, A), and the B memories to pass in next time.

        All K are executed before the next call.
        """

    def watch(self, observation: Observation, memory: Memory) -> Memory:
        """The memory of an episode after a step within a chunk; called in order where the policy `watches`."""
        return memory

    def end(self, memory: Memory) -> None:  # noqa: B027 (most have nothing to do)
        """What was begun with `start` is over; whatever is held for it elsewhere may go.

        Called once for every call of `start`, with the latest memory that came of it, also where a run stops early.
        """

    def close(self) -> None:  # noqa: B027 (likewise)
        """Frees everything; called when a process is done with the policy. Closing twice is fine."""


def check_returned(actions: np.ndarray, memories: Sequence[Memory], episodes: int, spec: ActionSpec) -> None:
    """Refuses what a policy must not return, as an error of the policy.

    Args:
        actions: what `Policy.act` returned.
        memories: likewise.
        episodes: B, how many it was given.
        spec: what an action is where they are to be executed.

    Raises:
        UserError: they are not B chunks (B, K, A), K at least 1, of commands; or not B memories.
    """
    try:
        values = np.asarray(actions, float)
    except (TypeError, ValueError) as error:
        raise UserError(f"the policy returned actions that are no array of numbers ({error}): mend its `act`") from None
    shape = values.shape
    if len(shape) != 3 or shape[0] != episodes or shape[1] < 1 or shape[2] != spec.size:
        raise UserError(
            f"the policy returned actions of shape {shape}; "
            f"{episodes} episodes need ({episodes}, K, {spec.size}) with K of at least 1: mend its `act`"
        )
    if len(memories) != episodes:
        raise UserError(f"the policy returned {len(memories)} memories for {episodes} episodes: mend its `act`")
    if problem := spec.problem(values):
        raise UserError(f"the policy returned actions {problem}: its weights or its `act` are broken")


@dataclass(frozen=True)
class SubTask:
    """One thing to be done on an instruction.

    Attributes:
        name: for tables of results.
        instruction: what the policy is told.
        solved: whether it is done, given what `Env.info` said when it began and what it says now; asked after every
            control step.
        others: names of what else was done, given the same two; asked of every step of a failed attempt, for tables of
            what was done instead. None where nobody can tell.
    """

    name: str
    instruction: str
    solved: Callable[[Any, Any], bool]
    others: Callable[[Any, Any], Collection[str]] | None = None


@dataclass(frozen=True)
class Episode:
    """Sub-tasks one after another without reset; the first failure ends it.

    Attributes:
        index: its number in the benchmark.
        reset: puts an environment into the initial state and returns what is seen there, images included.
        subtasks: in order; at least one.
        max_steps: control steps that each may take; at least 1.
        tool: where an observation says that the tool is, (3,) in m, for how smoothly it moves; None for nowhere.

    Raises:
        UserError: there is no sub-task, or no step.
    """

    index: int
    reset: Callable[[Any], Observation]
    subtasks: tuple[SubTask, ...]
    max_steps: int
    tool: Callable[[Observation], np.ndarray] | None = None

    def __post_init__(self) -> None:
        if not self.subtasks or self.max_steps < 1:
            raise UserError(
                f"episode {self.index} has {len(self.subtasks)} sub-tasks of {self.max_steps} steps; "
                "it needs one of each at least: mend the benchmark"
            )

    @property
    def tasks(self) -> tuple[str, ...]:
        """The names of its sub-tasks."""
        return tuple(subtask.name for subtask in self.subtasks)


@dataclass(frozen=True)
class EpisodeResult:
    """What came of an episode.

    Attributes:
        index: its number in the benchmark.
        tasks: the names of all its sub-tasks.
        solved: how many were solved before the first failure.
        steps: control steps spent on each attempted sub-task.
        instead: what was done in the attempt that failed, by name, in order, each with the step after which it was
            first so (see `SubTask.others`).
        calls: chunks that the policy was asked for in each of them; a measure, which no comparison looks at.
        jerk: root mean square of the tool's jerk (m/s^3) over the episode, likewise; None where nobody knows it.
    """

    index: int
    tasks: tuple[str, ...]
    solved: int
    steps: tuple[int, ...]
    instead: tuple[tuple[str, int], ...] = ()
    calls: tuple[int, ...] = field(default=(), compare=False)
    jerk: float | None = field(default=None, compare=False)

    @property
    def failed(self) -> str | None:
        """The sub-task that ended it; None where all were solved."""
        return self.tasks[self.solved] if self.solved < len(self.tasks) else None


class Benchmark(ABC):
    """Episodes by number. It is sent to worker processes, so it must be picklable.

    An episode of a number must be the same whenever and wherever it is made.
    """

    @property
    @abstractmethod
    def name(self) -> str:
        """For messages and result files."""

    @property
    def settings(self) -> Mapping[str, Any]:
        """What its episodes depend on besides their number, as JSON values; of another package, its version too.

        Episodes that were finished under other settings do not count when an evaluation is continued. Their names
        may not be those of an evaluation's own facts, such as "seed" or "batch".
        """
        return {}

    @abstractmethod
    def __len__(self) -> int:
        """How many episodes there are."""

    @abstractmethod
    def episode(self, index: int) -> Episode:
        """One of them; 0 <= index < len."""

    def facts(self, env: Any) -> Mapping[str, str]:
        """What results must say of an environment besides its renderer, such as its scene.

        All environments of an evaluation must have the same.
        """
        return {}

    def summarize(self, results: Sequence[EpisodeResult], seed: int) -> dict[str, Any] | None:
        """What results amount to, as JSON values in a layout of the benchmark's own; None for the general one.

        Args:
            results: at least one.
            seed: of what is drawn for intervals.
        """
        return None
