"""Random start states, and which tasks are possible in a state.

A task is possible when its scripted expert could meet the oracle's conditions (CALVIN SPEC 1.8) from here: the
block lies where the task says, the door has way left, the light is in the other state, and so on.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from calvin_eval.benchmark.tasks import TASKS
from calvin_eval.calvin import BLOCKS, calvin_observation
from calvin_eval.demonstrations.experts import grasp
from calvin_eval.demonstrations.experts.blocks import DRAWER_FLOOR
from calvin_eval.demonstrations.experts.clearance import touched
from calvin_eval.demonstrations.experts.grasp import TABLE_TOP
from calvin_eval.demonstrations.experts.policy import PLACING
from calvin_eval.demonstrations.experts.state import Block, State
from calvin_eval.worlds.playtable.scenes import RESTING_ROBOT_OBS, SceneGeometry, scene_geometry

TABLE_HEIGHT, PLANK_HEIGHT, DRAWER_HEIGHT = 0.4598, 0.4608, 0.3621
"""Heights (m) of a resting block's centre, a little low: exactly at rest, it has no contact after one step."""
STACK_STEP = 0.0398
"""Height (m) from a block's centre to that of one resting on it: a little under an edge, so that they touch."""
DRAWER_OPEN, SWITCH_UP = 0.22, 0.088
DOOR_FRONT = -0.008
"""Greatest y (m) of a block on the table that does not touch the sliding door."""
OFF_THE_GROUND = 0.006
"""Height (m) over table, plank or drawer from which a held block does not touch them."""
FINGER_ROOM = 0.075
"""Distance (m) from a block's centre to the cabinet's sides or the door that open fingers need."""


def possible(task: str, state: State) -> bool:
    """Whether the task can be solved from this state."""
    held = state.holding()
    words = task.split("_")
    if words[0] in ("rotate", "push", "lift") and task != "push_into_drawer":
        block = state.blocks[f"block_{words[1]}"]
        if words[0] == "lift":
            return held is None and _lift_possible(words[3], block, state)
        return (held is None or held.name == block.name) and grasp.on_table(block) and _room(words, block, state)
    return _RULES[task](state, held)


def _lift_possible(place: str, block: Block, state: State) -> bool:
    if _covered(block, state):
        return False
    if place == "table":
        return grasp.on_table(block) and not _under_handle(block, state)
    if place == "drawer":
        return grasp.in_drawer(block) and state.drawer > 0.18
    return grasp.in_cabinet(block) and not _out_of_reach(block, state)


def _room(words: list[str], block: Block, state: State) -> bool:
    if _covered(block, state) or _under_handle(block, state):
        return False
    if words[0] == "rotate":
        return True
    direction = 1.0 if words[3] == "right" else -1.0
    if any(_fills_room_behind(other, block, direction) for other in state.others(block)):
        return False
    end = block.position[0] + 0.13 * direction
    button_x, button_y = state.scene.button[:2]
    low, high = sorted((block.position[0], end))
    button_in_way = abs(block.position[1] - button_y) < 0.06 and low - 0.07 < button_x < high + 0.07
    return abs(end) < 0.40 and not button_in_way


def _covered(block: Block, state: State) -> bool:
    """Whether another block lies on this one."""
    return any(
        0.03 < other.position[2] - block.position[2] < 0.06 and np.hypot(*(other.position - block.position)[:2]) < 0.06
        for other in state.others(block)
    )


def _under_handle(block: Block, state: State) -> bool:
    """Whether the sliding door's handle leaves no room for the hand above a block on the table."""
    handle_x = state.scene.slide_handle(state.slide)[0]
    return bool(block.position[1] > -0.05 and abs(block.position[0] - handle_x) < 0.10)


def _fills_room_behind(other: Block, block: Block, direction: float) -> bool:
    """Whether another block lies where the fingers must go to push this one."""
    behind = direction * (block.position[0] - other.position[0])
    room = 0.5 * (block.extent(0.0) + other.extent(0.0)) + 0.085
    return bool(0.0 < behind < room and abs(block.position[1] - other.position[1]) < 0.065)


def _out_of_reach(block: Block, state: State) -> bool:
    """Whether door or side walls leave no room for fingers around a block in the cabinet."""
    left, right = state.scene.slide_span(state.slide)
    low, high = state.scene.cabinet_opening
    x = block.position[0]
    door = left - FINGER_ROOM < x < right + FINGER_ROOM
    return bool(door or x < low + FINGER_ROOM or x > high - FINGER_ROOM)


