"""The benchmark that looks for why closed loop does better or worse."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from calvin_eval.benchmark.calvin import CalvinChains
from calvin_eval.protocol import EpisodeResult
from calvin_eval.worlds.playtable.world import PlayTable
from policies import small_policy
from roboflamingo.weights.checkpoint import save_policy

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "benchmarks"))

import closed_loop  # noqa: E402

TASKS = ("a", "b", "c", "d", "e")


def attempt(chain: int, place: int, solved: bool, *steps: str) -> closed_loop.Attempt:
    """Of each step the first letters of what is noted of it."""
    rows = [[name[0] in step for name in closed_loop.NOTES[:3]] + ["w" in step] for step in steps]
    return closed_loop.Attempt(chain, place, TASKS[place], solved, np.array(rows, bool))


def test_steps_are_noted_by_command_and_by_what_the_arm_does() -> None:
    chain = CalvinChains().episode(0)
    idle, left, right = (np.array([x, 0, 0, 0, 0, 0, 1.0]) for x in (0.0, -1.0, 1.0))
    with PlayTable("D", renderer="none") as table:
        env = closed_loop.Noting(table, 0.05)
        env.begin(chain)
        for action in [left, right, idle, np.append(idle[:6], -1)] + [np.append(idle[:6], -1)] * 60:
            env.step(action, render=False)
        notes = np.array(env.notes[0])
    still, resting, turned, switched = notes.T
    assert still[:5].tolist() == [False, False, True, False, True]
    assert turned.tolist() == [False, True] + [False] * 62
    assert switched.tolist() == [False] * 3 + [True] + [False] * 60
    assert not resting[1] and resting[-1]


def test_a_chains_steps_are_shared_out_among_its_attempts() -> None:
    result = EpisodeResult(4, TASKS, 1, (2, 3))
    notes = [(bool(number % 2), False, False, False) for number in range(5)]
    first, second = closed_loop.attempts_of(result, notes)
    assert (first.task, first.solved, second.task, second.solved) == ("a", True, "b", False)
    assert first.steps[:, 0].tolist() == [False, True] and second.steps[:, 0].tolist() == [False, True, False]


def test_ways_are_compared_chain_by_chain() -> None:
    one = [EpisodeResult(0, TASKS, 1, (4, 2)), EpisodeResult(1, TASKS, 0, (2,))]
    other = [EpisodeResult(0, TASKS, 2, (2, 2, 2)), EpisodeResult(1, TASKS, 1, (2, 2))]
    slow = [attempt(0, 0, True, "s", "s", "", ""), attempt(0, 1, False, "s", "s"), attempt(1, 0, False, "", "")]
    fast = [attempt(0, 0, True, "", ""), attempt(0, 1, True, "", ""), attempt(0, 2, False, "", "")]
    fast += [attempt(1, 0, True, "", ""), attempt(1, 1, False, "", "")]
    found = closed_loop.differences((one, slow), (other, fast), 360)
    assert found["length"]["mean"] == -1 and found["length"]["pairs"] == 2
    assert found["share of still steps"]["mean"] == pytest.approx((4 / 6 + 0) / 2, abs=1e-4)
    assert found["steps of tasks both solved"] == {**found["steps of tasks both solved"], "mean": 2.0, "pairs": 1}
    said = closed_loop.figures(one, slow)
    assert said["solved"]["still"] == 0.5 and said["failed"]["still"] == 0.5
    assert said["failed_by_task"]["b"]["still"] == 1.0 and said["failed_that_end_at_rest"] == 0.0


def test_it_runs_a_policy_and_ends_with_a_line_of_json(tmp_path: Path) -> None:
    save_policy(small_policy(window=1), tmp_path / "policy")
    words = ["--policy", str(tmp_path / "policy"), "--execute", "1", "4", "--ensemble", "0.1", "--chains", "2"]
    words += ["--max_steps", "4", "--workers", "1", "--batch", "2", "--renderer", "tinyrenderer"]
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    script = [sys.executable, str(ROOT / "benchmarks" / "closed_loop.py"), *words]
    done = subprocess.run(script, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": paths})
    assert done.returncode == 0, done.stderr
    said: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert list(said["ways"]) == ["E 1", "E 4", "E 1, ensemble 0.1"] and said["set"] == "choosing"
    assert said["differences"]["E 4 minus E 1"]["length"]["pairs"] == 2 and said["matmul_gflops"] > 0
