"""The oracle: agreement with CALVIN's recorded answers, and the rules one by one (CALVIN SPEC 1.8)."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from calvin_eval.benchmark.tasks import TASKS, check, main, solved
from calvin_eval.calvin import BLOCKS, BlockState, Contact, Info

TABLE, PLANK, DRAWER = (Contact("table", link) for link in ("base_link", "plank_link", "drawer_link"))
FINGER = Contact("robot", "link_10")
PLACES = {"block_red": (0.1, -0.1, 0.46), "block_blue": (0.2, -0.1, 0.46), "block_pink": (0.0, 0.09, 0.46)}


def moment(**changes: Any) -> Info:
    """The blocks lie on the table, doors are shut, lights are off; `block_red=dict(...)` changes a block."""
    blocks = {
        name: BlockState(np.array(PLACES[name]), np.array([0.0, 0, 0, 1]), np.zeros(3), np.zeros(3), frozenset({TABLE}))
        for name in BLOCKS
    }
    for name in BLOCKS:
        given_here = dict(changes.pop(name, {}))
        contacts = frozenset(given_here.pop("contacts", {TABLE}))
        values = {key: np.array(value, float) for key, value in given_here.items()}
        blocks[name] = replace(blocks[name], contacts=contacts, **values)
    info = Info("D", {"base__slide": 0.0, "base__drawer": 0.0}, {"lightbulb": 0, "led": 0}, blocks, frozenset())
    return replace(info, **changes)


def turned(degrees: float, axis: str = "z") -> np.ndarray:
    return Rotation.from_euler(axis, degrees, degrees=True).as_quat()


def raised(height: float) -> tuple[float, float, float]:
    x, y, z = PLACES["block_red"]
    return x, y, z + height


def test_every_recorded_case_of_the_official_oracle_agrees(reference: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(reference / "oracle_cases.json.gz")]) == 0
    assert capsys.readouterr().out == "agree 6658/6658\n"


def test_a_disagreement_is_counted_named_and_the_exit_code(
    reference: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with gzip.open(reference / "oracle_cases.json.gz", "rt") as file:
        data = json.load(file)
    data["cases"] = [case for case in data["cases"] if not case[2]][:5]
    data["cases"][3][2] = ["open_drawer"]
    with gzip.open(tmp_path / "cases.json.gz", "wt") as file:
        json.dump(data, file)
    assert main(["check", str(tmp_path / "cases.json.gz")]) == 1
    output = capsys.readouterr().out
    assert "case 3: official ['open_drawer'], ours []" in output
    assert output.endswith("agree 4/5\n")


@pytest.mark.parametrize(
    "content",
    # Named, because gzip writes the second of its making into its result, and pytest's workers must agree on the names.
    [
        pytest.param(b"no gzip", id="no gzip"),
        pytest.param(gzip.compress(b"no json"), id="no json"),
        pytest.param(gzip.compress(b'{"cases": []}'), id="no cases"),
    ],
)
def test_a_file_that_holds_no_cases_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "cases.json.gz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"cases\.json\.gz is not a file of cases"):
        check(path)


def test_there_are_34_tasks_in_the_order_that_chains_are_drawn_from() -> None:
    names = list(TASKS)
    assert len(names) == 34
    assert names[:4] == [f"rotate_{c}_block_{s}" for c in ("red", "blue") for s in ("right", "left")]
    assert names[12:20] == [
        *("move_slider_left", "move_slider_right", "open_drawer", "close_drawer"),
        *(f"lift_red_block_{place}" for place in ("table", "slider", "drawer")),
        "lift_blue_block_table",
    ]
    assert names[-5:] == [
        *("turn_on_lightbulb", "turn_off_lightbulb", "turn_on_led", "turn_off_led"),
        "push_into_drawer",
    ]


def test_nothing_is_solved_while_nothing_changes() -> None:
    assert solved(moment(), moment()) == set()


def test_only_the_tasks_asked_for_are_tested() -> None:
    start, end = moment(), moment(lights={"lightbulb": 1, "led": 1})
    assert solved(start, end) == {"turn_on_lightbulb", "turn_on_led"}
    assert solved(start, end, ["turn_on_led", "open_drawer"]) == {"turn_on_led"}
    with pytest.raises(KeyError, match="juggle"):
        solved(start, end, ["juggle"])


@given(st.floats(-170, 170))
def test_a_turn_counts_beyond_sixty_degrees(degrees: float) -> None:
    found = solved(moment(), moment(block_red={"orientation": turned(degrees)}))
    if abs(abs(degrees) - 60) > 1e-6:
        expected = {"rotate_red_block_left"} if degrees > 60 else {"rotate_red_block_right"}
        assert found == (expected if abs(degrees) > 60 else set())


def test_a_turn_does_not_count_for_a_block_that_tipped_moved_or_hangs_in_the_gripper() -> None:
    tipped = Rotation.from_euler("xyz", [35, 0, 90], degrees=True).as_quat()
    for change in (
        {"orientation": tipped},
        {"orientation": turned(90), "position": (0.21, -0.1, 0.46)},
        {"orientation": turned(90), "contacts": {FINGER}},
    ):
        assert "rotate_red_block_left" not in solved(moment(), moment(block_red=change))


def test_a_push_counts_beyond_ten_centimetres_while_old_contacts_hold() -> None:
    def pushed(to_x: float, contacts: set[Contact]) -> set[str]:
        return solved(moment(), moment(block_red={"position": (to_x, -0.1, 0.46), "contacts": contacts}))

    assert pushed(0.21, {TABLE, FINGER}) == {"push_red_block_right"}
    assert pushed(-0.01, {TABLE, PLANK}) == {"push_red_block_left"}
    assert pushed(0.19, {TABLE}) == set()
    assert pushed(0.21, {PLANK}) == set()
    assert pushed(0.21, {FINGER}) == set()


@pytest.mark.parametrize(
    ("place", "link", "height"), [("table", TABLE, 0.05), ("slider", PLANK, 0.03), ("drawer", DRAWER, 0.05)]
)
def test_a_lift_leaves_its_place_and_touches_the_robot_alone(place: str, link: Contact, height: float) -> None:
    start = moment(block_red={"contacts": {link}})

    def lifted(by: float, contacts: set[Contact]) -> set[str]:
        return solved(start, moment(block_red={"position": raised(by), "contacts": contacts}))

    assert lifted(height + 0.001, {FINGER}) == {f"lift_red_block_{place}"}
    assert lifted(height - 0.001, {FINGER}) == set()
    assert lifted(height + 0.001, {FINGER, PLANK}) == set()
    assert lifted(height + 0.001, set()) == set()


@pytest.mark.parametrize(("place", "link"), [("slider", PLANK), ("drawer", DRAWER)])
def test_a_block_is_placed_from_the_hand_and_let_go(place: str, link: Contact) -> None:
    touch = frozenset({Contact("block_red", "base_link")})
    held = moment(block_red={"contacts": {FINGER}}, robot_contacts=touch)
    down = {"contacts": {link}}
    assert solved(held, moment(block_red=down)) == {f"place_in_{place}"}
    assert solved(held, moment(block_red=down, robot_contacts=touch)) == set()
    also_touching = replace(held, robot_contacts=touch | {TABLE})
    assert solved(also_touching, moment(block_red=down)) == set()
    pressed_down = moment(block_red={"contacts": {FINGER, TABLE}}, robot_contacts=touch)
    assert solved(pressed_down, moment(block_red=down)) == set()


def test_a_stack_rests_on_blocks_alone_and_is_at_rest() -> None:
    on_blue = Contact("block_blue", "base_link")
    assert solved(moment(), moment(block_red={"contacts": {on_blue}})) == {"stack_block"}
    assert solved(moment(), moment(block_red={"contacts": {on_blue, FINGER}})) == set()
    falling = {"contacts": {on_blue}, "linear_velocity": (0, 0, -1.5)}
    assert solved(moment(), moment(block_red=falling)) == set()
    assert solved(moment(block_red={"contacts": {on_blue}}), moment(block_red={"contacts": {on_blue}})) == set()


def test_unstacking_looks_at_the_speed_before_and_the_contacts_after() -> None:
    stacked = {"contacts": {Contact("block_blue", "base_link")}}
    assert solved(moment(block_red=stacked), moment(block_red={"contacts": {FINGER}})) == {"unstack_block"}
    assert solved(moment(block_red=stacked), moment(block_red=stacked)) == set()
    spinning = {**stacked, "angular_velocity": (0, 2, 0)}
    assert solved(moment(block_red=spinning), moment()) == set()


def test_the_robot_may_touch_a_block_that_it_pushed_into_the_drawer() -> None:
    inside = moment(block_red={"contacts": {DRAWER, FINGER}})
    assert solved(moment(), inside) == {"push_into_drawer"}
    assert solved(moment(block_red={"contacts": {TABLE, FINGER}}), inside) == set()


def test_doors_count_how_far_they_moved_and_lights_that_they_changed() -> None:
    half = {"base__slide": 0.14, "base__drawer": 0.11}
    far = {"base__slide": 0.16, "base__drawer": 0.13}
    assert solved(moment(), moment(doors=half)) == set()
    assert solved(moment(), moment(doors=far)) == {"move_slider_left", "open_drawer"}
    assert solved(moment(doors=far), moment()) == {"move_slider_right", "close_drawer"}
    lit = {"lightbulb": 1, "led": 1}
    assert solved(moment(lights=lit), moment()) == {"turn_off_lightbulb", "turn_off_led"}


@given(turn=st.tuples(*[st.floats(-180, 180)] * 3), first=st.tuples(*[st.floats(-180, 180)] * 3))
def test_a_turn_that_is_too_small_to_count_is_seen_from_the_quaternions_alone(turn: Any, first: Any) -> None:
    before = Rotation.from_euler("xyz", first, degrees=True)
    after = Rotation.from_euler("xyz", turn, degrees=True) * before
    start = moment(block_red={"orientation": before.as_quat()})
    end = moment(block_red={"orientation": after.as_quat()})
    x, y, z = (after * before.inv()).as_euler("xyz", degrees=True)
    counts = abs(x) < 30 and abs(y) < 30
    assert solved(start, end, ("rotate_red_block_left",)) == ({"rotate_red_block_left"} if counts and z > 60 else set())
