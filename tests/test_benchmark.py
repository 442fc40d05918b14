"""Any benchmark is evaluated: here a grid world with other actions, cameras, sub-tasks and lengths than CALVIN's."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import imageio.v2 as imageio
import numpy as np
import pytest
from gridworld import MOVES, SUBTASKS, GridTasks, GridWorld, Walker

from calvin_eval.benchmark.metrics import mean_interval, summarize_episodes, wilson
from calvin_eval.evaluation.evaluate import RunSettings, evaluate
from calvin_eval.evaluation.folder import EvaluationFolder, read_results
from calvin_eval.evaluation.progress import rates
from calvin_eval.evaluation.runner import run_episodes
from calvin_eval.protocol import Episode, EpisodeResult, Memory, Observation
from calvin_eval.specs import PolicySpec
from calvin_eval.system.errors import UserError
from calvin_eval.system.sealing import sealed
from roboflamingo.cli.main import main

TASKS = GridTasks()
TWELVE = RunSettings(12)
SHY = partial(Walker, refuses="door")
"""Never opens a door, so that episodes end there."""


def lines(out: Path) -> list[dict[str, Any]]:
    values = [json.loads(line) for line in (out / "chains.jsonl").read_text().splitlines()]
    return sorted(values, key=lambda value: value["index"])


def until_the_door(episode: Episode) -> int:
    """How many sub-tasks come before the door."""
    return [*episode.tasks, "open_door"].index("open_door")


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("grid")
    evaluate(TASKS, GridWorld, SHY, out, TWELVE, workers=1, batch=3, about={"policy": "shy"})
    return out


# --- figures -----------------------------------------------------------------------------------------------


def test_episodes_have_one_two_or_three_sub_tasks_and_the_scripted_policy_solves_them_all() -> None:
    results = list(run_episodes(Walker(), [GridWorld()], map(TASKS.episode, range(60))))
    assert {len(result.tasks) for result in results} == {1, 2, 3}
    assert all(result.solved == len(result.tasks) == len(result.steps) for result in results)
    assert {result.tasks[0] for result in results} == {subtask.name for subtask in SUBTASKS}


def test_results_are_right_whatever_episodes_are_like(uninterrupted: Path) -> None:
    results = read_results(uninterrupted / "results.json")
    episodes = [TASKS.episode(index) for index in range(12)]
    solved = [until_the_door(episode) for episode in episodes]
    whole = sum(count == len(episode.tasks) for count, episode in zip(solved, episodes, strict=True))
    assert 0 < whole < 12 and results["episodes"] == 12
    assert results["solved_whole"] == whole / 12 and results["avg_solved"] == np.mean(solved)
    assert results["intervals"]["solved_whole"] == wilson(whole, 12)
    assert results["intervals"]["avg_solved"] == mean_interval(np.array(solved), 0, 3, seed=0)
    attempts = Counter(task for n, e in zip(solved, episodes, strict=True) for task in e.tasks[: n + 1])
    assert {name: entry["total"] for name, entry in results["subtasks"].items()} == attempts
    door = results["subtasks"].pop("open_door")
    assert (door["success"], door["rate"], door["interval"]) == (0, 0.0, wilson(0, door["total"]))
    assert all(entry["success"] == entry["total"] for entry in results["subtasks"].values())
    assert results["lengths"] == {str(index): count for index, count in enumerate(solved)}
    assert (results["benchmark"], results["renderer"], results["batch"]) == ("grid", "squares", 3)
    assert results["settings"] == {"seed_of_tasks": 0, "budget": 30, "episodes": 12, "videos": 0, "seed": 0}


def test_a_sub_task_that_is_not_solved_takes_the_whole_budget(uninterrupted: Path) -> None:
    for line in lines(uninterrupted):
        assert (line["steps"][-1] == 30) == (line["solved"] < len(line["tasks"]))


def test_workers_and_batches_change_nothing(uninterrupted: Path, tmp_path: Path) -> None:
    evaluate(TASKS, GridWorld, SHY, tmp_path, TWELVE, workers=2, batch=1)
    assert lines(tmp_path) == lines(uninterrupted)


def test_info_knows_it_and_a_report_says_that_it_is_of_calvin_s_chains(
    uninterrupted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["info", str(uninterrupted)])
    told = " ".join(capsys.readouterr().out.split())
    assert "an evaluation: 12 of 12 episodes" in told and "grid" in told and "sub-tasks solved on average" in told
    with pytest.raises(SystemExit):
        main(["report", str(uninterrupted)])
    assert "holds results of grid, and a report is of CALVIN's chains" in capsys.readouterr().err


def test_rates_on_the_progress_bar_are_of_the_episodes_that_are_as_long() -> None:
    results = [EpisodeResult(0, ("a",), 1, (5,)), EpisodeResult(1, ("a", "b"), 1, (5, 9))]
    assert rates(results) == "SR 100 0 % length 1.00"
    assert rates([]) == ""


def test_without_episodes_there_is_nothing_to_summarize() -> None:
    with pytest.raises(ValueError, match="no episode was evaluated"):
        summarize_episodes([])


@pytest.mark.parametrize(("subtasks", "steps"), [((), 5), (SUBTASKS, 0)])
def test_an_episode_without_sub_tasks_or_steps_is_refused(subtasks: Any, steps: int) -> None:
    with pytest.raises(UserError, match=r"episode 3 has .*mend the benchmark"):
        Episode(3, lambda env: Observation(), subtasks, steps)


# --- continued ---------------------------------------------------------------------------------------------


class Slow(Walker):
    """Thinks for a while, so that there is time to kill it."""

    def act(
        self, observations: Sequence[Observation], memories: Sequence[Memory]
    ) -> tuple[np.ndarray, Sequence[Memory]]:
        time.sleep(0.02)
        return super().act(observations, memories)


def evaluate_slowly(out: str) -> None:
    """What the test of a kill starts and kills."""
    evaluate(TASKS, GridWorld, partial(Slow, "door"), Path(out), TWELVE, workers=2, batch=2)


def in_the_background(out: Path) -> subprocess.Popen[bytes]:
    """A slow evaluation in another process, once it has finished an episode."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    code = f"import test_benchmark; test_benchmark.evaluate_slowly({str(out)!r})"
    process = subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.DEVNULL)
    while process.poll() is None and not ((out / "chains.jsonl").exists() and (out / "chains.jsonl").read_text()):
        time.sleep(0.01)
    return process