def _lifted(held: Block | None, state: State) -> bool:
    """Whether a block is held and touches nothing else, as the oracle asks of the start of placing."""
    if held is None:
        return False
    floor = DRAWER_FLOOR if grasp.in_drawer(held) else TABLE_TOP
    return held.position[2] - held.half_height > floor + OFF_THE_GROUND and not grasp.above_another(state, held)


def _free_half_width(state: State) -> float:
    low, high = state.scene.cabinet_opening
    left, right = state.scene.slide_span(state.slide)
    return float(max(left - low, high - right))


def _can_push_into_drawer(state: State, held: Block | None) -> bool:
    candidates = [b for b in state.blocks.values() if grasp.on_table(b)]
    if held is not None or len(candidates) != 1 or state.drawer < 0.18 or touched(state, candidates[0]):
        return False
    low, high = state.scene.drawer_interior
    return low + 0.02 < candidates[0].position[0] < high - 0.02


_RULES: dict[str, Callable[[State, Block | None], bool]] = {
    "move_slider_left": lambda s, held: held is None and s.slide < s.scene.slide_limit - 0.17,
    "move_slider_right": lambda s, held: held is None and s.slide > 0.17,
    "open_drawer": lambda s, held: held is None and s.drawer < DRAWER_OPEN - 0.14,
    "close_drawer": lambda s, held: held is None and s.drawer > 0.14,
    "turn_on_lightbulb": lambda s, held: held is None and not s.lightbulb,
    "turn_off_lightbulb": lambda s, held: held is None and s.lightbulb,
    "turn_on_led": lambda s, held: held is None and not s.led,
    "turn_off_led": lambda s, held: held is None and s.led,
    "place_in_slider": lambda s, held: _lifted(held, s) and _free_half_width(s) > 0.2,
    "place_in_drawer": lambda s, held: _lifted(held, s) and s.drawer > 0.18,
    "stack_block": lambda s, held: held is not None and any(grasp.on_table(b) for b in s.others(held)),
    "unstack_block": lambda s, held: held is None and any(_covered(b, s) for b in s.blocks.values()),
    "push_into_drawer": _can_push_into_drawer,
}


def random_scene_obs(scene: str | SceneGeometry, rng: np.random.Generator, *, wish: str | None = None) -> np.ndarray:
    """A random state of the table (24,): doors and lights, and blocks on table, plank, in the drawer or stacked.

    Args:
        scene: one of `calvin_eval.calvin.SCENES`, or a geometry.
        rng: where the draws come from.
        wish: a task whose blocks and joints should start where the task needs them (as far as a reset can do so:
            a task that starts with a held block still needs that block lifted first).
    """
    geometry = scene_geometry(scene)
    slide = _end_or_between(rng, geometry.slide_limit)
    drawer = _end_or_between(rng, DRAWER_OPEN)
    bulb, led = int(rng.integers(2)), int(rng.integers(2))
    places = {name: str(rng.choice(["table", "table", "slider"])) for name in BLOCKS}
    if drawer > 0.2 and rng.random() < 0.25:
        places[str(rng.choice(BLOCKS))] = "drawer"
    if wish is not None:
        slide, drawer, bulb, led = _grant_joints(wish, geometry.slide_limit, slide, drawer, bulb, led)
        _grant_places(wish, places, rng)
    table = np.zeros(24)
    table[:6] = slide, drawer, 0.0, SWITCH_UP * bulb, bulb, led
    poses = _block_poses(geometry, places, drawer, rng)
    for i, name in enumerate(geometry.block_order):
        table[6 + 6 * i : 12 + 6 * i] = poses[name]
    return table


def _end_or_between(rng: np.random.Generator, limit: float) -> float:
    return float(limit * rng.choice([0.0, 0.0, 1.0, 1.0, rng.random()]))


def _grant_joints(
    wish: str, limit: float, slide: float, drawer: float, bulb: int, led: int
) -> tuple[float, float, int, int]:
    slide = {"move_slider_left": 0.0, "move_slider_right": limit}.get(wish, slide)
    if wish in ("place_in_slider",) or wish.endswith("_slider"):
        slide = 0.0 if slide < limit / 2 else limit
    drawer = 0.0 if wish == "open_drawer" else drawer
    if wish in ("close_drawer", "place_in_drawer", "push_into_drawer") or (
        wish.endswith("_drawer") and wish != "open_drawer"
    ):
        drawer = DRAWER_OPEN
    bulb = {"turn_on_lightbulb": 0, "turn_off_lightbulb": 1}.get(wish, bulb)
    led = {"turn_on_led": 0, "turn_off_led": 1}.get(wish, led)
    return slide, drawer, bulb, led


