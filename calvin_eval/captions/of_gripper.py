"""Questions about the gripper, and where things are from it."""

from __future__ import annotations

import numpy as np

from calvin_eval.captions.facts import Facts, grid
from calvin_eval.captions.of_blocks import Pair
from calvin_eval.captions.phrases import THINGS, colour, one_of, say, the_block
from calvin_eval.demonstrations.experts import grasp

HAND = "(the gripper|the hand)"
AXES = (("right", "left"), ("behind", "front"), ("up", "down"))
"""What the two directions of x, y and z are called, the positive one first."""
THERE, LITTLE, SOME = 0.02, 0.06, 0.15
"""Distances (m) along an axis up to which nothing, "little" and "some" is said of it; beyond it is "far"."""
SKIPPED = 0.6
"""Share of questions with the answer "nothing" that is left out: it is true more often than all others together."""
STRAIGHT, FAR_TURN = 0.15, 0.6
"""Turns of the hand (rad) up to which nothing is said of them, and from which they are far."""
FIXTURES = ("door", "drawer", "button", "switch")


def holding(facts: Facts, rng: np.random.Generator) -> Pair | None:
    """What the gripper holds."""
    if facts.held is None and (facts.unsure or rng.random() < SKIPPED):
        return None
    question = "(what does {hand} hold|what is {hand} holding|which block is in the gripper)"
    return say(question, rng, hand="(the gripper|the hand|the robot)"), "nothing" if facts.held is None else colour(
        facts.held
    )


def between(facts: Facts, rng: np.random.Generator) -> Pair | None:
    """Which block is between the fingers, open or closed, deep enough to be grasped."""
    inside = [name for name, block in facts.blocks.items() if facts.state.straddles(block)]
    if len(inside) > 1 or (not inside and rng.random() < SKIPPED):
        return None
    question = "(what|which block) is between the fingers"
    return say(question, rng), colour(inside[0]) if inside else "nothing"


def turn(facts: Facts, rng: np.random.Generator) -> Pair | None:
    """Which way the hand must turn to grasp a block."""
    names = [name for name in facts.told() if facts.held is None]
    if not names:
        return None
    name = one_of(rng, names)
    angle = grasp.grasp_yaw(facts.state, facts.blocks[name]) - facts.state.yaw
    size = abs(angle)
    if min(abs(size - border) for border in (STRAIGHT, FAR_TURN)) < 0.03:
        return None
    way = f"{'left' if angle > 0 else 'right'} {'little' if size < FAR_TURN else 'far'}"
    question = "(which way must {hand} turn to (grasp|take) {block}|how must {hand} turn for {block})"
    return say(question, rng, hand=HAND, block=the_block(name)), "straight" if size < STRAIGHT else way


def gripper_state(facts: Facts, rng: np.random.Generator) -> Pair | None:
    """Whether the fingers are open."""
    width = facts.state.width
    if facts.held is None and facts.unsure:
        return None
    if facts.held is not None:
        answer = f"closed on {colour(facts.held)}"
    elif width > 0.07:
        answer = "open"
    elif width < 0.01:
        answer = "closed"
    else:
        return None
    question = "(is the gripper open or closed|is the gripper closed or open|how are the fingers|how is the gripper)"
    return say(question, rng), answer


def things(facts: Facts) -> dict[str, tuple[str, np.ndarray]]:
    """What can be looked for: a name in templates, and the place (3,), by short name."""
    found = {
        colour(name): (the_block(name), facts.blocks[name].position)
        for name in facts.blocks
        if facts.visible(name) and facts.held != name
    }
    return found | {name: (f"the {THINGS[name]}", place) for name, place in facts.positions.items()}


def nearest(facts: Facts, rng: np.random.Generator) -> Pair | None:
    """Which block, or which thing to be handled, is nearest to the gripper."""
    of_blocks = rng.random() < 0.6
    places = {
        name: place
        for name, (_, place) in things(facts).items()
        if (name in FIXTURES) != of_blocks and name not in ("bulb", "led")
    }
    if of_blocks and len(places) < len(facts.blocks):
        return None
    distances = {name: float(np.linalg.norm(place - facts.state.tool)) for name, place in places.items()}
    first, second = sorted(distances, key=lambda name: distances[name])[:2]
    if distances[second] - distances[first] < 0.02:
        return None
    what = "(block|block|cube)" if of_blocks else "(handle or switch|thing to use)"
    question = "(which {what} is nearest to {hand}|which {what} is {hand} nearest to|to which {what} is {hand} closest)"
    return say(question, rng, what=what, hand=HAND), first


def above(facts: Facts, rng: np.random.Generator) -> Pair | None:
    """What is straight below the gripper."""
    places = {name: place for name, (_, place) in things(facts).items() if name not in ("bulb", "led", "switch")}
    offsets = {name: facts.state.tool - place for name, place in places.items()}
    aside = {name: float(np.hypot(offset[0], offset[1])) for name, offset in offsets.items() if offset[2] > 0.015}
    under = [name for name in aside if aside[name] < 0.025]
    if len(under) > 1 or (not under and min(aside.values(), default=1.0) < 0.07):
        return None
    if not under and rng.random() < 2 * SKIPPED - SKIPPED**2:  # rarer still to be above something
        return None
    question = "(what is below {hand}|what is {hand} above|over what is {hand}|what is straight under {hand})"
    return say(question, rng, hand=HAND), under[0] if under else "nothing"


def locate(facts: Facts, rng: np.random.Generator) -> Pair | None:
    """Where something is, in whole centimetres (`facts.grid`)."""
    places = {**things(facts), "gripper": (HAND, facts.state.tool)}
    name = one_of(rng, [*places, "gripper"])
    x, y, z = grid(places[name][1])
    question = "(at what place is {thing}|what are the numbers of {thing}|locate {thing}|give the place of {thing})"
    return say(question, rng, thing=places[name][0]), f"x {x} y {y} z {z}"


def offset(facts: Facts, rng: np.random.Generator) -> Pair | None:
    """Which way from the gripper to something, in words or in centimetres."""
    places = things(facts)
    blocks = [name for name in places if name not in THINGS]
    name = one_of(rng, blocks if blocks and rng.random() < 0.6 else list(places))
    thing, place = places[name]
    way = place - facts.state.tool
    if rng.random() < 0.5:
        question = "(which way is {thing}|which way must {hand} go to {thing}|where is {thing} from {hand})"
        return say(question, rng, thing=thing, hand=HAND), in_words(way)
    question = "(how many centimetres is it from {hand} to {thing}|how far must {hand} move to {thing} in centimetres)"
    return say(question, rng, thing=thing, hand=HAND), in_centimetres(way)


def in_words(way: np.ndarray) -> str:
    """A way (3,) (m) in words, as in "left far down little"."""
    words = []
    for value, names in zip(way, AXES, strict=True):
        size = abs(float(value))
        if size >= THERE:
            words += [names[int(value < 0)], "little" if size < LITTLE else "some" if size < SOME else "far"]
    return " ".join(words) if words else "there"


def in_centimetres(way: np.ndarray) -> str:
    """A way (3,) (m) in whole centimetres, as in "left 12 front 3 down 0"."""
    words = []
    for value, names in zip(way, AXES, strict=True):
        centimetres = round(100 * float(value))
        words += [names[int(centimetres < 0)], str(abs(centimetres))]
    return " ".join(words)
