"""Any benchmark is evaluated: here a grid world with other actions, cameras, sub-tasks and lengths than CALVIN's."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import Counter
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import imageio.v2 as imageio
import numpy as np
import pytest
from gridworld import SUBTASKS, GridTasks, GridWorld, Slow, Walker

from calvin_eval.benchmark.metrics import mean_interval, summarize_episodes, wilson
from calvin_eval.evaluation.evaluate import RunSettings, evaluate
from calvin_eval.evaluation.folder import EvaluationFolder, read_results
from calvin_eval.evaluation.progress import rates
from calvin_eval.evaluation.runner import run_episodes
from calvin_eval.protocol import Episode, EpisodeResult, Observation
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
    run = {"episodes": 12, "videos": 0, "failure_videos": 0, "seed": 0}
    assert results["settings"] == {"seed_of_tasks": 0, "budget": 30, **run}


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