def test_a_killed_evaluation_goes_on_to_the_same_result(uninterrupted: Path, tmp_path: Path) -> None:
    process = in_the_background(tmp_path)
    process.kill()
    process.wait()
    finished = (tmp_path / "chains.jsonl").read_text()
    assert 1 <= finished.count("\n") < 12
    results = evaluate(TASKS, GridWorld, SHY, tmp_path, TWELVE, workers=1, batch=2)
    assert (tmp_path / "chains.jsonl").read_text().startswith(finished)
    assert lines(tmp_path) == lines(uninterrupted)
    assert results["subtasks"] == read_results(uninterrupted / "results.json")["subtasks"]


def test_other_settings_of_the_benchmark_are_another_evaluation(uninterrupted: Path, tmp_path: Path) -> None:
    evaluate(TASKS, GridWorld, Walker, tmp_path, RunSettings(2), workers=1)
    with pytest.raises(UserError, match=r"other seed_of_tasks 0 \(now 1\)"):
        evaluate(GridTasks(seed=1), GridWorld, Walker, tmp_path, RunSettings(2), workers=1)
    with pytest.raises(UserError, match="grid has 60 episodes; choose 1 to 60"):
        evaluate(TASKS, GridWorld, Walker, tmp_path, RunSettings(61), workers=1)


class Careless(GridTasks):
    """Calls a setting as evaluations do, which would then hide that it has changed."""

    @property
    def settings(self) -> dict[str, Any]:
        return {"seed": self.seed, "batch": 3}


def test_settings_of_a_benchmark_may_not_hide_those_of_the_evaluation(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the benchmark grid calls settings seed, batch as results do"):
        evaluate(Careless(), GridWorld, Walker, tmp_path, TWELVE, workers=1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"solved": 4}, "4 sub-tasks solved in 3 attempts"),
        ({"steps": (3, 31, 4)}, r"not all in 1\.\.30"),
        ({"index": 60}, "grid has 60 episodes"),
        ({"tasks": ("go_to_key",)}, "not those of grid"),
        ({"index": 1}, "not those of grid"),  # which has two sub-tasks
    ],
)
def test_a_line_that_no_episode_of_this_benchmark_can_be_is_run_again(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    folder = EvaluationFolder(tmp_path, {"settings": {"budget": 30}}, TASKS)
    good = EpisodeResult(2, TASKS.episode(2).tasks, 3, (3, 5, 4))
    folder.add(good)
    assert folder.read() == {2: good}
    folder.episodes.write_text(json.dumps(sealed({**asdict(good), **change})) + "\n")
    with pytest.warns(UserWarning, match=message):
        assert folder.read() == {}


# --- what policies are told, and what environments allow ---------------------------------------------------


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
        "import test_benchmark\nfrom calvin_eval.system.signals import stop_signals\n"
        f"with stop_signals(): test_benchmark.evaluate_with_log({str(tmp_path)!r})"
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
    results = evaluate(TASKS, make_env, SHY, tmp_path / "out", TWELVE, workers=1, batch=8)
    assert Counter(log.read_text().splitlines())["made"] == 2
    assert results["batch"] == read_results(tmp_path / "out" / "results.json")["batch"] == 2
    more = replace(TWELVE, episodes=13)
    with pytest.raises(UserError, match=r"other batch 2 \(now 8\)"):
        evaluate(TASKS, GridWorld, SHY, tmp_path / "out", more, workers=1, batch=8)


class Seeing(Walker):
    """Needs a camera that the grid world does not have."""

    spec = PolicySpec(("front",), {"agent": 3}, MOVES)


def test_a_policy_that_cannot_act_there_is_refused_before_anything_moves(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with pytest.raises(UserError, match="looks through front, and the environment of grid has top"):
        evaluate(TASKS, partial(GridWorld, None, log), Seeing, tmp_path / "out", TWELVE, workers=1)
    assert "reset" not in log.read_text() and not (tmp_path / "out" / "settings.json").exists()


# --- films -------------------------------------------------------------------------------------------------


def test_films_show_whatever_cameras_there_are_at_real_speed(tmp_path: Path) -> None:
    evaluate(TASKS, GridWorld, SHY, tmp_path, RunSettings(3, videos=1), workers=1)
    assert [path.name for path in (tmp_path / "videos").iterdir()] == ["chain_000.mp4"]
    film: Any = imageio.get_reader(tmp_path / "videos" / "chain_000.mp4")
    assert film.get_meta_data()["fps"] == 4
    steps = sum(lines(tmp_path)[0]["steps"])
    frames = [film.get_data(number) for number in range(film.count_frames())]
    assert len(frames) == 1 + steps + 3 and frames[0].shape == (364, 320, 3)


@pytest.mark.parametrize("wrong", [{"episodes": 0}, {"episodes": 3, "videos": 4}, {"episodes": 3, "seed": -1}])
def test_settings_that_make_no_sense_name_the_key(wrong: dict[str, int]) -> None:
    with pytest.raises(UserError, match=f"settings.{list(wrong)[-1]} is"):
        RunSettings(**wrong)
