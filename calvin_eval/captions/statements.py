"""Statements about a moment, true or false on demand: what captions and yes-or-no questions are made of."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from calvin_eval.captions.facts import Facts
from calvin_eval.captions.of_blocks import APART, Pair
from calvin_eval.captions.of_fixtures import DOOR, door_side, drawer_way, switch_way
from calvin_eval.captions.phrases import colour, one_of, say, where

CAPTION_WORDS = 25
"""Words that a caption has at most."""
Statement = Callable[[Facts, np.random.Generator, bool], str | None]
"""Makes a true or a false statement, or None where there is none to make."""
BLOCK = "(block|block|cube)"
WHERE = (
    "on the table",
    "in the drawer",
    "in the cabinet on the left",
    "in the cabinet on the right",
    "in the gripper",
)


def _where_block(facts: Facts, rng: np.random.Generator, truth: bool) -> str | None:
    places = {name: place for name in facts.told() if (place := where(facts, name)) is not None}
    if not places:
        return None
    name = one_of(rng, list(places))
    place = places[name] if truth else one_of(rng, [other for other in WHERE if other != places[name]])
    return say("the {c} {block} is {place}", rng, c=colour(name), block=BLOCK, place=place)


def _relation(facts: Facts, rng: np.random.Generator, truth: bool) -> str | None:
    told = facts.told()
    if len(told) < 2:
        return None
    first, second = (str(name) for name in rng.permutation(told)[:2])
    x, y, _ = facts.blocks[first].position - facts.blocks[second].position
    words = []
    for value, (more, less) in (
        (x, ("(right of|to the right of)", "(left of|to the left of)")),
        (y, ("behind", "in front of")),
    ):
        if abs(value) > APART:
            words.append(more if (value > 0) == truth else less)
    if not words:
        return None
    names = {"first": colour(first), "second": colour(second), "block": BLOCK}
    return say("the {first} {block} is {how} the {second} {block}", rng, how=one_of(rng, words), **names)


def _stacked(facts: Facts, rng: np.random.Generator, truth: bool) -> str | None:
    told = facts.told()
    pairs = [(a, b) for a in told for b in told if a != b and (facts.below.get(a) == b) == truth]
    if not pairs or (not truth and rng.random() < 0.5):
        return None
    upper, lower = pairs[rng.integers(len(pairs))]
    return say("the {a} {block} is on top of the {b} {block}", rng, a=colour(upper), b=colour(lower), block=BLOCK)


def _door(facts: Facts, rng: np.random.Generator, truth: bool) -> str | None:
    side = door_side(facts)
    sides = {"left": "(on the left|on the left side|left)", "right": "(on the right|on the right side|right)"}
    sides["middle"] = "in the middle"
    if side is None:
        return None
    chosen = side if truth else one_of(rng, [other for other in sides if other != side])
    return say("{door} is {side}", rng, door=DOOR, side=sides[chosen])


def _drawer(facts: Facts, rng: np.random.Generator, truth: bool) -> str | None:
    way = drawer_way(facts)
    if way is None:
        return None
    if truth:
        return f"the drawer is {way}"
    return f"the drawer is {one_of(rng, [other for other in ('open', 'closed', 'half open') if other != way])}"


def _two_way(name: str, words: tuple[str, str], is_first: Callable[[Facts], bool | None]) -> Statement:
    """Statements that something is the one of two words or the other."""

    def statement(facts: Facts, rng: np.random.Generator, truth: bool) -> str | None:
        first = is_first(facts)
        return None if first is None else say("{name} is {word}", rng, name=name, word=words[int(first != truth)])

    return statement


def _switch_up(facts: Facts) -> bool | None:
    way = switch_way(facts)
    return None if way is None else way == "up"


def _fingers_open(facts: Facts) -> bool | None:
    return True if facts.state.width > 0.07 else False if facts.held or facts.state.width < 0.01 else None


def _holding(facts: Facts, rng: np.random.Generator, truth: bool) -> str | None:
    colours = [colour(name) for name in facts.blocks]
    held = None if facts.held is None else colour(facts.held)
    if held is None and facts.unsure:
        return None
    if truth:
        chosen = held
    else:
        chosen = one_of(rng, [c for c in colours if c != held])
        if held is not None and rng.random() < 0.3:
            chosen = None
    what = "nothing" if chosen is None else f"the {chosen} {BLOCK}"
    return say("the (gripper|robot|hand) holds {what}", rng, what=what)


STATEMENTS: tuple[Statement, ...] = (
    _where_block,
    _where_block,
    _relation,
    _relation,
    _stacked,
    _door,
    _drawer,
    _two_way("the (bulb|light bulb|lamp)", ("on", "off"), lambda facts: facts.state.lightbulb),
    _two_way("the (led|green light)", ("on", "off"), lambda facts: facts.state.led),
    _two_way("the (switch|lever)", ("up", "down"), _switch_up),
    _two_way("the gripper", ("open", "closed"), _fingers_open),
    _holding,
)


def statement(facts: Facts, rng: np.random.Generator, truth: bool) -> str | None:
    """A random statement that is true, or false; None where the kind drawn has none to make."""
    return STATEMENTS[rng.integers(len(STATEMENTS))](facts, rng, truth)


def caption(facts: Facts, rng: np.random.Generator) -> Pair | None:
    """A few true statements, one after another."""
    wanted, said = int(rng.integers(2, 5)), list[str]()
    for number in rng.permutation(len(STATEMENTS)):
        text = STATEMENTS[number](facts, rng, True)
        if text is None or text in said:
            continue
        if len(" ".join([*said, text]).split()) > CAPTION_WORDS or len(said) == wanted:
            break
        said.append(text)
    question = "(describe the (picture|scene|table)|what do you see|what is there to see|what is true here|caption)"
    return (say(question, rng), " ".join(said)) if said else None


def yes_no(facts: Facts, rng: np.random.Generator) -> Pair | None:
    """Whether a statement is true; half of them are."""
    truth = bool(rng.integers(2))
    text = statement(facts, rng, truth)
    if text is None:
        return None
    return say(
        "(is it true that|is this right|is this so|true or not) {text}", rng, text=text
    ), "yes" if truth else "no"
