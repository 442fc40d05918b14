"""A second benchmark, nothing like CALVIN: a grid world with seven moves, one camera and one to three sub-tasks.

As in BabyAI (Chevalier-Boisvert et al. 2019), an agent turns, walks, carries one thing and opens a door.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from calvin_eval.protocol import Benchmark, Episode, Memory, Observation, Policy, SubTask
from calvin_eval.specs import ActionPart, ActionSpec, PolicySpec, RobotSpec

EDGE, CELL = 7, 8
"""Cells of the grid, and pixels of a cell, along one side."""
LEFT, RIGHT, FORWARD, PICK_UP, DROP, TOGGLE, IDLE = range(7)
STEPS = ((1, 0), (0, 1), (-1, 0), (0, -1))
THINGS = ("ball", "key", "door")
COLOURS = {"ball": (200, 60, 60), "key": (230, 200, 60), "door": (60, 90, 200)}
MOVES = ActionSpec((ActionPart("move", "categorical", choices=7),))
GRID_ROBOT = RobotSpec(
    cameras={"top": (EDGE * CELL, EDGE * CELL)}, state={"agent": 3}, actions=MOVES, rate_hz=4, privileged={"things": 9}
)

Cell = tuple[int, int]


@dataclass(frozen=True)
class State:
    """Where everything is: things by name, None for the one that is carried; the agent's cell and direction."""

    things: Mapping[str, Cell | None]
    agent: Cell
    direction: int = 0
    opened: bool = False

    @property
    def front(self) -> Cell:
        """The cell before the agent."""
        return self.agent[0] + STEPS[self.direction][0], self.agent[1] + STEPS[self.direction][1]

    def free(self, cell: Cell) -> bool:
        return all(0 <= at < EDGE for at in cell) and cell not in self.things.values()

    def after(self, move: int) -> State:
        """What a move makes of it."""
        before = [name for name, cell in self.things.items() if cell == self.front]
        carried = [name for name, cell in self.things.items() if cell is None]
        if move in (LEFT, RIGHT):
            return replace(self, direction=(self.direction + (1 if move == RIGHT else -1)) % 4)
        if move == FORWARD and self.free(self.front):
            return replace(self, agent=self.front)
        if move == PICK_UP and before and before != ["door"] and not carried:
            return replace(self, things={**self.things, before[0]: None})
        if move == DROP and carried and self.free(self.front):
            return replace(self, things={**self.things, carried[0]: self.front})
        return replace(self, opened=not self.opened) if move == TOGGLE and before == ["door"] else self


class GridWorld:
    """The world; an `Env`."""

    spec, renderer = GRID_ROBOT, "squares"

    def __init__(self, most: int | None = None, log: Path | None = None) -> None:
        self.most, self._log = most, log
        self._state = State({}, (0, 0))
        note(log, "made")

    def put(self, state: State) -> Observation:
        """The reset of this world."""
        note(self._log, "reset")
        self._state = state
        return self.observe()

    def step(self, action: np.ndarray, *, render: bool = True) -> Observation:
        if problem := MOVES.problem(np.asarray(action)):
            raise ValueError(problem)
        self._state = self._state.after(int(action[0]))
        return self._observe(render)

    def observe(self) -> Observation:
        return self._observe(True)

    def info(self) -> State:
        return self._state

    def close(self) -> None:
        note(self._log, "closed")

    def _observe(self, render: bool) -> Observation:
        state = self._state
        cells = [state.things[name] or (-1, -1) for name in THINGS if name in state.things]
        things = np.array([(*cell, name == "door" and state.opened) for cell, name in zip(cells, THINGS, strict=False)])
        images = {"top": self._draw()} if render else {}
        return Observation(images, {"agent": np.array([*state.agent, state.direction])}, {"things": things.ravel()})

    def _draw(self) -> np.ndarray:
        image = np.full((EDGE * CELL, EDGE * CELL, 3), 240, np.uint8)
        for name, cell in {**self._state.things, "agent": self._state.agent}.items():
            if cell is not None:
                x, y = (CELL * at for at in cell)
                image[y : y + CELL, x : x + CELL] = COLOURS.get(name, (30, 30, 30))
        return image


def in_front(thing: str, start: State, now: State) -> bool:
    return now.things[thing] == now.front


def carried(thing: str, start: State, now: State) -> bool:
    return now.things[thing] is None


def opened(start: State, now: State) -> bool:
    return now.opened and not start.opened


