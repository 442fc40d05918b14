"""Questions about CALVIN's tasks: what a sentence asks for, whether it is done, and what to do for it now.

Sentences are CALVIN's training wordings (`benchmark.instructions`) and our own further ones (`wordings.py`); never one
of the validation or the enriched split, which measure what was understood and not what was seen.
"""

from __future__ import annotations

import numpy as np

from calvin_eval.benchmark.tasks import TASKS
from calvin_eval.calvin import BLOCKS
from calvin_eval.captions.facts import BLOCK, GRIPPER, Facts
from calvin_eval.captions.of_blocks import Pair
from calvin_eval.captions.of_fixtures import door_side, drawer_way
from calvin_eval.captions.of_gripper import AXES
from calvin_eval.captions.phrases import colour, one_of, say
from calvin_eval.captions.wordings import instruction
from calvin_eval.demonstrations.experts import demonstrate
from calvin_eval.demonstrations.starts import possible

MOVES, TURNS = 0.15, 0.2
"""Shares of the largest translation and rotation of an action under which nothing is said of them."""

LIFTED = "(lift|pick up|raise|grab) the {c} (block|block|cube|brick|object)"
"""What is done while a block is held: from where it was lifted, no present state tells."""


def short_form(task: str) -> str:
    """A task as answers name it, as in "push red left"."""
    words = task.split("_")
    if task == "push_into_drawer":
        return "push into drawer"
    if words[0] in ("rotate", "push"):
        return f"{words[0]} {words[1]} {words[3]}"
    if words[0] == "lift":
        return f"lift {words[1]} {words[3].replace('slider', 'cabinet')}"
    if words[0] == "place":
        return f"place {words[2].replace('slider', 'cabinet')}"
    if words[0] == "move":
        return f"door {words[2]}"
    return task.replace("_", " ").replace("lightbulb", "bulb").replace(" block", "")


def ask_for(facts: Facts, rng: np.random.Generator) -> Pair | None:
    """What a sentence asks for, whatever the picture shows."""
    task = one_of(rng, list(TASKS))
    frame = one_of(rng, ("what task is {}", "which task is meant by {}", "what is asked for {}", "task {}"))
    return frame.format(instruction(task, rng)), short_form(task)


def done(facts: Facts, rng: np.random.Generator) -> Pair | None:
    """Whether a task is done, where the present state tells."""
    known = states_of_tasks(facts)
    wanted = bool(rng.integers(2))
    tasks = [task for task, is_done in known.items() if is_done == wanted]
    if not tasks:
        return None
    task = one_of(rng, tasks)
    frame = one_of(rng, ("is the following done {}", "is this done {}", "has this been done {}"))
    sentence = say(LIFTED, rng, c=task.split("_")[1]) if task.startswith("lift") else instruction(task, rng)
    return frame.format(sentence), "yes" if wanted else "no"


def states_of_tasks(facts: Facts) -> dict[str, bool]:
    """Whether each task that leaves a state behind is done; those of which the present state does not tell left out."""
    side, way, state = door_side(facts), drawer_way(facts), facts.state
    known = {
        "turn_on_lightbulb": state.lightbulb,
        "turn_off_lightbulb": not state.lightbulb,
        "turn_on_led": state.led,
        "turn_off_led": not state.led,
    }
    if side in ("left", "right"):
        known |= {"move_slider_left": side == "left", "move_slider_right": side == "right"}
    if way in ("open", "closed"):
        known |= {"open_drawer": way == "open", "close_drawer": way == "closed"}
    if all(facts.visible(name) for name in BLOCKS):
        stacked = BLOCK in facts.places.values()
        known |= {"stack_block": stacked, "unstack_block": not stacked}
    for name in facts.told():
        lifted = facts.places[name] == GRIPPER
        if lifted or facts.held != name:
            known[f"lift_{colour(name)}_block_table"] = lifted  # from wherever: see LIFTED
    return known


def move(facts: Facts, rng: np.random.Generator) -> Pair | None:
    """What the scripted expert would do now for a task that is possible."""
    drawn = (list(TASKS)[number] for number in rng.permutation(len(TASKS)))
    task = next((task for task in drawn if _may_ask(task, facts) and possible(task, facts.state)), None)
    if task is None:
        return None
    action = demonstrate(task, facts.observation, facts.geometry)
    frame = one_of(rng, ("how must the gripper move now to do this {}", "what to do now for {}", "which way now to {}"))
    return frame.format(instruction(task, rng)), action_in_words(action)


def _may_ask(task: str, facts: Facts) -> bool:
    """Whether the blocks that a task is about are visible."""
    words = task.split("_")
    if len(words) > 1 and f"block_{words[1]}" in BLOCKS:
        return facts.visible(f"block_{words[1]}")
    return ("block" not in task and not task.startswith("p")) or all(facts.visible(name) for name in BLOCKS)


def action_in_words(action: np.ndarray) -> str:
    """An action (7,) in words, as in "left down turn right open"; "stay" where only the gripper is told."""
    words = [names[int(value < 0)] for value, names in zip(action[:3], AXES, strict=True) if abs(value) > MOVES]
    if abs(action[5]) > TURNS:
        words += ["turn", "left" if action[5] > 0 else "right"]
    return " ".join([*(words or ["stay"]), "open" if action[6] > 0 else "close"])
