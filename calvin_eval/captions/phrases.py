"""How sentences are put together: choices between wordings, and what things are called."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from calvin_eval.captions.facts import BLOCK, CABINET, DRAWER, GRIPPER, TABLE, Facts

CHOICE = re.compile(r"\(([^()]*)\)")
BLOCK_NOUN = "(block|block|block|cube|brick|object)"
THINGS = {
    "door": "(door handle|handle of the door|handle of the sliding door)",
    "drawer": "(drawer handle|handle of the drawer)",
    "button": "button",
    "switch": "(switch|lever)",
    "bulb": "(bulb|light bulb|lamp)",
    "led": "(led|green light)",
}


def say(template: str, rng: np.random.Generator, **slots: str) -> str:
    """A sentence of a template: each `(this|that|)` becomes one of its choices, each {slot} what is given for it.

    Choices may stand inside each other, and within what is given for a slot.
    """
    text = template.format(**slots)
    while match := CHOICE.search(text):
        choices = match.group(1).split("|")
        text = text[: match.start()] + choices[rng.integers(len(choices))] + text[match.end() :]
    return " ".join(text.split())


def one_of(rng: np.random.Generator, values: Sequence[str]) -> str:
    """One of some words."""
    return values[int(rng.integers(len(values)))]


def colour(block: str) -> str:
    """The colour of a block by name: red for block_red."""
    return block.removeprefix("block_")


def the_block(block: str) -> str:
    """What a block is called in a question."""
    return f"the {colour(block)} {BLOCK_NOUN}"


def where(facts: Facts, block: str) -> str | None:
    """Where a block is, as in "on the table"; None where that has no name."""
    place = facts.places[block]
    if place == CABINET:
        side = facts.side_in_cabinet(block)
        return None if side is None else f"in the cabinet on the {side}"
    if place == BLOCK:
        return f"on the {colour(facts.below[block])} block"
    if place == GRIPPER:
        return "in the gripper"
    if facts.held == block:  # just taken, or about to be put down
        return None
    return {TABLE: "on the table", DRAWER: "in the drawer"}.get(place)


def listed(colours: Sequence[str]) -> str:
    """Several colours in words, as in "red and blue"."""
    return " and ".join(colours) if colours else "none"
