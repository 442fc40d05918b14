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
from collections.abc import Callable, Mapping, Sequence
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
        privileged: the same for what no robot could measure; only demonstrators, oracle and auxiliary losses read it.
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
    """

    spec: PolicySpec | None = None
    watches: bool = False

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
        """The episode of this memory is over; whatever is held for it elsewhere may go."""

    def close(self) -> None:  # noqa: B027 (likewise)
        """Frees everything. Closing twice is fine."""


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
        solved: whether it is done, given what `Env.info` said when it began and what it says now.
    """

    name: str
    instruction: str
    solved: Callable[[Any, Any], bool]


@dataclass(frozen=True)
class Episode:
    """Sub-tasks one after another without reset; the first failure ends it.

    Attributes:
        index: its number in the benchmark.
        reset: puts an environment into the initial state.
        subtasks: in order.
        max_steps: control steps that each may take.
    """

    index: int
    reset: Callable[[Any], Observation]
    subtasks: tuple[SubTask, ...]
    max_steps: int


class Benchmark(Protocol):
    """Episodes by number. It is sent to worker processes, so it must be picklable."""

    @property
    def name(self) -> str:
        """For messages and result files."""

    def __len__(self) -> int:
        """How many episodes there are."""

    def episode(self, index: int) -> Episode:
        """One of them."""
