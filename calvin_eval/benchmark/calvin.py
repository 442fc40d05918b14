"""CALVIN's chains as a benchmark, and its figures in its own layout (CALVIN SPEC 1.9 to 1.11).

Per chain: one reset to the official initial state, then five tasks back to back without reset; each has 360 control
steps and is tested after every one of them; the first failure ends the chain.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np

from calvin_eval.benchmark.chains import CHAINS, LENGTH, ChainSet, InitialCondition, chains, initial_state
from calvin_eval.benchmark.instructions import CHOICES, sentences
from calvin_eval.benchmark.metrics import (
    calls_per_second,
    count_instead,
    count_subtasks,
    failures,
    mean_interval,
    mean_jerk,
    mean_steps,
    mean_steps_by_name,
    wilson,
)
from calvin_eval.benchmark.tasks import TASKS
from calvin_eval.benchmark.tasks import solved as solved_tasks
from calvin_eval.calvin import CONTROL_RATE_HZ, ROBOT_OBS, CalvinEnv
from calvin_eval.protocol import Benchmark, Episode, EpisodeResult, Observation, SubTask
from calvin_eval.system.errors import UserError
from calvin_eval.system.ranges import COUNT, check_ranges

NAME = "CALVIN"
MAX_STEPS = 360


@dataclass(frozen=True)
class CalvinChains(Benchmark):
    """The 1000 chains of a set, in their order. Environments are `CalvinEnv`s, of any scene.

    Attributes:
        max_steps: control steps a task may take.
        sentences: split of the instructions; "validation" is the benchmark's one sentence per task, "enriched" takes
            another wording for every chain, "numbers" says "task 17" and no more.
        set: of chains: "reporting", the official 1000, or "choosing" (see `benchmark.chains`).

    Raises:
        UserError: no step, no such split, or no such set.
    """

    max_steps: int = MAX_STEPS
    sentences: str = "validation"
    set: ChainSet = "reporting"
    name = NAME

    def __post_init__(self) -> None:
        check_ranges(self, "settings", max_steps=COUNT)
        if self.sentences not in CHOICES:
            raise UserError(f"settings.sentences must be one of {', '.join(CHOICES)}, not {self.sentences!r}")

    @property
    def settings(self) -> Mapping[str, Any]:
        """Steps, split and set."""
        return asdict(self)

    def __len__(self) -> int:
        """1000."""
        return CHAINS

    def episode(self, index: int) -> Episode:
        """A chain: five tasks from its initial state, as the environment's scene has it."""
        chain = chains(index + 1, self.set)[index]
        subtasks = tuple(
            SubTask(task, self._instruction(task, index), TASKS[task], solved_tasks) for task in chain.tasks
        )
        return Episode(index, partial(_reset, chain.condition), subtasks, self.max_steps, _tool)

    def facts(self, env: CalvinEnv) -> Mapping[str, str]:
        """The scene."""
        return {"scene": env.scene}

    def summarize(self, results: Sequence[EpisodeResult], seed: int) -> dict[str, Any]:
        """See `summarize_chains`."""
        return summarize_chains(results, seed)

    def _instruction(self, task: str, index: int) -> str:
        choices = sentences(task, self.sentences)
        return choices[index % len(choices)]


def _tool(seen: Observation) -> np.ndarray:
    return seen.state[ROBOT_OBS][:3]


def _reset(condition: InitialCondition, env: CalvinEnv) -> Observation:
    return env.reset(*initial_state(condition, env.scene))


def summarize_chains(results: Sequence[EpisodeResult], seed: int = 0) -> dict[str, Any]:
    """CALVIN's figures, in its own layout, with 95 % intervals beside them (CALVIN SPEC 1.11).

    Rates get Wilson's interval, the average length that of `mean_interval`. `lengths` holds what every chain came to,
    by its index, so that evaluations can be compared chain by chain; `done_instead` counts what was done where a task
    failed, and `failures` lists it by the chain's index. `calls_per_second` is of the robot's time, `jerk` in m/s^3.

    Args:
        results: at least one chain.
        seed: of the draws of the interval.

    Raises:
        ValueError: there are no results.
    """
    if not results:
        raise ValueError("no chain was evaluated, so there is nothing to summarize")
    lengths = np.array([result.solved for result in results])
    reached = {str(k): int((lengths >= k).sum()) for k in range(1, LENGTH + 1)}
    count = len(results)
    return {
        "avg_seq_len": float(lengths.mean()),
        "chain_sr": {k: n / count for k, n in reached.items()},
        "task_info": count_subtasks(results),
        "chains": count,
        "intervals": {
            "avg_seq_len": mean_interval(lengths, 0, LENGTH, seed),
            "chain_sr": {k: wilson(n, count) for k, n in reached.items()},
        },
        "steps_per_solved_task": mean_steps(results),
        "task_steps": mean_steps_by_name(results),
        "done_instead": count_instead(results),
        "failures": failures(results),
        "calls_per_second": calls_per_second(results, CONTROL_RATE_HZ),
        "jerk": mean_jerk(results),
        "lengths": {str(result.index): result.solved for result in results},
    }
