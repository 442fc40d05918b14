"""CALVIN's symbolic rules: in which conditions a chain may start, and which tasks may follow each other.

CALVIN SPEC 1.9. `chains.py` draws chains by them.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from calvin_eval.benchmark.tasks import TASKS

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


def initial_conditions() -> list[InitialCondition]:
    """The 192 initial conditions, in CALVIN's order."""
    places = ("table", "slider_right", "slider_left")
    product = itertools.product((0, 1), (0, 1), ("right", "left"), ("closed", "open"), places, places, places)
    return [
        InitialCondition(*values)
        for values in product
        if values.count("table") in (1, 2) and max(values.count("slider_right"), values.count("slider_left")) < 2
    ]


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
