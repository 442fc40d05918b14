"""Chains are run by CALVIN's rules, in any number of processes; no kill loses a finished one (SPEC 1.11)."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import imageio.v2 as imageio
import numpy as np
import pytest

from calvin_eval.chains import chains, initial_state
from calvin_eval.evaluate import ChainResult, EvaluateSettings, evaluate, run_chains
from calvin_eval.experts import Expert
from calvin_eval.instructions import sentences
from calvin_eval.protocol import Memory, Observation
from calvin_eval.world.playtable import PlayTable

BLIND = partial(PlayTable, "D", renderer="none")
EXPERT = partial(Expert, "D")
IDLE = np.array([0.0, 0, 0, 0, 0, 0, 1])


class Watched(PlayTable):
    """A play table that notes resets, and for each step whether it was rendered."""

    def __init__(self, renderer: str = "panda3d") -> None:
        super().__init__("D", renderer)
        self.resets: list[Any] = []
        self.rendered: list[bool] = []

    def reset(self, robot_obs: Any = None, scene_obs: Any = None, *, render: bool = True) -> Observation:
        self.resets.append((robot_obs, scene_obs))
        return super().reset(robot_obs, scene_obs, render=render)

    def step(self, action: Any, *, render: bool = True) -> Observation:
        self.rendered.append(render)
        return super().step(action, render=render)


class Stubborn:
    """Does the same for ever, in chunks of a length, and notes instructions and batch sizes."""

    def __init__(self, chunk: int = 1, action: np.ndarray = IDLE) -> None:
        self.chunk, self.action = np.tile(action, (chunk, 1)), action
        self.instructions: list[str] = []
        self.batches: list[int] = []

    def start(self, instruction: str) -> Memory:
        self.instructions.append(instruction)
        return len(self.instructions)

    def act(
        self, observations: Sequence[Observation], memories: Sequence[Memory]
    ) -> tuple[np.ndarray, Sequence[Memory]]:
        self.batches.append(len(observations))
        return np.stack([self.chunk] * len(observations)), memories


class Repeating(Expert):
    """The demonstrators, repeating each action: a chunk in which tasks are solved half-way."""

    repeat = 3

    def act(
        self, observations: Sequence[Observation], memories: Sequence[Memory]
    ) -> tuple[np.ndarray, Sequence[Memory]]:
        assert all(observation.rgb_static.shape == (200, 200, 3) for observation in observations)
        actions, memories = super().act(observations, memories)
        slower = actions * ([1 / self.repeat] * 6 + [1])
        return np.repeat(slower, self.repeat, axis=1), memories


class Slow(Expert):
    """Thinks for a while, so that there is time to kill it."""

    def act(
        self, observations: Sequence[Observation], memories: Sequence[Memory]
    ) -> tuple[np.ndarray, Sequence[Memory]]:
        time.sleep(0.005)
        return super().act(observations, memories)


def evaluate_slowly(out: str) -> None:
    """What the test of a kill starts and kills."""
    evaluate(BLIND, partial(Slow, "D"), Path(out), EvaluateSettings(chains=6), workers=2)


class Breaking(Expert):
    """Fails, or dies, after a few instructions."""

    def __init__(self, kill: bool) -> None:
        super().__init__("D")
        self.kill, self.left = kill, 8

    def start(self, instruction: str) -> Memory:
        self.left -= 1
        if self.left < 0 and self.kill:
            os.kill(os.getpid(), signal.SIGKILL)
        if self.left < 0:
            raise OSError("the camera fell off")
        return super().start(instruction)


@pytest.fixture()
def world() -> Iterator[Watched]:
    table = Watched("none")
    yield table
    table.close()


def run(policy: Any, env: Any, count: int, tmp_path: Path, **settings: Any) -> list[ChainResult]:
    every = EvaluateSettings(chains=count, **settings)
    return sorted(run_chains(policy, [env], range(count), every, tmp_path), key=lambda result: result.index)


def lines(out: Path) -> list[dict[str, Any]]:
    values = [json.loads(line) for line in (out / "chains.jsonl").read_text().splitlines()]
    return sorted(values, key=lambda value: value["index"])


# --- one chain ---------------------------------------------------------------------------------------------


def test_a_chain_ends_with_its_first_failure_after_as_many_steps_as_allowed(world: Watched, tmp_path: Path) -> None:
    policy = Stubborn()
    results = run(policy, world, 2, tmp_path, max_steps=7)
    assert [(r.solved, r.steps) for r in results] == [(0, (7,)), (0, (7,))]
    assert len(world.rendered) == 14
    assert [r.tasks for r in results] == [chain.tasks for chain in chains(2)]


def test_360_steps_are_allowed_unless_told_otherwise(world: Watched, tmp_path: Path) -> None:
    assert run(Stubborn(chunk=30), world, 1, tmp_path)[0].steps == (360,)


def test_time_runs_out_within_a_chunk(world: Watched, tmp_path: Path) -> None:
    assert run(Stubborn(chunk=5), world, 1, tmp_path, max_steps=7)[0].steps == (7,)


def test_the_world_is_reset_once_a_chain_and_each_task_gets_its_validation_sentence(
    world: Watched, tmp_path: Path
) -> None:
    told: list[str] = []

    class Listening(Expert):
        def start(self, instruction: str) -> Memory:
            told.append(instruction)
            return super().start(instruction)

    results = run(Listening("D"), world, 2, tmp_path)
    assert sum(result.solved for result in results) > 4
    assert len(world.resets) == 2
    for (robot_obs, scene_obs), chain in zip(world.resets, chains(2), strict=True):
        for given, official in zip((robot_obs, scene_obs), initial_state(chain.condition), strict=True):
            np.testing.assert_array_equal(given, official)
    attempted = [task for result in results for task in result.tasks[: len(result.steps)]]
    assert told == [sentences(task, "validation")[0] for task in attempted]
    for result in results:
        assert len(result.steps) == min(result.solved + 1, 5)


def test_enriched_sentences_differ_between_chains(world: Watched, tmp_path: Path) -> None:
    policy = Stubborn()
    run(policy, world, 12, tmp_path, max_steps=1, sentences="enriched")
    firsts = [chain.tasks[0] for chain in chains(12)]
    expected = [sentences(task, "enriched")[number] for number, task in enumerate(firsts)]
    assert policy.instructions == expected


def test_success_ends_a_chunk_and_the_next_task_begins_with_a_fresh_look(tmp_path: Path) -> None:
    with Watched() as world:
        (result,) = run(Repeating("D"), world, 1, tmp_path)
        assert result.solved >= 2
        assert any(steps % Repeating.repeat for steps in result.steps[: result.solved])


def test_images_are_rendered_only_where_the_policy_looks_next(world: Watched, tmp_path: Path) -> None:
    run(Stubborn(chunk=3), world, 1, tmp_path, max_steps=9)
    assert world.rendered == [False, False, True] * 2 + [False] * 3


def test_environments_share_forward_passes_and_take_the_next_chain_when_free(tmp_path: Path) -> None:
    worlds = [BLIND() for _ in range(2)]
    policy = Stubborn()
    results = list(run_chains(policy, worlds, range(3), EvaluateSettings(chains=3, max_steps=2), tmp_path))
    assert sorted(result.index for result in results) == [0, 1, 2]
    assert policy.batches == [2, 2, 1, 1]
    for world in worlds:
        world.close()


def test_actions_of_another_shape_are_an_error_that_says_which(world: Watched, tmp_path: Path) -> None:
    class Wrong(Stubborn):
        def act(self, observations: Any, memories: Any) -> Any:
            return np.zeros((1, 7)), memories

    with pytest.raises(ValueError, match=r"shape \(1, 7\); 1 episodes need \(1, K, 7\)"):
        run(Wrong(), world, 1, tmp_path)


@pytest.mark.parametrize(
    "wrong",
    [
        {"chains": 0},
        {"chains": 1001},
        {"sentences": "test"},
        {"max_steps": 0},
        {"leash": 0.0},
        {"videos": -1},
    ],
)
def test_settings_that_make_no_sense_are_errors_that_name_the_key(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        EvaluateSettings(**wrong)


# --- many processes ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An evaluation of six chains in one process, one at a time."""
    out = tmp_path_factory.mktemp("evaluation")
    evaluate(BLIND, EXPERT, out, EvaluateSettings(chains=6), workers=1, batch=1, about={"policy": "expert"})
    return out


