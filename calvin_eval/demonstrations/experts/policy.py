"""All scripted experts by task name, and as a policy that follows instructions.

The scripted experts read privileged state through the Env contract only, so they run on any simulator that keeps it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from calvin_eval.benchmark.instructions import task_of
from calvin_eval.calvin import BLOCKS
from calvin_eval.demonstrations.experts import blocks, fixtures, grasp
from calvin_eval.demonstrations.experts.motion import Goal, action_towards
from calvin_eval.demonstrations.experts.state import State
from calvin_eval.protocol import Memory, Observation, Policy
from calvin_eval.worlds.playtable.scenes import SceneGeometry

Script = Callable[[State], Goal]


def _of_block(script: Callable[..., Goal], name: str, *arguments: float) -> Script:
    return lambda state: script(state, state.blocks[name], *arguments)


def _experts() -> dict[str, Script]:
    table: dict[str, Script] = {}
    for name in BLOCKS:
        for side, turn, shift in (("right", -1.0, 1.0), ("left", 1.0, -1.0)):
            table[f"rotate_{name.removeprefix('block_')}_block_{side}"] = _of_block(blocks.rotate, name, turn)
            table[f"push_{name.removeprefix('block_')}_block_{side}"] = _of_block(blocks.push, name, shift)
        for place in ("table", "slider", "drawer"):
            table[f"lift_{name.removeprefix('block_')}_block_{place}"] = _of_block(blocks.lift, name)
    table |= {
        "move_slider_left": partial(fixtures.move_slider, direction=1.0),
        "move_slider_right": partial(fixtures.move_slider, direction=-1.0),
        "open_drawer": fixtures.open_drawer,
        "close_drawer": fixtures.close_drawer,
        "place_in_slider": blocks.place_in_slider,
        "place_in_drawer": blocks.place_in_drawer,
        "stack_block": blocks.stack,
        "unstack_block": blocks.unstack,
        "turn_on_lightbulb": fixtures.switch_up,
        "turn_off_lightbulb": fixtures.switch_down,
        "turn_on_led": fixtures.press_button,
        "turn_off_led": fixtures.press_button,
        "push_into_drawer": blocks.push_nearest_into_drawer,
    }
    return table


EXPERTS = _experts()
"""Task name -> goal of the scripted expert in a state. All 34 tasks of `calvin_eval.benchmark.tasks.TASKS`."""

PLACING = frozenset({"place_in_slider", "place_in_drawer", "stack_block"})


def _wants_held(task: str) -> Callable[[str], bool]:
    """Which held blocks the task can go on with; any other is put down first."""
    if task in PLACING or task in ("unstack_block", "push_into_drawer"):
        return lambda name: True
    if task.startswith(("rotate_", "lift_")):
        colour = task.split("_")[1]
        return lambda name: name == f"block_{colour}"
    return lambda name: False


def demonstrate(task: str, observation: Observation, scene: str | SceneGeometry) -> np.ndarray:
    """The scripted expert's action (7,) for a task, in any state.

    Raises:
        KeyError: no such task.
        ValueError: the observation carries no scene_obs.
    """
    state = State.read(observation, scene)
    held = state.holding()
    if held is not None and not _wants_held(task)(held.name):
        return action_towards(state, grasp.release(state, held))
    return action_towards(state, EXPERTS[task](state))


class Expert(Policy):
    """The scripted experts as a policy, which reads the privileged state; its memory is the name of the task.

    Args:
        scene: the scene its environments show, one of `calvin_eval.calvin.SCENES`, or their geometry.
    """

    sees = False

    def __init__(self, scene: str | SceneGeometry) -> None:
        self.scene = scene

    def start(self, instruction: str) -> Memory:
        """Finds the task that the instruction asks for.

        Raises:
            KeyError: no task has this instruction.
        """
        return task_of(instruction)

    def act(
        self, observations: Sequence[Observation], memories: Sequence[Memory]
    ) -> tuple[np.ndarray, Sequence[Memory]]:
        """One action for each of B episodes, (B, 1, 7)."""
        actions = [demonstrate(task, o, self.scene) for o, task in zip(observations, memories, strict=True)]
        return np.stack(actions)[:, None], memories
