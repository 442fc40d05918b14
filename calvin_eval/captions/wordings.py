"""Our own wordings of CALVIN's tasks, beside its training sentences: other verbs, nouns and ways to ask.

Templates of `phrases.say`. None of the sentences that measure understanding (validation and enriched) is made.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from calvin_eval.benchmark.instructions import sentences
from calvin_eval.benchmark.tasks import TASKS
from calvin_eval.captions.phrases import one_of, say

THING = "(block|block|cube|brick|object|thing|piece)"
HELD = "(the {thing}|what you hold|the grasped {thing}|the held {thing})"
TO_SIDE = "(to the|towards the|in the direction||) {s}"
A_DRAWER = "(drawer|wooden drawer|table drawer|cabinet drawer)"
A_DOOR = "(sliding door|slider|door|cabinet door|panel|sliding panel)"
A_BULB = "(bulb|light bulb|lamp|yellow light|yellow lamp)"
AN_LED = "(led|green light|green lamp|led light)"
POLITE = "(please|now|can you|could you|you should|your task is to|i want you to|next||||||||)"
PLACES = {
    "table": "(the table|the table top|the desk|the surface|the tabletop)",
    "slider": "(the cabinet|the sliding cabinet|the slider|the shelf|the cupboard)",
    "drawer": "(the drawer|the open drawer|the wooden drawer)",
}
OWN = {
    "rotate": f"(rotate|turn|twist|spin|swivel|pivot) the {{c}} {{thing}} (around|) {TO_SIDE}",
    "push": "(push|shove|nudge|slide|move|shift|sweep|drag|propel|press) the {c} {thing} "
    f"(over|across|a bit|gently|||) {TO_SIDE} (side|)",
    "move": f"(move|slide|push|pull|shift|drag|shove|bring|glide) the {A_DOOR} "
    f"(over|all the way|along|) {TO_SIDE} (side|)",
    "lift": "(lift|pick up|grab|take|raise|get|grasp|fetch|collect|hoist|retrieve) the {c} {thing} "
    "(from|out of|which is in|located in|lying in|sitting in) {place}",
    "open_drawer": f"(open|pull open|slide out|draw out|pull|extend|unclose) the {A_DRAWER}",
    "close_drawer": f"(close|shut|push in|slide in|push shut|retract|seal) the {A_DRAWER}",
    "place": f"(place|put|drop|store|lay|set down|deposit|release|leave|insert) {HELD} "
    "(in|into|inside|within) {place}",
    "stack_block": f"(stack|put|place|pile|set|balance) ({HELD}|one {{thing}}) "
    "(on|on top of|onto|over|upon) (another|the other|a second) {thing}",
    "unstack_block": "(take down|unstack|take apart|separate|remove|unpile|dismantle|split) the "
    "(stacked blocks|tower|pile|stack|upper block|top block|block on top)",
    "turn_on_lightbulb": f"(turn on|switch on|light|activate|power on|illuminate) the {A_BULB}",
    "turn_off_lightbulb": f"(turn off|switch off|deactivate|power off|extinguish|darken) the {A_BULB}",
    "turn_on_led": f"(turn on|switch on|light|activate|power on) the {AN_LED}",
    "turn_off_led": f"(turn off|switch off|deactivate|power off|darken) the {AN_LED}",
    "push_into_drawer": "(push|shove|slide|sweep|knock|nudge|move) the {thing} (over the edge|off the table|) "
    "(into|in|inside) the (drawer|open drawer)",
}
"""Of each task, or of each family of tasks by its first word."""
TRAINING_SHARE = 0.5
"""Of CALVIN's training sentences among those that `instruction` gives."""


def instruction(task: str, rng: np.random.Generator) -> str:
    """A sentence that asks for a task: one of CALVIN's for training, or our own."""
    if rng.random() < TRAINING_SHARE:
        return plain(one_of(rng, sentences(task, "training")))
    return own_sentence(task, rng)


def own_sentence(task: str, rng: np.random.Generator) -> str:
    """A sentence of our own that asks for a task, now and then politely."""
    words = task.split("_")
    template = OWN[task] if task in OWN else OWN[words[0]]
    slots = {"thing": THING, "c": words[1], "s": words[-1], "place": PLACES.get(words[-1], "")}
    while (sentence := say(template, rng, **slots)) in _measuring():
        pass
    return " ".join(f"{say(POLITE, rng)} {sentence}".split())


@lru_cache(maxsize=1)
def _measuring() -> frozenset[str]:
    """Sentences that must not be asked."""
    return frozenset(
        plain(sentence) for task in TASKS for split in ("validation", "enriched") for sentence in sentences(task, split)
    )


def plain(sentence: str) -> str:
    """A sentence in lower case without commas."""
    return " ".join(sentence.lower().replace(",", " ").split())
