"""Evaluation in many processes: the same results as in one, and no kill loses a finished chain (SPEC 1.11)."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from acting import BLIND, EXPERT, Stubborn
from calvin_eval.demonstrations.experts import Expert
from calvin_eval.evaluation.chains import ChainSettings, evaluate_chains
from calvin_eval.protocol import Memory, Observation
from calvin_eval.system.errors import UserError
from calvin_eval.system.processes import WorkerKilledError
from calvin_eval.worlds.playtable.world import PlayTable


class Slow(Expert):
    """Thinks for a while, so that there is time to kill it."""

    def act(
        self, observations: Sequence[Observation], memories: Sequence[Memory]
    ) -> tuple[np.ndarray, Sequence[Memory]]:
        time.sleep(0.005)
        return super().act(observations, memories)


def evaluate_slowly(out: str) -> None:
    """What the test of a kill starts and kills."""
    evaluate_chains(BLIND, partial(Slow, "D"), Path(out), ChainSettings(chains=6), workers=2)


class Breaking(Expert):
    """Fails, or dies, after a few instructions."""

    def __init__(self, kill: bool) -> None:
        super().__init__("D")
        self.kill, self.left = kill, 8

    def start(self, instruction: str) -> Memory:
        self.left -= 1
        if self.left < 0 and self.kill:
            time.sleep(0.5)  # what is finished is on its way for some milliseconds
            os.kill(os.getpid(), signal.SIGKILL)
        if self.left < 0:
            raise OSError("the camera fell off")
        return super().start(instruction)


def lines(out: Path) -> list[dict[str, Any]]:
    values = [json.loads(line) for line in (out / "chains.jsonl").read_text().splitlines()]
    return sorted(values, key=lambda value: value["index"])


def children(process: int) -> list[int]:
    """The processes that a process has started."""
    return [int(number) for number in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def ended(processes: list[int], within_s: float) -> bool:
    """Whether processes end in so many seconds; what nobody has waited for yet counts as ended."""
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        states = [Path(f"/proc/{process}/stat") for process in processes]
        if not any(state.exists() and state.read_text().rsplit(")", 1)[1].split()[0] != "Z" for state in states):
            return True
        time.sleep(0.02)
    return False


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An evaluation of six chains in one process, one at a time."""
    out = tmp_path_factory.mktemp("evaluation")
    evaluate_chains(BLIND, EXPERT, out, ChainSettings(chains=6), workers=1, batch=1, about={"policy": "expert"})
    return out


def test_workers_and_batches_change_nothing(uninterrupted: Path, tmp_path: Path) -> None:
    evaluate_chains(BLIND, EXPERT, tmp_path, ChainSettings(chains=6), workers=2, batch=2)
    assert lines(tmp_path) == lines(uninterrupted)


def test_results_hold_calvin_s_figures_and_where_they_come_from(uninterrupted: Path) -> None:
    results = json.loads((uninterrupted / "results.json").read_text())["0"]
    solved = [line["solved"] for line in lines(uninterrupted)]
    assert results["avg_seq_len"] == pytest.approx(np.mean(solved))
    assert results["chain_sr"] == {str(k): np.mean([n >= k for n in solved]) for k in range(1, 6)}
    assert all(set(counts) == {"success", "total"} for counts in results["task_info"].values())
    low, high = results["intervals"]["chain_sr"]["1"]
    assert low < results["chain_sr"]["1"] <= high
    assert results["settings"] == {
        **{"chains": 6, "max_steps": 360, "sentences": "validation"},
        **{"set": "reporting", "leash": None, "videos": 0, "failure_videos": 0, "seed": 0},
    }
    assert (results["policy"], results["scene"], results["renderer"]) == ("expert", "D", "none")
    assert {"git", "python", "numpy", "pybullet"} <= set(results["made_with"])


def test_a_killed_evaluation_goes_on_to_the_same_result(uninterrupted: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    code = f"import test_evaluate_processes; test_evaluate_processes.evaluate_slowly({str(tmp_path)!r})"
    process = subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.DEVNULL)
    chains_file = tmp_path / "chains.jsonl"
    while process.poll() is None and not (chains_file.exists() and chains_file.read_text().count("\n")):
        time.sleep(0.02)
    workers = children(process.pid)
    process.kill()
    process.wait()
    assert len(workers) >= 2 and ended(workers, within_s=1.0)
    finished = chains_file.read_text()
    assert 1 <= finished.count("\n") < 6
    chains_file.write_text(finished + '{"index": 5, "tas')  # a line that the kill cut short
    results = evaluate_chains(BLIND, EXPERT, tmp_path, ChainSettings(chains=6), workers=2)
    assert chains_file.read_text().startswith(finished)
    assert lines(tmp_path) == lines(uninterrupted)
    assert results["chain_sr"] == json.loads((uninterrupted / "results.json").read_text())["0"]["chain_sr"]


def test_a_worker_that_the_system_kills_is_one_line_with_advice(tmp_path: Path) -> None:
    words = ["--policy=expert", f"--out={tmp_path}", "--renderer=none", "--workers=1", "--settings.chains=200"]
    process = subprocess.Popen(
        [sys.executable, "-m", "roboflamingo.cli.main", "evaluate", *words],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    while process.poll() is None and not (tmp_path / "chains.jsonl").exists():
        time.sleep(0.02)
    for child in children(process.pid):
        if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes():
            os.kill(child, signal.SIGKILL)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 1
    assert re.fullmatch(r"roboflamingo evaluate: error: a worker process was killed by SIGKILL, .*continues it\n", said)


def test_more_chains_can_be_added_later(uninterrupted: Path, tmp_path: Path) -> None:
    for count in (2, 4):
        results = evaluate_chains(BLIND, EXPERT, tmp_path, ChainSettings(chains=count), workers=1)
        assert results["chains"] == count
    assert lines(tmp_path) == lines(uninterrupted)[:4]


def test_a_folder_with_other_settings_or_another_environment_is_refused(tmp_path: Path) -> None:
    idle = partial(Stubborn, 2)
    short = ChainSettings(chains=1, max_steps=2)
    evaluate_chains(BLIND, idle, tmp_path, short, workers=1, about={"execute": 1})
    with pytest.raises(UserError, match=r"other execute 1 \(now 8\), max_steps 2 \(now 3\) \(see .*settings\.json"):
        evaluate_chains(BLIND, idle, tmp_path, ChainSettings(chains=1, max_steps=3), about={"execute": 8})
    more = ChainSettings(chains=2, max_steps=2)
    with pytest.raises(UserError, match=r"other scene D \(now A\)"):
        evaluate_chains(partial(PlayTable, "A", renderer="none"), idle, tmp_path, more, about={"execute": 1})


@pytest.mark.parametrize(
    ("kill", "error", "message"),
    [(False, OSError, "^the camera fell off$"), (True, WorkerKilledError, "was killed by SIGKILL.*the same command")],
)
def test_a_worker_that_fails_or_dies_ends_the_evaluation_and_finished_chains_are_kept(
    tmp_path: Path, kill: bool, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        evaluate_chains(BLIND, partial(Breaking, kill), tmp_path, ChainSettings(chains=3), workers=1, batch=1)
    kept = [line["index"] for line in lines(tmp_path)]
    assert kept == [0]
