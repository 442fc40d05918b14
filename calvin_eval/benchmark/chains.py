"""CALVIN's chains: an initial state and five instructions in a row, 1000 of them (CALVIN SPEC 1.9, 1.10).

The official 1000 ship as `data/chains.txt`; `python -m calvin_eval.benchmark.chains make` draws them again (a minute
and a half on one core). Smaller evaluations use the first n, so their results are part of the full one.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import track

from calvin_eval.benchmark.tasks import TASKS
from calvin_eval.system.errors import UserError
from calvin_eval.system.files import write_text
from calvin_eval.system.machine import cores
from calvin_eval.system.processes import run_jobs
from calvin_eval.system.signals import Stopped, stop_signals
from calvin_eval.worlds.playtable.scenes import DRAWER_TRAVEL, SWITCH_TRAVEL, scene_geometry

CHAINS = 1000
LENGTH = 5
FILE = Path(__file__).parent / "data" / "chains.txt"

COLOURS = ("red", "blue", "pink")


@dataclass(frozen=True)
class InitialCondition:
    """Where a chain starts, in words; the order of the fields matters (it seeds the block positions)."""

    led: int
    lightbulb: int
    slider: str
    drawer: str
    red_block: str
    blue_block: str
    pink_block: str
    grasped: int = 0


@dataclass(frozen=True)
class Chain:
    """One chain: where it starts and its five tasks."""

    condition: InitialCondition
    tasks: tuple[str, ...]


def initial_conditions() -> list[InitialCondition]:
    """The 192 initial conditions, in CALVIN's order."""
    places = ("table", "slider_right", "slider_left")
    product = itertools.product((0, 1), (0, 1), ("right", "left"), ("closed", "open"), places, places, places)
    return [
        InitialCondition(*values)
        for values in product
        if values.count("table") in (1, 2) and max(values.count("slider_right"), values.count("slider_left")) < 2
    ]


@lru_cache(maxsize=1)
def _official() -> tuple[Chain, ...]:
    conditions, tasks = initial_conditions(), list(TASKS)
    rows = [line.split() for line in FILE.read_text().splitlines() if not line.startswith("#")]
    return tuple(Chain(conditions[int(row[0])], tuple(tasks[int(i)] for i in row[1:])) for row in rows)


def chains(count: int = CHAINS) -> list[Chain]:
    """The first `count` of the official chains.

    Raises:
        UserError: count is not in 1..1000.
    """
    if not 1 <= count <= CHAINS:
        raise UserError(f"there are {CHAINS} official chains; ask for 1 to {CHAINS}, not {count}")
    return list(_official()[:count])


def initial_state(condition: InitialCondition, scene: str = "D") -> tuple[np.ndarray, np.ndarray]:
    """The state (robot_obs (15,), scene_obs (24,)) in which a chain starts.

    In scene D these are the official states. Scene A has D's cabinet and gets the same positions, listed in
    its own block order. In B and C official positions lie inside the cabinet's wall or at the button's
    collar, and the door's would be short of its limit or beyond; there the same draws go to the scene's own
    surfaces (a quarter from the ends of the table's, the middle of the cabinet's), and the door stands at its
    own limit.

    Raises:
        ValueError: no such scene.
    """
    geometry = scene_geometry(scene)
    rng = np.random.RandomState(_fnv1_32(str(asdict(condition).values())))
    table, slider_left, slider_right = _places(scene)
    rng.shuffle(table)
    yaws = {colour: rng.uniform(np.pi / 2 - np.pi / 8, np.pi / 2 + np.pi / 8) for colour in COLOURS}
    spots = {
        "red": table[0],
        "blue": table[1] if condition.red_block == "table" else table[0],
        "pink": table[1],
    }
    state = np.zeros(24)
    state[0] = geometry.slide_limit if condition.slider == "left" else 0.0
    state[1] = DRAWER_TRAVEL if condition.drawer == "open" else 0.0
    state[3] = SWITCH_TRAVEL if condition.lightbulb else 0.0
    state[4:6] = condition.lightbulb, condition.led
    for colour in COLOURS:
        place = getattr(condition, f"{colour}_block")
        position = {"table": spots[colour], "slider_left": slider_left, "slider_right": slider_right}[place]
        index = geometry.block_order.index(f"block_{colour}")
        state[6 + 6 * index : 12 + 6 * index] = [*position, 0.0, 0.0, yaws[colour]]
    return INITIAL_ROBOT_OBS.copy(), state