def test_workers_and_batches_change_nothing(uninterrupted: Path, tmp_path: Path) -> None:
    evaluate(BLIND, EXPERT, tmp_path, EvaluateSettings(chains=6), workers=2, batch=2)
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
        **{"leash": None, "videos": 0, "seed": 0},
    }
    assert (results["policy"], results["scene"], results["renderer"]) == ("expert", "D", "none")
    assert {"git", "python", "numpy", "pybullet"} <= set(results["made_with"])


def test_a_killed_evaluation_goes_on_to_the_same_result(uninterrupted: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    code = f"import test_evaluate; test_evaluate.evaluate_slowly({str(tmp_path)!r})"
    process = subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.DEVNULL)
    chains_file = tmp_path / "chains.jsonl"
    while process.poll() is None and not (chains_file.exists() and chains_file.read_text().count("\n")):
        time.sleep(0.02)
    process.kill()
    process.wait()
    finished = chains_file.read_text()
    assert 1 <= finished.count("\n") < 6
    chains_file.write_text(finished + '{"index": 5, "tas')  # a line that the kill cut short
    results = evaluate(BLIND, EXPERT, tmp_path, EvaluateSettings(chains=6), workers=2)
    assert chains_file.read_text().startswith(finished)
    assert lines(tmp_path) == lines(uninterrupted)
    assert results["chain_sr"] == json.loads((uninterrupted / "results.json").read_text())["0"]["chain_sr"]


