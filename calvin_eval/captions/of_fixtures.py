"""Questions about door, drawer, switch and lights."""

from __future__ import annotations

import numpy as np

from calvin_eval.captions.facts import Facts
from calvin_eval.captions.of_blocks import Pair
from calvin_eval.captions.phrases import say
from calvin_eval.worlds.playtable.scenes import DRAWER_TRAVEL, SWITCH_TRAVEL

DOOR = "(the door|the sliding door|the slider)"


def door_side(facts: Facts) -> str | None:
    """Where the sliding door is: left, middle or right; None in between."""
    part = facts.state.slide / facts.geometry.slide_limit
    return "right" if part < 0.12 else "left" if part > 0.88 else "middle" if 0.3 < part < 0.7 else None


def drawer_way(facts: Facts) -> str | None:
    """How the drawer is: open, closed or half open; None in between."""
    part = facts.state.drawer / DRAWER_TRAVEL
    return "closed" if part < 0.1 else "open" if part > 0.85 else "half open" if 0.25 < part < 0.7 else None


def switch_way(facts: Facts) -> str | None:
    """How the lever is: up or down; None in between."""
    part = facts.state.switch / SWITCH_TRAVEL
    return "down" if part < 0.25 else "up" if part > 0.75 else None


def slider(facts: Facts, rng: np.random.Generator) -> Pair | None:
    """Where the sliding door is, or how far it is from its right end."""
    side = door_side(facts)
    if side is None or rng.random() < 0.35:
        percent = 10 * round(10 * float(np.clip(facts.state.slide / facts.geometry.slide_limit, 0, 1)))
        question = "(how far is {door} to the left in percent|how many percent is {door} slid to the left)"
        return say(question, rng, door=DOOR), str(percent)
    question = "(where is {door}|on which side is {door}|is {door} on the left the middle or the right)"
    return say(question, rng, door=DOOR), side


def drawer(facts: Facts, rng: np.random.Generator) -> Pair | None:
    """Whether the drawer is open, or how far."""
    way = drawer_way(facts)
    if way is None or rng.random() < 0.35:
        centimetres = round(100 * float(np.clip(facts.state.drawer, 0, DRAWER_TRAVEL)))
        question = "(how far is the drawer open in centimetres|how many centimetres is the drawer (out|open))"
        return say(question, rng), str(centimetres)
    question = (
        "(how is the drawer|is the drawer open or closed|is the drawer closed or open|in what state is the drawer)"
    )
    return say(question, rng), way


def bulb(facts: Facts, rng: np.random.Generator) -> Pair | None:
    """Whether the light bulb is lit."""
    name = "(the bulb|the light bulb|the lamp|the yellow light)"
    question = "(is {light} on or off|is {light} off or on|how is {light}|in what state is {light})"
    return say(question, rng, light=name), "on" if facts.state.lightbulb else "off"


def led(facts: Facts, rng: np.random.Generator) -> Pair | None:
    """Whether the LED is lit."""
    name = "(the led|the green light|the green led)"
    question = "(is {light} on or off|is {light} off or on|how is {light}|in what state is {light})"
    return say(question, rng, light=name), "on" if facts.state.led else "off"


def switch(facts: Facts, rng: np.random.Generator) -> Pair | None:
    """Whether the lever is up."""
    way = switch_way(facts)
    name = "(the switch|the lever)"
    question = "(is {switch} up or down|is {switch} down or up|how is {switch}|where is {switch} up or down)"
    return None if way is None else (say(question, rng, switch=name), way)
