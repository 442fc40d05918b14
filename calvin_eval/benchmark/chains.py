"""CALVIN's chains: an initial state and five instructions in a row, in two sets of 1000 (CALVIN SPEC 1.9, 1.10).

`reporting` is the official 1000, which ship as `data/chains.txt`: figures that are reported are of these. `choosing` is
1000 more by the same rules from another seed, none of them an official one, which ship as `data/choosing.txt`: what is
chosen by looking at chains, as a recipe, a checkpoint or E, is chosen on these. Smaller evaluations use the first n of
a set, so their results are part of the full one. `python -m calvin_eval.benchmark.chains make --set SET` draws a set
again (a minute and a half on one core).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Collection
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Literal, TypeAlias, get_args

import numpy as np
from rich.progress import track

from calvin_eval.benchmark.rules import COLOURS, InitialCondition, initial_conditions, possible_in_a_row
from calvin_eval.benchmark.tasks import TASKS
from calvin_eval.system.errors import UserError
from calvin_eval.system.files import write_text
from calvin_eval.system.machine import cores
from calvin_eval.system.processes import run_jobs
from calvin_eval.system.signals import Stopped, stop_signals
from calvin_eval.worlds.playtable.scenes import DRAWER_TRAVEL, SWITCH_TRAVEL, scene_geometry

CHAINS = 1000
"""In each set."""
LENGTH = 5
DATA = Path(__file__).parent / "data"

ChainSet: TypeAlias = Literal["reporting", "choosing"]
SETS: tuple[ChainSet, ...] = get_args(ChainSet)
FILES: dict[ChainSet, Path] = {"reporting": DATA / "chains.txt", "choosing": DATA / "choosing.txt"}
FIRST_SEEDS: dict[ChainSet, int] = {"reporting": 0, "choosing": 10_000}
"""Of the first initial condition; each further one has the next seed. CALVIN's own is 0."""


@dataclass(frozen=True)
class Chain:
    """One chain: where it starts and its five tasks."""

    condition: InitialCondition
    tasks: tuple[str, ...]


@lru_cache(maxsize=len(SETS))
def _read(which: ChainSet) -> tuple[Chain, ...]:
    conditions, tasks = initial_conditions(), list(TASKS)
    rows = [line.split() for line in FILES[which].read_text().splitlines() if not line.startswith("#")]
    return tuple(Chain(conditions[int(row[0])], tuple(tasks[int(i)] for i in row[1:])) for row in rows)


def chains(count: int = CHAINS, which: ChainSet = "reporting") -> list[Chain]:
    """The first `count` chains of a set.

    Raises:
        UserError: count is not in 1..1000, or there is no such set.
    """
    if which not in SETS:
        raise UserError(f"there is no set of chains {which!r}; the sets are {' and '.join(SETS)}")
    if not 1 <= count <= CHAINS:
        raise UserError(f"there are {CHAINS} chains for {which}; ask for 1 to {CHAINS}, not {count}")
    return list(_read(which)[:count])


def initial_state(condition: InitialCondition, scene: str = "D") -> tuple[np.ndarray, np.ndarray]:
    """The state (robot_obs (15,), scene_obs (24,)) in which a chain starts.

    In scene D these are the official states. Scene A has D's cabinet and gets the same positions, listed in
    its own block order. In B and C official positions lie inside the cabinet's wall or at the button's
    collar, and the door's would be short of its limit or beyond; there the same draws go to the scene's own
    surfaces (a quarter from the ends of the table's, the middle of the cabinet's), and the door stands at its
    own limit.

    Raises:
        ValueError: no such scene.
    """
    geometry = scene_geometry(scene)
    rng = np.random.RandomState(_fnv1_32(str(asdict(condition).values())))
    table, slider_left, slider_right = _places(scene)
    rng.shuffle(table)
    yaws = {colour: rng.uniform(np.pi / 2 - np.pi / 8, np.pi / 2 + np.pi / 8) for colour in COLOURS}
    spots = {
        "red": table[0],
        "blue": table[1] if condition.red_block == "table" else table[0],
        "pink": table[1],
    }
    state = np.zeros(24)
    state[0] = geometry.slide_limit if condition.slider == "left" else 0.0
    state[1] = DRAWER_TRAVEL if condition.drawer == "open" else 0.0
    state[3] = SWITCH_TRAVEL if condition.lightbulb else 0.0
    state[4:6] = condition.lightbulb, condition.led
    for colour in COLOURS:
        place = getattr(condition, f"{colour}_block")
        position = {"table": spots[colour], "slider_left": slider_left, "slider_right": slider_right}[place]
        index = geometry.block_order.index(f"block_{colour}")
        state[6 + 6 * index : 12 + 6 * index] = [*position, 0.0, 0.0, yaws[colour]]
    return INITIAL_ROBOT_OBS.copy(), state


