"""A second reading of the raw state, by which what is said of play tables is judged."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from calvin_eval.benchmark.instructions import sentences
from calvin_eval.benchmark.tasks import TASKS
from calvin_eval.calvin import BLOCKS, Contact, Info
from calvin_eval.captions.facts import Facts
from calvin_eval.captions.of_tasks import action_in_words, short_form
from calvin_eval.demonstrations.experts import demonstrate

COLOURS = tuple(name.removeprefix("block_") for name in BLOCKS)


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
    """So far on that side, the fingers lie across a side of the block; in the cabinet the frame limits them."""
    colour = re.findall("|".join(COLOURS), q)[0]
    if m.lies(colour, "in the cabinet on the left") or m.lies(colour, "in the cabinet on the right"):
        return True
    quarter = np.pi / 2
    first = (m.facts.blocks[f"block_{colour}"].yaw - m.facts.state.yaw) % quarter  # least turn to the left
    turns = first + quarter * np.arange(-6, 6)
    low, high = {"straight": (0, 0.16), "little": (0.14, 0.61), "far": (0.59, 6)}[a.split()[-1]]
    turns = turns if a == "straight" else turns[(turns > 0) == a.startswith("left")]
    return bool(((np.abs(turns) >= low) & (np.abs(turns) <= high)).any())


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