SUBTASKS = (
    SubTask("go_to_key", "go to the key", partial(in_front, "key")),
    SubTask("pick_up_ball", "pick up the ball", partial(carried, "ball")),
    SubTask("open_door", "open the door", opened),
)


def reset(state: State, env: GridWorld) -> Observation:
    return env.put(state)


@dataclass(frozen=True)
class GridTasks(Benchmark):
    """Episodes of one, two or three of the sub-tasks, in random order, from a random state.

    Attributes:
        seed: of the draws.
        budget: steps of a sub-task.
    """

    seed: int = 0
    budget: int = 30
    name = "grid"

    @property
    def settings(self) -> dict[str, Any]:
        return {"seed_of_tasks": self.seed, "budget": self.budget}

    def __len__(self) -> int:
        return 60

    def episode(self, index: int) -> Episode:
        rng = np.random.default_rng([self.seed, index])
        order = rng.permutation(len(SUBTASKS))[: 1 + index % 3]
        spots = rng.permutation([(x, y) for x in range(1, EDGE, 2) for y in range(1, EDGE, 2)])
        ball, key, door, agent = ((int(x), int(y)) for x, y in spots[:4])  # apart, so that every cell can be reached
        start = State({"ball": ball, "key": key, "door": door}, agent, int(rng.integers(4)))
        return Episode(index, partial(reset, start), tuple(SUBTASKS[i] for i in order), self.budget)


class Notes(NamedTuple):
    """The memory of the scripted policy: which of its memories it is, its instruction, and how often it has acted."""

    number: int
    instruction: str
    acts: int = 0


class Walker(Policy):
    """Does what it is told by the shortest way, two moves at a time.

    Args:
        refuses: instructions with this word are not carried out.
        log: a file in which it notes how its memories begin and end.
    """

    spec = PolicySpec(("top",), {"agent": 3}, MOVES)

    def __init__(self, refuses: str = "nothing", log: Path | None = None) -> None:
        self._refuses, self._log, self._begun = refuses, log, 0

    def start(self, instruction: str) -> Memory:
        self._begun += 1
        note(self._log, f"start {self._begun}")
        return Notes(self._begun, instruction)

    def act(
        self, observations: Sequence[Observation], memories: Sequence[Memory]
    ) -> tuple[np.ndarray, Sequence[Memory]]:
        plans = [self._plan(seen, notes.instruction) for seen, notes in zip(observations, memories, strict=True)]
        moves = np.array([(plan + [IDLE, IDLE])[:2] for plan in plans], float)
        return moves[..., None], [notes._replace(acts=notes.acts + 1) for notes in memories]

    def end(self, memory: Memory) -> None:
        note(self._log, f"end {memory.number} {memory.acts}")

    def close(self) -> None:
        note(self._log, "policy closed")

    def _plan(self, seen: Observation, instruction: str) -> list[int]:
        if self._refuses in instruction:
            return []
        cells = dict(zip(THINGS, seen.privileged["things"].reshape(-1, 3)[:, :2].astype(int).tolist(), strict=True))
        x, y, direction = seen.state["agent"].astype(int).tolist()
        things = {name: None if cell == [-1, -1] else (cell[0], cell[1]) for name, cell in cells.items()}
        last = {"open": [TOGGLE], "pick": [PICK_UP], "go": []}[instruction.split()[0]]
        return way(State(things, (x, y), direction), instruction.split()[-1]) + last


class Slow(Walker):
    """Thinks for a while, so that there is time to kill it."""

    def act(
        self, observations: Sequence[Observation], memories: Sequence[Memory]
    ) -> tuple[np.ndarray, Sequence[Memory]]:
        time.sleep(0.02)
        return super().act(observations, memories)


def way(state: State, thing: str) -> list[int]:
    """The fewest moves after which a thing is in front."""
    known, waiting = {(state.agent, state.direction)}, deque([(state, list[int]())])
    while waiting:
        now, moves = waiting.popleft()
        if now.things[thing] == now.front:
            return moves
        for move in (LEFT, RIGHT, FORWARD):
            then = now.after(move)
            if (then.agent, then.direction) not in known:
                known.add((then.agent, then.direction))
                waiting.append((then, [*moves, move]))
    raise AssertionError(f"no way to the {thing}")


def note(log: Path | None, text: str) -> None:
    """Adds a line; several processes may do so at once."""
    if log is not None:
        with log.open("a") as file:
            file.write(text + "\n")