INITIAL_ROBOT_OBS = np.array(
    [
        *(0.02586889, -0.2313129, 0.5712808, 3.09045411, -0.02908596, 1.50013585, 0.07999963),
        *(-1.21779124, 1.03987629, 2.11978254, -2.34205014, -0.87015899, 1.64119093, 0.55344928, 1.0),
    ]
)
"""The robot's state (15,) at the start of every chain."""


def _places(scene: str) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    """Two places on the table, and one on either side of the cabinet."""
    if scene in ("A", "D"):
        front = [(0.0500000896, -0.120000177, 0.459990009), (0.229995412, -0.11999514, 0.45999001)]
        table = [np.array(place) for place in front]
        left = np.array([-0.240851662, 0.0924044687, 0.460990009])
        right = np.array([0.070341633, 0.0924044687, 0.460990009])
        return table, left, right
    surfaces = scene_geometry(scene).surfaces
    low, high = surfaces["table"][:, 0]
    quarter = 0.25 * (high - low)
    table = [np.array([x, -0.12, 0.45999]) for x in (low + quarter, high - quarter)]
    middles = (surfaces[f"slider_{side}"][:, 0].mean() for side in ("left", "right"))
    left, right = (np.array([x, 0.0924, 0.46099]) for x in middles)
    return table, left, right


def _fnv1_32(text: str) -> int:
    """The hash that CALVIN seeds with: FNV-1 over UTF-16-LE bytes, from zero instead of the offset basis."""
    value = 0
    for byte in text.encode("utf-16-le"):
        value = (value * 0x01000193) & 0xFFFFFFFF ^ byte
    return value


# --- how chains are drawn -----------------------------------------------------------------------------------

State = dict[str, Any]
Rule = tuple[Mapping[str, tuple[Any, ...]], State]
"""(values that the state must have, values it gets)"""


def _needs(**values: Any) -> dict[str, tuple[Any, ...]]:
    return {key: value if isinstance(value, tuple) else (value,) for key, value in values.items()}


def _rules() -> dict[str, list[Rule]]:
    """What each task asks of the state and does to it; possible is a task of which exactly one rule fits."""
    blocks = [f"{colour}_block" for colour in COLOURS]
    rules: dict[str, list[Rule]] = {
        "move_slider_left": [(_needs(slider="right", grasped=0), {"slider": "left"})],
        "move_slider_right": [(_needs(slider="left", grasped=0), {"slider": "right"})],
        "open_drawer": [(_needs(drawer="closed", grasped=0), {"drawer": "open"})],
        "close_drawer": [(_needs(drawer="open", grasped=0), {"drawer": "closed"})],
        "place_in_slider": [
            (
                _needs(**{block: "grasped", "slider": side, "grasped": 1}),
                {block: f"slider_{side}", "grasped": 0},
            )
            for block in blocks
            for side in ("right", "left")
        ],
        "place_in_drawer": [
            (_needs(**{block: "grasped", "drawer": "open", "grasped": 1}), {block: "drawer", "grasped": 0})
            for block in blocks
        ],
        "stack_block": [
            (
                _needs(**{a: "grasped", b: "table", "grasped": 1}),
                {a: "stacked_top", b: "stacked_bottom", "grasped": 0},
            )
            for a, b in itertools.permutations(blocks, 2)
        ],
        "unstack_block": [
            (_needs(**{a: "stacked_top", b: "stacked_bottom", "grasped": 0}), {a: "table", b: "table"})
            for a, b in itertools.permutations(blocks, 2)
        ],
        "push_into_drawer": [
            (
                _needs(
                    **{block: "table", "drawer": "open", "grasped": 0},
                    **{other: ("slider_right", "slider_left") for other in blocks if other != block},
                ),
                {block: "drawer", "grasped": 0},
            )
            for block in blocks
        ],
    }
    for light in ("lightbulb", "led"):
        rules[f"turn_on_{light}"] = [(_needs(**{light: 0, "grasped": 0}), {light: 1})]
        rules[f"turn_off_{light}"] = [(_needs(**{light: 1, "grasped": 0}), {light: 0})]
    for block in blocks:
        for verb, side in itertools.product(("rotate", "push"), ("right", "left")):
            rules[f"{verb}_{block}_{side}"] = [(_needs(**{block: "table", "grasped": 0}), {block: "table"})]
        held = {block: "grasped", "grasped": 1}
        rules[f"lift_{block}_table"] = [(_needs(**{block: "table", "grasped": 0}), held)]
        rules[f"lift_{block}_slider"] = [
            (_needs(**{block: f"slider_{side}", "slider": door, "grasped": 0}), held)
            for side, door in (("left", "right"), ("right", "left"))
        ]
        rules[f"lift_{block}_drawer"] = [(_needs(**{block: "drawer", "drawer": "open", "grasped": 0}), held)]
    return rules


