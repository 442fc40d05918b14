"""What is said of play tables is true: every kind of question against a second reading of the raw state."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from itertools import islice

import numpy as np
import pytest
from judging import JUDGES, Moment

from calvin_eval.benchmark.instructions import sentences
from calvin_eval.benchmark.tasks import TASKS
from calvin_eval.captions.facts import facts_of
from calvin_eval.captions.moments import expert_moments, scattered_moments
from calvin_eval.captions.of_tasks import short_form
from calvin_eval.captions.questions import KINDS, ask
from calvin_eval.captions.states import state_names, state_targets
from calvin_eval.captions.wordings import OWN, own_sentence
from calvin_eval.worlds.playtable.bullet import pybullet as p
from calvin_eval.worlds.playtable.cameras import CameraSizes
from calvin_eval.worlds.playtable.scenes import RESTING_ROBOT_OBS, scene_geometry
from calvin_eval.worlds.playtable.variations import random_variation
from calvin_eval.worlds.playtable.world import PlayTable

QUESTIONS = 60


@pytest.fixture(scope="module")
def moments() -> list[Moment]:
    found = []
    rng = np.random.default_rng(7)
    for seed in range(4):
        variation = random_variation(np.random.default_rng(seed))
        geometry, appearance = (scene_geometry("D"), None) if seed == 3 else (variation.geometry, variation.appearance)
        with PlayTable(geometry, sizes=CameraSizes(108, 72), appearance=appearance) as world:
            for source, count in ((expert_moments(world, rng, 9), 20), (scattered_moments(world, rng), 20)):
                for observation in islice(source, count):
                    masks, info = world.masks(), world.info()
                    found.append(Moment(facts_of(world.geometry, observation, info, masks), info, masks))
    return found


@pytest.fixture(scope="module")
def asked(moments: list[Moment]) -> list[tuple[Moment, str, str, str]]:
    rng = np.random.default_rng(3)
    return [(moment, *text) for moment in moments for text in ask(moment.facts, rng, QUESTIONS)]


@pytest.mark.parametrize("kind", KINDS)
def test_every_answer_is_right_by_a_second_reading_of_the_state(asked, kind):
    mine = [(moment, question, answer) for moment, name, question, answer in asked if name == kind]
    assert len(mine) > 40
    wrong = [(question, answer) for moment, question, answer in mine if not JUDGES[kind](moment, question, answer)]
    assert not wrong, wrong[:5]


def test_texts_are_plain_short_and_of_few_words(asked):
    words = set()
    for _, kind, question, answer in asked:
        assert re.fullmatch(r"[a-z0-9]+( [a-z0-9]+)*", f"{question} {answer}"), (question, answer)
        assert len(answer.split()) <= (25 if kind == "caption" else 8)
        words |= {*question.split(), *answer.split()}
    words |= {word for task in TASKS for line in sentences(task, "training") for word in re.findall(r"\w+", line)}
    words |= {word for template in OWN.values() for word in re.findall(r"\w+", template)}
    assert len(words) < 700


def test_questions_about_one_moment_are_different(moments):
    texts = ask(moments[0].facts, np.random.default_rng(0), 12)
    assert len(texts) == 12 == len({question for _, question, _ in texts})


def test_yes_and_no_are_equally_frequent(asked):
    for kind in ("yes_no", "done"):
        answers = Counter(answer for _, name, _, answer in asked if name == kind)
        assert 0.4 < answers["yes"] / answers.total() < 0.6


def test_no_kind_of_question_has_one_answer_for_almost_all(asked):
    answers = defaultdict(Counter)
    for _, kind, _, answer in asked:
        answers[kind][answer] += 1
    for kind, counter in answers.items():
        assert counter.most_common(1)[0][1] < 0.75 * counter.total(), (kind, counter.most_common(3))


def test_no_sentence_that_measures_understanding_is_made():
    rng = np.random.default_rng(0)
    measuring = {line.replace(",", "") for t in TASKS for s in ("validation", "enriched") for line in sentences(t, s)}
    made = {own_sentence(task, rng) for task in TASKS for _ in range(300)}
    polite = re.compile(r"^(please|now|can you|could you|you should|your task is to|i want you to|next) ")
    assert not {polite.sub("", sentence) for sentence in made} & measuring
    assert len(made) > 2000


def test_sentences_of_different_tasks_are_different():
    rng = np.random.default_rng(0)
    of = defaultdict(set)
    for task in TASKS:
        for _ in range(200):
            of[own_sentence(task, rng)].add(short_form(task))
    assert not {sentence: forms for sentence, forms in of.items() if len(forms) > 1}
    assert len({short_form(task) for task in TASKS}) == len(TASKS)


# --- places ------------------------------------------------------------------------------------------------------


def table(scene: str = "A", **at: tuple[float, float]) -> np.ndarray:
    """A state with blocks on the table at (x, y), the others far away in the cabinet."""
    geometry, state = scene_geometry(scene), np.zeros(24)
    for number, name in enumerate(geometry.block_order):
        colour = name.removeprefix("block_")
        x, y = at.get(colour, (geometry.cabinet_opening[0] + 0.06 + 0.1 * number, 0.09))
        state[6 + 6 * number : 9 + 6 * number] = x, y, 0.4608 if y > 0.03 else 0.4598
    return state


def test_left_and_behind_are_so_in_the_static_cameras_picture_too():
    """More to the right is right of it in the picture; behind is higher up."""
    with PlayTable("A", sizes=CameraSizes(200, 84)) as world:
        world.reset(None, table(red=(-0.05, -0.1), blue=(0.2, -0.1)), render=False)
        static, _ = world.masks()
        columns = {name: np.argwhere(static[name]).mean(axis=0)[1] for name in ("block_red", "block_blue")}
        assert columns["block_red"] < columns["block_blue"]
        world.reset(None, table(red=(0.1, -0.14), blue=(0.1, -0.04)), render=False)
        static, _ = world.masks()
        rows = {name: np.argwhere(static[name]).mean(axis=0)[0] for name in ("block_red", "block_blue")}
        assert rows["block_blue"] < rows["block_red"]


def test_relations_of_a_state_made_by_hand():
    with PlayTable("A", renderer="none") as world:
        observation = world.reset(None, table(red=(-0.05, -0.14), blue=(0.2, -0.04)), render=False)
        facts = facts_of(world.geometry, observation, world.info())
    rng = np.random.default_rng(0)
    told = set()
    for _ in range(400):
        question, answer = KINDS["relation"][0](facts, rng)
        told.add((re.sub("brick|cube|object", "block", question), answer))
    assert ("is the red block left or right of the blue block", "left") in told
    assert ("is the blue block left or right of the red block", "right") in told
    assert ("is the red block in front of the blue block or behind it", "in front") in told
    assert ("which is further to the right the red block or the blue block", "blue") in told
    assert facts.places == {"block_red": "table", "block_blue": "table", "block_pink": "cabinet"}
    assert facts.side_in_cabinet("block_pink") == "left"


@pytest.mark.parametrize("scene", "ABCD")
def test_fixtures_are_where_the_physics_has_them(scene):
    state = table(scene)
    state[:4] = 0.1, 0.12, 0.0, 0.05
    with PlayTable(scene, renderer="none") as world:
        facts = facts_of(world.geometry, world.reset(None, state, render=False), world.info())
        links = {name: index for index, name in world.table.links.items()}
        names = {"door": "slide_link", "drawer": "drawer_link", "button": "button_link"}
        names |= {"switch": "switch_link", "bulb": "light_link", "led": "led_link"}
        for name, link in names.items():
            low, high = map(np.array, p.getAABB(world.table.uid, links[link], physicsClientId=world.client))
            place = facts.positions[name]
            assert (place > low - 0.004).all() and (place < high + 0.004).all(), name
            if name in ("button", "bulb", "led"):
                np.testing.assert_allclose(place, (low + high) / 2, atol=0.004)


def test_state_targets_are_of_order_one_and_bear_their_names():
    names = state_names()
    with PlayTable("A", renderer="none") as world:
        observation = world.reset(RESTING_ROBOT_OBS, table(red=(0.1, -0.1)), render=False)
        facts = facts_of(world.geometry, observation, world.info())
        values = dict(zip(names, state_targets(facts).tolist(), strict=True))
    assert len(set(names)) == len(names) and max(map(abs, values.values())) <= 4
    assert values["block_red x"] == pytest.approx((0.1 - 0.05) / 0.25, abs=0.01)
    assert values["tool to block_red y"] == pytest.approx((-0.1 - RESTING_ROBOT_OBS[1]) / 0.2, abs=0.02)
    assert (values["holds nothing"], values["block_red in table"], values["block_pink in cabinet"]) == (1, 1, 1)
    assert (values["slide"], values["drawer"], values["lightbulb"]) == (-1, -1, -1)


def test_a_block_standing_on_its_end_has_no_direction():
    geometry, state = scene_geometry("A"), table(blue=(0.1, -0.1))
    place = 6 + 6 * geometry.block_order.index("block_blue")
    state[place : place + 6] = 0.1, -0.1, 0.4798, 0, np.pi / 2, 0.3
    with PlayTable("A", renderer="none") as world:
        facts = facts_of(geometry, world.reset(None, state, render=False), world.info())
    values = dict(zip(state_names(), state_targets(facts).tolist(), strict=True))
    assert abs(values["block_blue sine of twice yaw"]) < 0.02 and abs(values["block_blue cosine of twice yaw"]) < 0.02
    assert facts.places["block_blue"] == "table"
