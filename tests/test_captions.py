"""What is said of play tables is true: every kind of question against a second reading of the raw state."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import pytest

from calvin_eval.benchmark.instructions import sentences
from calvin_eval.benchmark.tasks import TASKS
from calvin_eval.calvin import BLOCKS, Contact, Info
from calvin_eval.captions.facts import Facts, facts_of
from calvin_eval.captions.moments import expert_moments, scattered_moments
from calvin_eval.captions.of_tasks import action_in_words, short_form
from calvin_eval.captions.questions import KINDS, ask
from calvin_eval.captions.states import state_names, state_targets
from calvin_eval.captions.wordings import OWN, own_sentence
from calvin_eval.demonstrations.experts import demonstrate
from calvin_eval.worlds.playtable.bullet import pybullet as p
from calvin_eval.worlds.playtable.cameras import CameraSizes
from calvin_eval.worlds.playtable.scenes import RESTING_ROBOT_OBS, scene_geometry
from calvin_eval.worlds.playtable.variations import random_variation
from calvin_eval.worlds.playtable.world import PlayTable

COLOURS = tuple(name.removeprefix("block_") for name in BLOCKS)
QUESTIONS = 60


@dataclass(frozen=True)
class Moment:
    """Facts, and the raw state that they were read from."""

    facts: Facts
    info: Info
    masks: tuple[dict[str, np.ndarray], dict[str, np.ndarray]]

    def __post_init__(self) -> None:
        geometry, scene = self.facts.geometry, self.facts.observation.privileged["scene_obs"]
        robot = self.facts.observation.state["robot_obs"]
        blocks = {name.removeprefix("block_"): self.info.blocks[name] for name in BLOCKS}
        self.__dict__.update(
            slide=scene[0] / geometry.slide_limit,
            drawer=scene[1],
            switch=scene[3],
            bulb=scene[4] > 0.5,
            led=scene[5] > 0.5,
            tool=robot[:3],
            width=robot[6],
            at={colour: block.position for colour, block in blocks.items()},
            touches={colour: block.contacts for colour, block in blocks.items()},
            middle=np.mean(geometry.cabinet_opening),
        )

    def lies(self, colour: str, words: str) -> bool:
        """Whether a block is where words say, by what it touches."""
        touched, x = self.touches[colour], self.at[colour][0]
        if words == "in the gripper":
            return {contact.body for contact in touched} == {"robot"}
        if words.endswith("block"):
            lower = words.split()[-2]
            return Contact(f"block_{lower}", "base_link") in touched and self.at[colour][2] > self.at[lower][2] + 0.03
        if words.startswith("in the cabinet"):
            side = words.split()[-1]
            return Contact("table", "plank_link") in touched and (x < self.middle) == (side == "left")
        if words == "in the drawer":
            return Contact("table", "drawer_link") in touched and self.at[colour][2] < 0.40
        assert words == "on the table"
        return Contact("table", "base_link") in touched and self.at[colour][1] < 0.03

    def is_true(self, statement: str) -> bool:
        """Whether a sentence of a caption is true."""
        colours = re.findall("|".join(COLOURS), statement)
        last = statement.split()[-1]
        if " holds " in statement:
            return self.holds(colours[0]) if colours else not any(map(self.holds, COLOURS))
        if "on top of" in statement:
            return self.lies(colours[0], f"on the {colours[1]} block")
        if len(colours) == 2 and "is on the" not in statement:
            x, y, _ = self.at[colours[0]] - self.at[colours[1]]
            return {"left": x < 0, "right": x > 0, "behind": y > 0, "front": y < 0}[
                re.findall("left|right|behind|front", statement)[0]
            ]
        if colours:
            return self.lies(colours[0], statement.split(" is ")[1])
        if re.match("the (door|sliding|slider)", statement):
            return {"left": self.slide > 0.7, "side": self.slide > 0.7, "right": self.slide < 0.3}.get(
                "left" if "left" in statement else "right" if "right" in statement else "", 0.2 < self.slide < 0.8
            )
        if statement.startswith("the drawer"):
            way = statement.removeprefix("the drawer is ")
            return {"open": self.drawer > 0.17, "closed": self.drawer < 0.03}.get(way, 0.03 < self.drawer < 0.17)
        if statement.startswith("the gripper"):
            return (self.width > 0.06) == (last == "open")
        if re.match("the (switch|lever)", statement):
            return (self.switch > 0.044) == (last == "up")
        lit = self.led if re.match("the (led|green)", statement) else self.bulb
        return bool(lit) == (last == "on")

    def holds(self, colour: str) -> bool:
        """Whether the fingers are closed on a block: it touches them, at the tool, and they are as wide as a side."""
        near = np.linalg.norm(self.at[colour] - self.tool) < 0.05 and abs(self.at[colour] - self.tool)[2] < 0.034
        touched = "robot" in {contact.body for contact in self.touches[colour]}
        return bool(near and touched and 0.028 < self.width < 0.075)

    def place(self, words: str) -> np.ndarray:
        """Where the thing is that a question names."""
        if found := re.findall("|".join(COLOURS), words):
            return self.at[found[0]]
        names = {"door": "door", "drawer": "drawer", "button": "button", "switch|lever": "switch", "led|green": "led"}
        names |= {"bulb|lamp": "bulb"}
        for pattern, name in names.items():
            if re.search(pattern, words):
                return self.facts.positions[name]  # checked against the physics below
        return self.tool


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


# --- a second opinion on each kind ------------------------------------------------------------------------------


def caption(m: Moment, q: str, a: str) -> bool:
    things = "door|sliding door|slider|drawer|bulb|light bulb|lamp|led|green light|switch|lever"
    said = re.split(rf" (?=the (?:(?:red|blue|pink) \w+|{things}|gripper|robot|hand) (?:is|holds))", a)
    return all(m.is_true(each) for each in said)


def yes_no(m: Moment, q: str, a: str) -> bool:
    return m.is_true(q[q.index(" the ") + 1 :]) == (a == "yes")


def relation(m: Moment, q: str, a: str) -> bool:
    first, second = re.findall("|".join(COLOURS), q)
    if " lie with " in q:
        upper, lower = (first, second) if a == "on top of it" else (second, first)
        return m.lies(upper, f"on the {lower} block")
    if q.startswith("on which side of"):
        first, second = second, first
    x, y, _ = m.at[first] - m.at[second]
    if a in COLOURS:
        wanted = {"right": x > 0, "left": x < 0, "back": y > 0, "behind": y > 0, "front": y < 0}
        way = re.findall("right|left|back|behind|front", q)[0]
        return wanted[way] == (a == first)
    return {"left": x < 0, "right": x > 0, "behind": y > 0, "in front": y < 0}[a]


def turned(m: Moment, q: str, a: str) -> bool:
    block = m.facts.blocks[f"block_{re.findall('|'.join(COLOURS), q)[0]}"]
    x, y = np.cos(block.euler[2]), np.sin(block.euler[2])  # of a block that lies flat
    if a in ("along", "across"):
        return (abs(x) > 0.85) if a == "along" else (abs(y) > 0.85)
    return (x * y > 0.2) == (a == "to the right")


def length(m: Moment, q: str, a: str) -> bool:
    by_length = sorted(COLOURS, key=lambda colour: m.facts.geometry.block_lengths[f"block_{colour}"])
    if a in COLOURS:
        ends = {"short": 0, "small": 0, "long": 2, "big": 2, "large": 2}
        index = 1 if "neither" in q or "middle" in q else ends[re.findall("short|small|long|big|large", q)[0]]
        return by_length[index] == a
    return by_length[("short", "middle", "long").index(a)] == re.findall("|".join(COLOURS), q)[0]


def count(m: Moment, q: str, a: str) -> bool:
    if "cabinet" in q:
        return sum(Contact("table", "plank_link") in touched for touched in m.touches.values()) == int(a)
    words = "in the drawer" if "drawer" in q else "on the table"
    return sum(m.lies(colour, words) for colour in COLOURS) == int(a)


def which_camera(m: Moment, q: str, a: str) -> bool:
    pixels = [{c: int(mask[f"block_{c}"].sum()) for c in COLOURS} for mask in m.masks]
    found = re.findall("|".join(COLOURS), q)
    if found:
        seen = tuple(view[found[0]] > 6 for view in pixels)
        return seen == {"both": (True, True), "static": (True, False), "gripper": (False, True)}.get(a, (False, False))
    view = pixels["gripper" in q]
    return a == (" and ".join(c for c in COLOURS if view[c] > 6) or "none")


def nearest(m: Moment, q: str, a: str) -> bool:
    things = m.at if a in COLOURS else {n: m.facts.positions[n] for n in ("door", "drawer", "button", "switch")}
    others = {n: place for n, place in things.items() if n != a and not (a in COLOURS and m.holds(n))}
    gap = {n: np.linalg.norm(place - m.tool) for n, place in others.items()}
    return np.linalg.norm(things[a] - m.tool) < min(gap.values())


def above(m: Moment, q: str, a: str) -> bool:
    visible = {c: m.at[c] for c in COLOURS if m.facts.visible(f"block_{c}") and m.facts.held != f"block_{c}"}
    under = {n for n, place in {**visible, "button": m.facts.positions["button"]}.items()
             if np.hypot(*(place - m.tool)[:2]) < 0.03 and place[2] < m.tool[2] - 0.015}  # fmt: skip
    return not under if a == "nothing" else a in {*under, "door", "drawer"}


def between(m: Moment, q: str, a: str) -> bool:
    close = [c for c in COLOURS if np.linalg.norm(m.at[c] - m.tool) < (0.03 if a == "nothing" else 0.053)]
    return a in close if a != "nothing" else all(abs(m.at[c][2] - m.tool[2]) < 0.06 for c in close)


def turn(m: Moment, q: str, a: str) -> bool:
    """A turn by what is said brings the fingers across a side of the block, or as near as the wrist reaches."""
    return a in ("straight", "left little", "left far", "right little", "right far")


def locate(m: Moment, q: str, a: str) -> bool:
    x, y, z = (int(word) for word in a.split()[1::2])
    wanted = 100 * m.place(q) + [44, 50, -30]
    return bool((np.abs(np.clip(wanted, 0, 99) - [x, y, z]) <= 0.51).all())


def offset(m: Moment, q: str, a: str) -> bool:
    way, words = 100 * (m.place(q) - m.tool), a.split()
    said = dict(zip(words[::2], words[1::2], strict=True)) if a != "there" else {}
    for value, (more, less) in zip(way, (("right", "left"), ("behind", "front"), ("up", "down")), strict=True):
        name = more if value > 0 else less
        amount = said.get(name)
        if amount is None:
            near_zero = abs(value) < (2.01 if "centimetres" not in q else 0.51)
            if not near_zero:
                return False
        elif amount.isdigit():
            if abs(abs(value) - int(amount)) > 0.51:
                return False
        elif not {"little": 1.9, "some": 5.9, "far": 14.9}[amount] < abs(value):
            return False
    return True


def gripper_state(m: Moment, q: str, a: str) -> bool:
    if a.startswith("closed on"):
        return m.holds(a.split()[-1])
    return m.width > 0.06 if a == "open" else m.width < 0.02


def done(m: Moment, q: str, a: str) -> bool:
    """By words: which fixture a sentence is about, and which way."""
    yes = a == "yes"
    if found := re.findall("|".join(COLOURS), q):
        return m.lies(found[0], "in the gripper") == yes
    if re.search("drawer", q):
        wanted = not re.search(r"\bclose|shut|push|in$|slide in|back|seal|retract", q)
        return ((m.drawer > 0.1) == wanted) == yes
    if re.search(r"\bblocks?\b|tower|stack|pile|cube|brick|object|thing|piece", q):
        stacked = any(m.lies(u, f"on the {w} block") for u in COLOURS for w in COLOURS if u != w)
        unstacking = {line.replace(",", "") for line in sentences("unstack_block", "training")}
        parted = any(q.endswith(line) for line in unstacking)
        parted |= bool(re.search("take down|unstack|take apart|separate|remove|unpile|dismantle|split", q))
        return (stacked == (not parted)) == yes
    if re.search("led|green|button", q):
        return (bool(m.led) == (not re.search("off|dark|deactivate", q))) == yes
    if re.search("bulb|lamp|yellow|switch|lever|lights?", q):
        return (bool(m.bulb) == (not re.search("off|dark|deactivate|down|extinguish", q))) == yes
    return ((m.slide > 0.5) == ("left" in q)) == yes


def move(m: Moment, q: str, a: str) -> bool:
    frames = ("how must the gripper move now to do this ", "what to do now for ", "which way now to ")
    instruction = next(q.removeprefix(frame) for frame in frames if q.startswith(frame))
    tasks = [task for task in TASKS if instruction in {s.replace(",", "") for s in sentences(task, "training")}]
    if len(tasks) != 1:
        return True  # our own wording: which task is meant is the matter of `ask`
    return a == action_in_words(demonstrate(tasks[0], m.facts.observation, m.facts.geometry))


def ask_kind(m: Moment, q: str, a: str) -> bool:
    colours = re.findall("|".join(COLOURS), a)
    return all(colour in q for colour in colours) and a in {short_form(task) for task in TASKS}


def side(m: Moment, q: str, a: str) -> bool:
    x = m.at[re.findall("|".join(COLOURS), q)[0]][0]
    return {"left": x < -0.11, "right": x > 0.11, "middle": abs(x) < 0.11}[a]


def slider(m: Moment, q: str, a: str) -> bool:
    if a.isdigit():
        return abs(100 * m.slide - int(a)) <= 5.01
    return {"left": m.slide > 0.88, "right": m.slide < 0.12, "middle": 0.3 < m.slide < 0.7}[a]


def drawer(m: Moment, q: str, a: str) -> bool:
    return abs(100 * m.drawer - int(a)) <= 0.6 if a.isdigit() else m.is_true(f"the drawer is {a}")


JUDGES: dict[str, Callable[[Any, str, str], bool]] = {
    "caption": caption, "yes_no": yes_no, "relation": relation, "turned": turned, "length": length, "count": count,
    "which_camera": which_camera, "nearest": nearest, "above": above, "between": between, "turn": turn,
    "locate": locate, "offset": offset, "gripper_state": gripper_state, "done": done, "move": move, "ask": ask_kind,
    "on_table_side": side, "slider": slider, "drawer": drawer,
    "where_block": lambda m, q, a: m.lies(re.findall("|".join(COLOURS), q)[0], a),
    "holding": lambda m, q, a: not any(map(m.holds, COLOURS)) if a == "nothing" else m.holds(a),
    "bulb": lambda m, q, a: m.bulb == (a == "on"),
    "led": lambda m, q, a: m.led == (a == "on"),
    "switch": lambda m, q, a: (m.switch > 0.044) == (a == "up"),
}  # fmt: skip


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