def _category(task: str) -> str:
    """Tasks of one category occur at most once in a chain."""
    if task.startswith(("rotate", "push")) and task != "push_into_drawer":
        return "rotate and push"
    if task.startswith("lift"):
        return "lift from " + task.rsplit("_", 1)[1]
    if task in ("open_drawer", "close_drawer"):
        return "drawer"
    families = ("move_slider", "place_in", "turn")
    return next((family for family in families if task.startswith(family)), task)


_RULES = _rules()
_CATEGORIES = {task: _category(task) for task in TASKS}


def possible_in_a_row(condition: InitialCondition, tasks: tuple[str, ...]) -> bool:
    """Whether the tasks can follow each other from here, by CALVIN's symbolic rules."""
    if len({_CATEGORIES[task] for task in tasks}) < len(tasks):
        return False
    state: State = asdict(condition)
    for task in tasks:
        fitting = [gets for needs, gets in _RULES[task] if all(state[key] in needs[key] for key in needs)]
        if len(fitting) != 1:
            return False
        state.update(fitting[0])
    return True


def draw(index: int, count: int) -> list[Chain]:
    """The chains of the initial condition of an index, as many as asked."""
    condition = initial_conditions()[index]
    rng, names, found = np.random.RandomState(index), list(TASKS), list[Chain]()
    while len(found) < count:
        tasks = tuple(str(task) for task in rng.choice(names, size=LENGTH, replace=False))
        if possible_in_a_row(condition, tasks):
            found.append(Chain(condition, tasks))
    return found


def _draw(job: tuple[int, int]) -> tuple[int, list[Chain]]:
    index, count = job
    return index, draw(index, count)


def make(workers: int | None = None) -> list[Chain]:
    """Draws the official 1000 chains, on several cores (all of them by default)."""
    conditions = initial_conditions()
    counts = [len(part) for part in np.array_split(np.arange(CHAINS), len(conditions))]
    parts = track(run_jobs(_draw, list(enumerate(counts)), workers or cores()), "Drawing chains", total=len(counts))
    found = [chain for _, part in sorted(parts, key=lambda part: part[0]) for chain in part]
    order = list(range(CHAINS))
    np.random.RandomState(0).shuffle(order)
    return [found[index] for index in order]


def main(arguments: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser("python -m calvin_eval.benchmark.chains", description="CALVIN's five-task chains.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    verb = verbs.add_parser("make", help="draw the official 1000 chains again and write the file that ships")
    verb.add_argument("--out", type=Path, default=FILE, help="where to write them")
    options = parser.parse_args(arguments)
    conditions, names = initial_conditions(), list(TASKS)
    rows = ["# CALVIN's 1000 chains: index of the initial condition, then of five tasks (chains.py make)"]
    try:
        with stop_signals():
            made = make()
    except Stopped as stopped:
        return 128 + stopped.signal
    for chain in made:
        numbers = [conditions.index(chain.condition), *(names.index(task) for task in chain.tasks)]
        rows.append(" ".join(str(number) for number in numbers))
    write_text(options.out, "\n".join(rows) + "\n")
    print(f"{len(rows) - 1} chains written to {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
