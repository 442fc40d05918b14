"""What policies are told and environments allow, whatever the benchmark: memories end, policies close, specs agree."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gridworld import MOVES, GridTasks, GridWorld, Slow, Walker

from calvin_eval.evaluation.evaluate import RunSettings, evaluate
from calvin_eval.evaluation.folder import read_results
from calvin_eval.evaluation.runner import run_episodes
from calvin_eval.protocol import Memory, Observation
from calvin_eval.specs import PolicySpec
from calvin_eval.system.errors import UserError

TASKS = GridTasks()
TWELVE = RunSettings(12)


def memories_of(log: Path) -> tuple[list[int], list[int]]:
    """Numbers of the memories that a policy began, and of those that were ended."""
    noted = [line.split() for line in log.read_text().splitlines()]
    numbers = {kind: [int(words[1]) for words in noted if words[0] == kind] for kind in ("start", "end")}
    return numbers["start"], sorted(numbers["end"])


def test_every_memory_is_ended_once_with_the_latest_of_it(tmp_path: Path) -> None:
    policy, log = Walker("door", tmp_path / "log"), tmp_path / "log"
    results = list(run_episodes(policy, [GridWorld() for _ in range(3)], map(TASKS.episode, range(12))))
    begun, ended = memories_of(log)
    assert begun == ended == list(range(1, 1 + sum(len(result.steps) for result in results)))
    acts = sum(int(line.split()[2]) for line in log.read_text().splitlines() if line.startswith("end"))
    assert acts == sum(-(-steps // 2) for result in results for steps in result.steps)  # two moves a time


class Failing(Walker):
    """Fails in one way or another when it has acted three times."""

    acted = 0

    def __init__(self, log: Path, fail: Callable[[Any], Any]) -> None:
        super().__init__(log=log)
        self._fail = fail

    def act(
        self, observations: Sequence[Observation], memories: Sequence[Memory]
    ) -> tuple[np.ndarray, Sequence[Memory]]:
        self.acted += 1
        actions, after = super().act(observations, memories)
        return (self._fail(actions) if self.acted == 3 else actions), after


def drop_the_camera(actions: Any) -> Any:
    raise OSError("the camera fell off")


@pytest.mark.parametrize(
    ("fail", "error", "message"),
    [
        (drop_the_camera, OSError, "the camera fell off"),
        (lambda actions: actions + 0.5, UserError, "whose move is no whole number from 0 to 6"),
        (lambda actions: actions[:, :, [0, 0]], UserError, r"3 episodes need \(3, K, 1\)"),
    ],
)
def test_memories_are_ended_also_where_a_run_fails(
    tmp_path: Path, fail: Callable[[Any], Any], error: type[Exception], message: str
) -> None:
    log, worlds = tmp_path / "log", [GridWorld() for _ in range(3)]
    with pytest.raises(error, match=message):
        list(run_episodes(Failing(log, fail), worlds, map(TASKS.episode, range(2, 12))))
    begun, ended = memories_of(log)
    assert begun == ended and len(begun) >= 3


def test_memories_are_ended_also_where_nobody_wants_the_rest(tmp_path: Path) -> None:
    log = tmp_path / "log"
    results = run_episodes(Walker(log=log), [GridWorld() for _ in range(3)], map(TASKS.episode, range(12)))
    next(results)
    begun, ended = memories_of(log)
    assert len(begun) > len(ended)
    results.close()
    assert memories_of(log) == (begun, begun)


def test_a_worker_closes_its_policy_and_environments(tmp_path: Path) -> None:
    log = tmp_path / "log"
    evaluate(TASKS, partial(GridWorld, None, log), partial(Walker, "door", log), tmp_path / "out", TWELVE, workers=1)
    noted = Counter(log.read_text().splitlines())
    assert noted["policy closed"] == 1 and noted["made"] == noted["closed"] == 8


def evaluate_with_log(out: str) -> None:
    """What the test of a signal starts and stops."""
    log = Path(out) / "log"
    evaluate(TASKS, GridWorld, partial(Slow, "door", log), Path(out), TWELVE, workers=1, batch=2)


def test_a_worker_that_is_told_to_go_ends_its_memories_and_closes_its_policy(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    code = (
        "import test_policy_ends\nfrom calvin_eval.system.signals import stop_signals\n"
        f"with stop_signals(): test_policy_ends.evaluate_with_log({str(tmp_path)!r})"
    )
    process = subprocess.Popen([sys.executable, "-c", code], env=environment, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not ((tmp_path / "chains.jsonl").exists()):
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=20)
    assert said.count("Traceback") == 1 and said.rstrip().endswith("Stopped: SIGTERM")  # the parent's own
    begun, ended = memories_of(tmp_path / "log")
    assert begun == ended
    assert (tmp_path / "log").read_text().splitlines()[-1] == "policy closed"


def test_a_process_holds_no_more_environments_than_it_may_and_results_say_so(tmp_path: Path) -> None:
    log = tmp_path / "log"
    make_env = partial(GridWorld, 2, log)
    results = evaluate(TASKS, make_env, Walker, tmp_path / "out", TWELVE, workers=1, batch=8)
    assert Counter(log.read_text().splitlines())["made"] == 2
    assert results["batch"] == read_results(tmp_path / "out" / "results.json")["batch"] == 2
    more = replace(TWELVE, episodes=13)
    with pytest.raises(UserError, match=r"other batch 2 \(now 8\)"):
        evaluate(TASKS, GridWorld, Walker, tmp_path / "out", more, workers=1, batch=8)


class Seeing(Walker):
    """Needs a camera that the grid world does not have."""

    spec = PolicySpec(("front",), {"agent": 3}, MOVES)


def test_a_policy_that_cannot_act_there_is_refused_before_anything_moves(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with pytest.raises(UserError, match="looks through front, and the environment of grid has top"):
        evaluate(TASKS, partial(GridWorld, None, log), Seeing, tmp_path / "out", TWELVE, workers=1)
    assert "reset" not in log.read_text() and not (tmp_path / "out" / "settings.json").exists()