INITIAL_ROBOT_OBS = np.array(
    [
        *(0.02586889, -0.2313129, 0.5712808, 3.09045411, -0.02908596, 1.50013585, 0.07999963),
        *(-1.21779124, 1.03987629, 2.11978254, -2.34205014, -0.87015899, 1.64119093, 0.55344928, 1.0),
    ]
)
"""The robot's state (15,) at the start of every chain."""


def _places(scene: str) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    """Two places on the table, and one on either side of the cabinet."""
    if scene in ("A", "D"):
        front = [(0.0500000896, -0.120000177, 0.459990009), (0.229995412, -0.11999514, 0.45999001)]
        table = [np.array(place) for place in front]
        left = np.array([-0.240851662, 0.0924044687, 0.460990009])
        right = np.array([0.070341633, 0.0924044687, 0.460990009])
        return table, left, right
    surfaces = scene_geometry(scene).surfaces
    low, high = surfaces["table"][:, 0]
    quarter = 0.25 * (high - low)
    table = [np.array([x, -0.12, 0.45999]) for x in (low + quarter, high - quarter)]
    middles = (surfaces[f"slider_{side}"][:, 0].mean() for side in ("left", "right"))
    left, right = (np.array([x, 0.0924, 0.46099]) for x in middles)
    return table, left, right


def _fnv1_32(text: str) -> int:
    """The hash that CALVIN seeds with: FNV-1 over UTF-16-LE bytes, from zero instead of the offset basis."""
    value = 0
    for byte in text.encode("utf-16-le"):
        value = (value * 0x01000193) & 0xFFFFFFFF ^ byte
    return value


def draw(index: int, count: int, seed: int | None = None, without: Collection[Chain] = ()) -> list[Chain]:
    """Chains of the initial condition of an index.

    Args:
        index: of the condition.
        count: how many.
        seed: of the draws; CALVIN's own, which is the index, if None.
        without: chains that are not taken; nor is a chain taken twice where there are any.
    """
    condition = initial_conditions()[index]
    rng, names, found = np.random.RandomState(index if seed is None else seed), list(TASKS), list[Chain]()
    taken = set(without)
    while len(found) < count:
        tasks = tuple(str(task) for task in rng.choice(names, size=LENGTH, replace=False))
        chain = Chain(condition, tasks)
        if possible_in_a_row(condition, tasks) and chain not in taken:
            found.append(chain)
            taken |= {chain} if without else set()
    return found


def _draw(job: tuple[int, int], which: ChainSet) -> tuple[int, list[Chain]]:
    index, count = job
    without = () if which == "reporting" else _read("reporting")  # CALVIN's own may come twice
    return index, draw(index, count, FIRST_SEEDS[which] + index, without)


def make(which: ChainSet = "reporting", workers: int | None = None) -> list[Chain]:
    """Draws the 1000 chains of a set, on several cores (all of them by default)."""
    conditions = initial_conditions()
    counts = [len(part) for part in np.array_split(np.arange(CHAINS), len(conditions))]
    jobs = run_jobs(partial(_draw, which=which), list(enumerate(counts)), workers or cores())
    parts = track(jobs, "Drawing chains", total=len(counts))
    found = [chain for _, part in sorted(parts, key=lambda part: part[0]) for chain in part]
    order = list(range(CHAINS))
    np.random.RandomState(FIRST_SEEDS[which]).shuffle(order)
    return [found[index] for index in order]


def main(arguments: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser("python -m calvin_eval.benchmark.chains", description="CALVIN's five-task chains.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    verb = verbs.add_parser("make", help="draw the 1000 chains of a set again and write the file that ships")
    verb.add_argument("--set", choices=SETS, default="reporting", help="which (default: reporting, the official ones)")
    verb.add_argument("--out", type=Path, help="where to write them; by default where they ship")
    options = parser.parse_args(arguments)
    conditions, names = initial_conditions(), list(TASKS)
    rows = [f"# {CHAINS} chains for {options.set}: index of the initial condition, then of five tasks (chains.py make)"]
    try:
        with stop_signals():
            made = make(options.set)
    except Stopped as stopped:
        return 128 + stopped.signal
    for chain in made:
        numbers = [conditions.index(chain.condition), *(names.index(task) for task in chain.tasks)]
        rows.append(" ".join(str(number) for number in numbers))
    out = options.out or FILES[options.set]
    write_text(out, "\n".join(rows) + "\n")
    print(f"{len(rows) - 1} chains written to {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
