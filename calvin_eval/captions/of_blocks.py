"""Questions about the blocks."""

from __future__ import annotations

import numpy as np

from calvin_eval.calvin import BLOCKS
from calvin_eval.captions.facts import CABINET, CAMERAS, DRAWER, TABLE, Facts
from calvin_eval.captions.phrases import colour, listed, one_of, say, the_block, where
from calvin_eval.worlds.playtable.scenes import BIG, MIDDLE, SMALL

Pair = tuple[str, str]
"""A question and its answer."""
APART = 0.03
"""How far (m) two blocks must be apart along an axis for one to be left of, or behind, the other."""
LENGTHS = {SMALL: "short", MIDDLE: "middle", BIG: "long"}


def where_block(facts: Facts, rng: np.random.Generator) -> Pair | None:
    """On what, or in what, a block is."""
    answers = {name: place for name in facts.told() if (place := where(facts, name)) is not None}
    if not answers:
        return None
    name = one_of(rng, list(answers))
    question = say(
        "(where is {block}|where can one find {block}|tell me where {block} is|what place is {block} in)",
        rng,
        block=the_block(name),
    )
    return question, answers[name]


def relation(facts: Facts, rng: np.random.Generator) -> Pair | None:
    """How two blocks stand to each other."""
    told = facts.told()
    if len(told) < 2:
        return None
    first, second = (str(name) for name in rng.permutation(told)[:2])
    x, y, _ = facts.blocks[first].position - facts.blocks[second].position
    options = []
    sideways, depth = "right" if x > 0 else "left", "behind" if y > 0 else "in front"
    names = {"first": the_block(first), "second": the_block(second)}
    if abs(x) > APART:
        farther = colour(first if x > 0 else second), colour(second if x > 0 else first)
        options += [
            (say("is {first} (left or right|right or left) of {second}", rng, **names), sideways),
            (say("on which side of {second} is {first} left or right", rng, **names), sideways),
            (say("which (is|block is) (further|more) to the right {first} or {second}", rng, **names), farther[0]),
            (say("which (is|block is) (further|more) to the left {first} or {second}", rng, **names), farther[1]),
        ]
    if abs(y) > APART:
        farther = colour(first if y > 0 else second), colour(second if y > 0 else first)
        options += [
            (say("is {first} in front of {second} or behind it", rng, **names), depth),
            (say("which (is|block is) (further back|farther behind) {first} or {second}", rng, **names), farther[0]),
            (say("which (is|block is) nearer to the front {first} or {second}", rng, **names), farther[1]),
        ]
    if facts.below.get(first) == second:
        options += [(say("how does {first} lie with {second}", rng, **names), "on top of it")] * 2
    if facts.below.get(second) == first:
        options += [(say("how does {first} lie with {second}", rng, **names), "under it")] * 2
    return options[rng.integers(len(options))] if options else None


def on_table_side(facts: Facts, rng: np.random.Generator) -> Pair | None:
    """In which part of the table's width a block is."""
    answers = {}
    for name in facts.told():
        x = float(facts.blocks[name].position[0])
        if facts.places[name] == TABLE and min(abs(x + 0.11), abs(x - 0.11)) > 0.015:
            answers[name] = "left" if x < -0.11 else "right" if x > 0.11 else "middle"
    if not answers:
        return None
    name = one_of(rng, list(answers))
    question = say(
        "(on which (side|part) of the table is {block}|which part of the table is {block} on|"
        "is {block} on the left the middle or the right of the table)",
        rng,
        block=the_block(name),
    )
    return question, answers[name]


def turned(facts: Facts, rng: np.random.Generator) -> Pair | None:
    """How a block's long side lies: along the table's front edge, across it, or with its far end to one side."""
    answers = {}
    for name in facts.told():
        block = facts.blocks[name]
        if block.size[0] < 0.05 or abs(block.axes[2, 0]) > 0.2:
            continue
        along = block.axes[:2, 0]
        angle = float(np.degrees(np.arctan2(along[1], along[0])) % 180)  # of the long side, counter-clockwise from +x
        borders = np.array([22.5, 67.5, 112.5, 157.5])
        if np.abs(angle - borders).min() > 3:
            answers[name] = ("along", "to the right", "across", "to the left", "along")[int((angle > borders).sum())]
    if not answers:
        return None
    name = one_of(rng, list(answers))
    question = say(
        "(how is {block} turned|how does the long side of {block} lie|which way does {block} point)",
        rng,
        block=the_block(name),
    )
    return question, answers[name]


def length(facts: Facts, rng: np.random.Generator) -> Pair | None:
    """Which block is how long."""
    if not all(facts.visible(name) for name in BLOCKS):
        return None
    by_length = {LENGTHS[value]: name for name, value in facts.geometry.block_lengths.items()}
    kind = one_of(rng, list(by_length))
    name = by_length[kind]
    if rng.random() < 0.5:
        return say(
            "(how long is {block}|what size is {block}|what length has {block})", rng, block=the_block(name)
        ), kind
    words = {"short": "(shortest|smallest)", "middle": "(of middle length|neither long nor short)"}
    superlative = words.get(kind, "(longest|biggest|largest)")
    return say("(which block is {kind}|what colour is the block that is {kind})", rng, kind=superlative), colour(name)


def count(facts: Facts, rng: np.random.Generator) -> Pair | None:
    """How many blocks are in a place."""
    if len(facts.told()) < len(BLOCKS):
        return None
    places = {TABLE: "on the table", DRAWER: "in the drawer", CABINET: "in the cabinet"}
    numbers = {place: sum(facts.places[name] == place for name in BLOCKS) for place in places}
    if facts.held is not None and facts.places[facts.held] != "gripper":
        return None
    wanted = [place for place in places if numbers[place]] if rng.random() < 0.7 else list(places)
    place = one_of(rng, wanted or list(places))
    question = say(
        "(how many blocks are {place}|how many blocks lie {place}|count the blocks {place})",
        rng,
        place=places[place],
    )
    return question, str(numbers[place])


def which_camera(facts: Facts, rng: np.random.Generator) -> Pair | None:
    """What each camera sees."""
    seen = {camera: {name: facts.seen(camera, name) for name in BLOCKS} for camera in CAMERAS}
    options = []
    for camera in CAMERAS:
        if None not in seen[camera].values():
            colours = [colour(name) for name in BLOCKS if seen[camera][name]]
            question = say(
                "(what|which blocks) does the {camera} camera see|"
                "which blocks are in the (picture|image|view) of the {camera} camera".join("()"),
                rng,
                camera=camera,
            )
            options += [(question, listed(colours))] * (3 if camera == "gripper" else 1)
    for name in BLOCKS:
        static, gripper = (seen[camera][name] for camera in CAMERAS)
        if static is not None and gripper is not None:
            answer = {(True, True): "both", (True, False): "static", (False, True): "gripper"}.get(
                (static, gripper), "neither"
            )
            question = say("(which camera sees {block}|in which picture is {block})", rng, block=the_block(name))
            options.append((question, answer))
    return options[rng.integers(len(options))] if options else None