def test_more_chains_can_be_added_later(uninterrupted: Path, tmp_path: Path) -> None:
    for count in (2, 4):
        results = evaluate(BLIND, EXPERT, tmp_path, EvaluateSettings(chains=count), workers=1)
        assert results["chains"] == count
    assert lines(tmp_path) == lines(uninterrupted)[:4]


def test_a_folder_with_other_settings_or_another_environment_is_refused(tmp_path: Path) -> None:
    idle = partial(Stubborn, 2)
    short = EvaluateSettings(chains=1, max_steps=2)
    evaluate(BLIND, idle, tmp_path, short, workers=1, about={"execute": 1})
    with pytest.raises(ValueError, match=r"other execute 1 \(now 8\), max_steps 2 \(now 3\); see .*settings\.json"):
        evaluate(BLIND, idle, tmp_path, EvaluateSettings(chains=1, max_steps=3), about={"execute": 8})
    more = EvaluateSettings(chains=2, max_steps=2)
    with pytest.raises(ValueError, match=r"other scene D \(now A\)"):
        evaluate(partial(PlayTable, "A", renderer="none"), idle, tmp_path, more, about={"execute": 1})


@pytest.mark.parametrize(
    ("kill", "message"), [(False, "the camera fell off"), (True, r"ended early \(exit codes .*-9")]
)
def test_a_worker_that_fails_or_dies_ends_the_evaluation_and_finished_chains_are_kept(
    tmp_path: Path, kill: bool, message: str
) -> None:
    with pytest.raises(RuntimeError, match=message):
        evaluate(BLIND, partial(Breaking, kill), tmp_path, EvaluateSettings(chains=3), workers=1, batch=1)
    kept = [line["index"] for line in lines(tmp_path)]
    assert kept == [0]


# --- films -------------------------------------------------------------------------------------------------


def test_the_first_chains_are_filmed_with_both_cameras_at_real_speed(tmp_path: Path) -> None:
    with PlayTable("D") as world:
        run(Stubborn(), world, 2, tmp_path, max_steps=30, videos=1)
    assert [path.name for path in tmp_path.iterdir()] == ["chain_000.mp4"]
    film: Any = imageio.get_reader(tmp_path / "chain_000.mp4")
    assert film.get_meta_data()["fps"] == 15
    frames = [film.get_data(number) for number in range(film.count_frames())]
    assert len(frames) == 1 + 15 + 12  # the start, every second step, the outcome held
    assert frames[0].shape == (364, 640, 3)
    red_share = (frames[-1][320:, :, 0].astype(int) - frames[-1][320:, :, 1] > 60).mean()
    assert red_share > 0.002  # "failed" is written in red


def test_filming_needs_images(world: Watched, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="renders nothing"):
        run(Stubborn(), world, 1, tmp_path, videos=1)
