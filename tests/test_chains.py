"""CALVIN's 1000 chains and where they start (CALVIN SPEC 1.9, 1.10)."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from calvin_eval.benchmark.calvin import CalvinChains
from calvin_eval.benchmark.chains import FIRST_SEEDS, SETS, Chain, chains, draw, initial_state
from calvin_eval.benchmark.rules import InitialCondition, initial_conditions, possible_in_a_row
from calvin_eval.calvin import BLOCKS, SCENES, Contact
from calvin_eval.system.errors import UserError
from calvin_eval.worlds.playtable.scenes import scene_geometry
from calvin_eval.worlds.playtable.world import PlayTable

OFFICIAL = "840cb992c69ce9b6d59f6020966b6300c15233f8e0b9667b6486c1962424d308"
START = InitialCondition(0, 0, "right", "closed", "table", "slider_right", "slider_left")


def as_json(some: list[Chain]) -> str:
    return json.dumps([[asdict(chain.condition), list(chain.tasks)] for chain in some])


def test_the_chains_that_ship_are_the_official_ones() -> None:
    assert hashlib.sha256(as_json(chains()).encode()).hexdigest() == OFFICIAL


def test_the_chains_that_ship_equal_the_reference(reference: Path) -> None:
    assert json.loads(as_json(chains())) == json.loads((reference / "eval_sequences.json").read_text())


@pytest.mark.parametrize("index", [0, 39, 40, 191])
def test_drawing_a_condition_s_chains_gives_those_that_ship(index: int) -> None:
    condition = initial_conditions()[index]
    shipped = [chain for chain in chains() if chain.condition == condition]
    assert len(shipped) == (6 if index < 40 else 5)
    assert Counter(draw(index, len(shipped))) == Counter(shipped)


@pytest.mark.parametrize("index", [0, 191])
def test_drawing_chains_for_choosing_gives_those_that_ship(index: int) -> None:
    condition = initial_conditions()[index]
    shipped = [chain for chain in chains(which="choosing") if chain.condition == condition]
    assert len(shipped) == (6 if index < 40 else 5)
    assert set(draw(index, len(shipped), FIRST_SEEDS["choosing"] + index, chains())) == set(shipped)


def test_no_chain_for_choosing_is_official_or_there_twice() -> None:
    choosing = chains(which="choosing")
    assert len(set(choosing)) == 1000 and not set(choosing) & set(chains())
    assert {chain.condition for chain in choosing} == set(initial_conditions())


def test_what_was_drawn_before_is_drawn_around() -> None:
    first = draw(0, 3)
    assert not set(draw(0, 3, without=first)) & set(first)


def test_the_benchmark_runs_the_set_that_it_is_told() -> None:
    for which in SETS:
        episodes = [CalvinChains(set=which).episode(number) for number in (0, 7)]
        assert [episode.tasks for episode in episodes] == [chains(8, which)[number].tasks for number in (0, 7)]
    assert CalvinChains().set == "reporting"
    with pytest.raises(UserError, match=r"settings\.set is 'testing'; it must be one of reporting, choosing"):
        CalvinChains(set="testing")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="no set of chains 'testing'"):
        chains(1, "testing")  # type: ignore[arg-type]


def test_smaller_draws_are_prefixes() -> None:
    assert chains(50) == chains(1000)[:50]


@pytest.mark.parametrize("count", [0, -1, 1001])
def test_there_are_one_to_a_thousand(count: int) -> None:
    with pytest.raises(ValueError, match=f"ask for 1 to 1000, not {count}"):
        chains(count)


def test_every_chain_is_possible_by_the_rules_that_draw_it() -> None:
    assert all(possible_in_a_row(chain.condition, chain.tasks) for which in SETS for chain in chains(which=which))


@pytest.mark.parametrize(
    ("tasks", "possible"),
    [
        (("move_slider_left", "open_drawer"), True),
        (("move_slider_right",), False),  # the door is there already
        (("open_drawer", "close_drawer"), False),  # of one category
        (("lift_pink_block_slider", "place_in_slider"), True),
        (("lift_blue_block_slider",), False),  # behind the door
        (("lift_red_block_table", "turn_on_led"), False),  # a full hand presses no button
        (("push_into_drawer",), False),  # the drawer is shut
        (("open_drawer", "push_into_drawer", "lift_red_block_drawer"), True),
        (("lift_pink_block_slider", "stack_block", "unstack_block"), True),
    ],
)
def test_what_may_follow_what(tasks: tuple[str, ...], possible: bool) -> None:
    assert possible_in_a_row(START, tasks) == possible


def test_stacking_needs_exactly_one_block_to_stack_on() -> None:
    tasks = ("lift_pink_block_slider", "stack_block")
    two_on_the_table = InitialCondition(0, 0, "right", "closed", "table", "table", "slider_left")
    assert not possible_in_a_row(two_on_the_table, tasks)


def test_initial_states_of_scene_d_equal_the_reference_to_the_bit(reference: Path) -> None:
    states = json.loads((reference / "initial_states.json").read_text())
    assert len(states) == 192
    for state in states:
        robot_obs, scene_obs = initial_state(InitialCondition(**state["initial_condition"]))
        assert robot_obs.tolist() == state["robot_obs"]
        assert scene_obs.tolist() == state["scene_obs"]


def test_scene_a_has_d_s_states_in_its_own_block_order() -> None:
    a, d = (initial_state(START, scene)[1] for scene in "AD")
    np.testing.assert_array_equal(a[:6], d[:6])
    for block in BLOCKS:
        i, j = (scene_geometry(scene).block_order.index(block) for scene in "AD")
        np.testing.assert_array_equal(a[6 + 6 * i : 12 + 6 * i], d[6 + 6 * j : 12 + 6 * j])


@pytest.mark.parametrize("scene", SCENES)
def test_in_every_scene_blocks_lie_still_where_the_condition_puts_them(scene: str) -> None:
    links = {"table": "base_link", "slider_left": "plank_link", "slider_right": "plank_link"}
    limit = scene_geometry(scene).slide_limit
    idle = np.array([0.0, 0, 0, 0, 0, 0, 1])
    with PlayTable(scene, renderer="none") as world:
        for condition in initial_conditions()[::6]:
            robot_obs, scene_obs = initial_state(condition, scene)
            world.reset(robot_obs, scene_obs, render=False)
            for _ in range(15):
                observation = world.step(idle, render=False)
            assert "scene_obs" in observation.privileged
            slide = observation.privileged["scene_obs"][0]
            assert slide == pytest.approx(limit if condition.slider == "left" else 0, abs=1e-3)
            info = world.info()
            for index, name in enumerate(scene_geometry(scene).block_order):
                place = getattr(condition, f"{name.removeprefix('block_')}_block")
                start = scene_obs[6 + 6 * index : 9 + 6 * index]
                assert np.abs(info.blocks[name].position - start).max() < 2e-3, (condition, name)
                assert info.blocks[name].contacts == {Contact("table", links[place])}, (condition, name)


def test_behind_the_door_is_where_the_condition_says() -> None:
    for scene in SCENES:
        for slider, hidden, free in (
            ("right", "slider_right", "slider_left"),
            ("left", "slider_left", "slider_right"),
        ):
            condition = InitialCondition(0, 0, slider, "closed", hidden, free, "table")
            geometry, (_, state) = scene_geometry(scene), initial_state(condition, scene)
            low, high = geometry.slide_span(state[0])
            x = {name: state[6 + 6 * i] for i, name in enumerate(geometry.block_order)}
            assert low < x["block_red"] < high
            assert not low < x["block_blue"] < high


def test_a_scene_that_does_not_exist_is_an_error() -> None:
    with pytest.raises(ValueError, match="scene 'E' does not exist"):
        initial_state(START, "E")
