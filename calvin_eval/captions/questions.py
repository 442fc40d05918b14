"""All kinds of questions by name, and several of them about one moment.

Texts have lower case words and whole numbers and nothing else, so that any tokenizer reads them. Answers have one to
eight words, captions up to 25.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from calvin_eval.captions import of_blocks, of_fixtures, of_gripper, of_tasks, statements
from calvin_eval.captions.facts import Facts
from calvin_eval.captions.of_blocks import Pair

Kind = Callable[[Facts, np.random.Generator], Pair | None]

KINDS: dict[str, tuple[Kind, float]] = {
    "caption": (statements.caption, 1.5),
    "yes_no": (statements.yes_no, 1.5),
    "where_block": (of_blocks.where_block, 1.5),
    "relation": (of_blocks.relation, 1.5),
    "on_table_side": (of_blocks.on_table_side, 0.7),
    "turned": (of_blocks.turned, 0.8),
    "length": (of_blocks.length, 0.5),
    "count": (of_blocks.count, 0.6),
    "which_camera": (of_blocks.which_camera, 0.8),
    "slider": (of_fixtures.slider, 0.8),
    "drawer": (of_fixtures.drawer, 0.8),
    "bulb": (of_fixtures.bulb, 0.6),
    "led": (of_fixtures.led, 0.6),
    "switch": (of_fixtures.switch, 0.5),
    "holding": (of_gripper.holding, 0.8),
    "between": (of_gripper.between, 0.6),
    "turn": (of_gripper.turn, 0.8),
    "gripper_state": (of_gripper.gripper_state, 0.5),
    "nearest": (of_gripper.nearest, 0.8),
    "above": (of_gripper.above, 0.6),
    "locate": (of_gripper.locate, 2.0),
    "offset": (of_gripper.offset, 2.0),
    "ask": (of_tasks.ask_for, 1.0),
    "done": (of_tasks.done, 1.0),
    "move": (of_tasks.move, 2.0),
}
"""How a question of each kind is made, and how often it is asked beside the others."""
TRIES = 6
"""Draws for each question wanted, at most: many kinds have nothing to ask of some moments."""


def ask(facts: Facts, rng: np.random.Generator, count: int) -> list[tuple[str, str, str]]:
    """Questions about one moment, no two alike.

    Args:
        facts: what is true.
        rng: of every draw.
        count: how many are wanted; there may be fewer.

    Returns:
        Kind, question and answer of each.
    """
    names = list(KINDS)
    weights = np.array([weight for _, weight in KINDS.values()])
    drawn = rng.choice(len(names), size=TRIES * count, p=weights / weights.sum())
    asked: dict[str, tuple[str, str, str]] = {}
    for number in drawn:
        name = names[number]
        pair = KINDS[name][0](facts, rng)
        if pair is not None:
            asked.setdefault(pair[0], (name, *pair))
        if len(asked) == count:
            break
    return list(asked.values())
