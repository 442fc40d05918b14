"""Chains are run by CALVIN's rules (SPEC 1.11)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import imageio.v2 as imageio
import numpy as np
import pytest

from acting import BLIND, Stubborn, run_chains
from calvin_eval.benchmark.chains import chains, initial_state
from calvin_eval.benchmark.instructions import sentences
from calvin_eval.demonstrations.experts import Expert
from calvin_eval.evaluation.chains import ChainSettings, evaluate_chains
from calvin_eval.protocol import EpisodeResult, Memory, Observation
from calvin_eval.system.errors import UserError
from calvin_eval.worlds.playtable.world import PlayTable


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


class Repeating(Expert):
    """The demonstrators, repeating each action: a chunk in which tasks are solved half-way."""

    repeat, sees = 3, True

    def act(
        self, observations: Sequence[Observation], memories: Sequence[Memory]
    ) -> tuple[np.ndarray, Sequence[Memory]]:
        assert all(observation.images["rgb_static"].shape == (200, 200, 3) for observation in observations)
        actions, memories = super().act(observations, memories)
        slower = actions * ([1 / self.repeat] * 6 + [1])
        return np.repeat(slower, self.repeat, axis=1), memories


@pytest.fixture()
def world() -> Iterator[Watched]:
    table = Watched("none")
    yield table
    table.close()


def run(policy: Any, env: Any, count: int, tmp_path: Path, **settings: Any) -> list[EpisodeResult]:
    every = ChainSettings(chains=count, **settings)
    return sorted(run_chains(policy, [env], range(count), every, tmp_path), key=lambda result: result.index)


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


def test_for_policies_that_see_no_images_none_are_rendered_but_for_films(world: Watched, tmp_path: Path) -> None:
    run(Expert("D"), world, 1, tmp_path)
    assert world.rendered and not any(world.rendered)
    with Watched("tinyrenderer") as filmed:
        run(Expert("D"), filmed, 1, tmp_path, max_steps=2, videos=1)
        assert filmed.rendered and all(filmed.rendered)


def test_environments_share_forward_passes_and_take_the_next_chain_when_free(tmp_path: Path) -> None:
    worlds = [BLIND() for _ in range(2)]
    policy = Stubborn()
    results = list(run_chains(policy, worlds, range(3), ChainSettings(chains=3, max_steps=2), tmp_path))
    assert sorted(result.index for result in results) == [0, 1, 2]
    assert policy.batches == [2, 2, 1, 1]
    for world in worlds:
        world.close()


@pytest.mark.parametrize(
    ("actions", "message"),
    [
        (np.zeros((1, 7)), r"shape \(1, 7\); 1 episodes need \(1, K, 7\)"),
        (np.zeros((1, 0, 7)), r"shape \(1, 0, 7\); .* K of at least 1"),  # nothing to do, for ever
        (np.zeros((2, 1, 7)), r"shape \(2, 1, 7\)"),
        (np.zeros((1, 1, 6)), r"shape \(1, 1, 6\)"),
        ([[[0.0] * 7, [0.0]]], "no array of numbers"),
        (np.full((1, 1, 7), np.nan), "not finite"),
        (np.zeros((1, 1, 7)), "whose gripper is neither -1 nor 1"),
    ],
)
def test_actions_that_no_policy_may_return_are_its_error_before_anything_moves(
    world: Watched, tmp_path: Path, actions: Any, message: str
) -> None:
    class Wrong(Stubborn):
        def act(self, observations: Any, memories: Any) -> Any:
            return actions, memories

    with pytest.raises(UserError, match=message):
        run(Wrong(), world, 1, tmp_path)
    assert world.rendered == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"chains": 0},
        {"chains": 1001},
        {"sentences": "test"},
        {"max_steps": 0},
        {"leash": -0.1},
        {"set": "official"},
        {"videos": -1},
    ],
)
def test_settings_that_make_no_sense_are_errors_that_name_the_key(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        ChainSettings(**wrong)


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
    with pytest.raises(UserError, match=r"renders nothing.*choose another renderer, or set settings\.videos to 0"):
        run(Stubborn(), world, 1, tmp_path, videos=1)


def test_calls_of_the_policy_and_the_tools_jerk_are_measured(tmp_path: Path) -> None:
    moving = np.array([0.5, 0, 0, 0, 0, 0, 1])
    table, settings = BLIND(), ChainSettings(chains=1, max_steps=10)
    still, smooth, jerky = (
        next(run_chains(policy, [table], [0], settings, tmp_path))
        for policy in (Stubborn(), Stubborn(4, moving), Shaking())
    )
    assert still.steps == smooth.steps == (10,)
    assert (still.calls, smooth.calls, jerky.calls) == ((10,), (3,), (10,))  # the last chunk is cut short
    assert still.jerk is not None and smooth.jerk is not None and jerky.jerk is not None
    assert still.jerk < 1 < smooth.jerk < jerky.jerk / 2
    table.close()


class Shaking(Stubborn):
    """To and fro."""

    def act(
        self, observations: Sequence[Observation], memories: Sequence[Memory]
    ) -> tuple[np.ndarray, Sequence[Memory]]:
        self.chunk = self.chunk * [[-1] * 6 + [1]] if self.batches else np.array([[1.0, 0, 0, 0, 0, 0, 1]])
        return super().act(observations, memories)


def test_chains_run_here_are_those_of_other_processes(tmp_path: Path) -> None:
    settings = ChainSettings(chains=2, max_steps=12)
    here = evaluate_chains(BLIND, Stubborn, tmp_path / "here", settings, here=True)
    there = evaluate_chains(BLIND, Stubborn, tmp_path / "there", settings, workers=1)
    assert {key: here[key] for key in ("lengths", "jerk", "task_info", "batch")} == {
        key: there[key] for key in ("lengths", "jerk", "task_info", "batch")
    }
    assert (tmp_path / "here" / "chains.jsonl").read_text() == (tmp_path / "there" / "chains.jsonl").read_text()