def _grant_places(wish: str, places: dict[str, str], rng: np.random.Generator) -> None:
    words = wish.split("_")
    name = f"block_{words[1]}"
    if name in places and words[0] in ("rotate", "push"):
        places[name] = "table"
    elif name in places and words[0] == "lift":
        places[name] = words[3]
    elif wish == "push_into_drawer":
        chosen = str(rng.choice(BLOCKS))
        for other in places:
            places[other] = "table" if other == chosen else "slider"
    elif wish == "unstack_block":
        lower, upper = (str(name) for name in rng.choice(BLOCKS, 2, replace=False))
        places[lower], places[upper] = "base", f"on {lower}"
    elif wish == "stack_block":
        first, second = (str(name) for name in rng.choice(BLOCKS, 2, replace=False))
        places[first] = places[second] = "table"


def _block_poses(
    geometry: SceneGeometry, places: dict[str, str], drawer: float, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """Poses (6,) for all blocks, at least a finger's room apart; blocks on others come last."""
    for _ in range(1000):
        poses: dict[str, np.ndarray] = {}
        for name in sorted(places, key=lambda n: places[n].startswith("on ")):
            place = places[name]
            if place.startswith("on "):
                base = poses[place.removeprefix("on ")]
                poses[name] = base + [
                    *rng.uniform(-0.008, 0.008, 2),
                    STACK_STEP,
                    0,
                    0,
                    rng.uniform(-0.4, 0.4),
                ]
            else:
                poses[name] = _pose_on(geometry, place, drawer, geometry.block_size(name), rng)
        flat = [p for n, p in poses.items() if not places[n].startswith("on ")]
        gaps = [np.hypot(*(a - b)[:2]) for i, a in enumerate(flat) for b in flat[:i]]
        if min(gaps, default=1.0) > 0.11:
            return poses
    raise RuntimeError(f"scene {geometry.name}: no room for blocks at {places} after 1000 draws")


def _pose_on(
    geometry: SceneGeometry, place: str, drawer: float, size: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """A pose (6,) for a block of this size (3,) on the plank, in the drawer or on the table top.

    As "base" of a stack it lies on the table clear of the door's handle.
    """
    if place == "drawer":
        low_x, high_x = geometry.drawer_interior
        x, y = rng.uniform(low_x + 0.05, high_x - 0.05), rng.uniform(-0.10, -0.02) - drawer
        return np.array([x, y, DRAWER_HEIGHT, 0, 0, rng.uniform(-np.pi, np.pi)])
    if place == "slider":
        low, high = geometry.surfaces[str(rng.choice(["slider_left", "slider_right"]))]
        yaw = rng.uniform(np.pi / 2 - np.pi / 8, np.pi / 2 + np.pi / 8)
        return np.array([rng.uniform(low[0], high[0]), rng.uniform(low[1], high[1]), PLANK_HEIGHT, 0, 0, yaw])
    low, high = geometry.surfaces["table"]
    while True:
        position, yaw = rng.uniform(low[:2], high[:2]), rng.uniform(-np.pi, np.pi)
        back = position[1] + 0.5 * (size[0] * abs(np.sin(yaw)) + size[1] * abs(np.cos(yaw)))
        clear = np.hypot(*(position - geometry.button[:2])) > 0.09 and back < DOOR_FRONT
        if clear and (place != "base" or position[1] < -0.08):
            return np.array([*position, TABLE_HEIGHT, 0, 0, yaw])


def start_for(task: str, scene: str | SceneGeometry, rng: np.random.Generator) -> tuple[np.ndarray, list[str]]:
    """A random start from which a task is possible, at once or after one other task, in a scene or a geometry.

    Returns:
        scene_obs (24,) and the tasks to do first: for placing tasks, the lift of a block.

    Raises:
        RuntimeError: no such start was found in 1000 draws.
    """
    for _ in range(1000):
        scene_obs = random_scene_obs(scene, rng, wish=task)
        observation = calvin_observation(None, None, RESTING_ROBOT_OBS, scene_obs)
        state = State.read(observation, scene)
        if task not in PLACING:
            if possible(task, state):
                return scene_obs, []
            continue
        lifts = [t for t in TASKS if t.startswith("lift_") and possible(t, state)]
        if lifts:
            return scene_obs, [str(rng.choice(lifts))]
    raise RuntimeError(f"no start for {task} in scene {scene_geometry(scene).name} within 1000 draws")
