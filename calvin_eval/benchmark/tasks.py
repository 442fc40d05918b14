"""The oracle: when each of CALVIN's 34 tasks counts as solved (CALVIN SPEC 1.8, to the letter).

A task compares the moment its instruction was given with the present one. Several can be true at once.
`python -m calvin_eval.benchmark.tasks check CASES.json.gz` compares it with the official oracle's recorded answers.

Non-obvious behaviours, kept as the official oracle has them
    - A lift asks for contact with the robot and nothing else, so a block that brushes a wall is not lifted.
    - Pushing asks that every contact of the start (other than with the robot) still holds at the end.
    - `push_into_drawer` allows the robot to touch the block at the end.
    - `unstack_block` tests the velocity at the start, `stack_block` at the end.
"""

from __future__ import annotations

import argparse
import gzip
import json
import sys
import zlib
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from scipy.spatial.transform import Rotation

from calvin_eval.calvin import BLOCKS, BlockState, Contact, Info
from calvin_eval.system.errors import UserError

Test = Callable[[Info, Info], bool]

ROBOT, TABLE = "robot", "table"
PLANK, DRAWER, BASE = "plank_link", "drawer_link", "base_link"


SMALL_TURN = 0.9
"""Cosine of half of an angle (52 degrees) by which nothing turned that counts as rotated: with euler angles of 60
degrees about z and less than 30 about x and y it is at most 0.87."""


def _rotate(block: str, degrees: float) -> Test:
    def solved(start: Info, end: Info) -> bool:
        before, after = start.blocks[block], end.blocks[block]
        if abs(np.dot(before.orientation, after.orientation)) > SMALL_TURN:
            return False  # as the rest would say, which takes long to compute and is asked after every step
        if np.linalg.norm(after.position - before.position) > 0.1:
            return False
        if not _without_robot(after.contacts):
            return False
        turn = Rotation.from_quat(after.orientation) * Rotation.from_quat(before.orientation).inv()
        x, y, z = turn.as_euler("xyz", degrees=True)
        enough = -180 < z < degrees if degrees < 0 else degrees < z < 180
        return bool(enough and abs(x) < 30 and abs(y) < 30)

    return solved


def _push(block: str, distance: float) -> Test:
    def solved(start: Info, end: Info) -> bool:
        before, after = start.blocks[block], end.blocks[block]
        moved = after.position[0] - before.position[0]
        if not (moved > distance if distance > 0 else moved < distance):
            return False
        held_by, holds = _without_robot(before.contacts), _without_robot(after.contacts)
        return bool(held_by and holds and held_by <= holds)

    return solved


def _move_door(door: str, distance: float) -> Test:
    def solved(start: Info, end: Info) -> bool:
        moved = end.doors[door] - start.doors[door]
        return moved > distance if distance > 0 else moved < distance

    return solved


def _lift(block: str, link: str, height: float) -> Test:
    def solved(start: Info, end: Info) -> bool:
        before, after = start.blocks[block], end.blocks[block]
        return bool(
            after.position[2] - before.position[2] > height
            and _bodies(after.contacts) == {ROBOT}
            and Contact(TABLE, link) in before.contacts
        )

    return solved


def _place(link: str) -> Test:
    def solved(start: Info, end: Info) -> bool:
        touched = _bodies(start.robot_contacts)
        if len(touched) != 1:
            return False
        (block,) = touched
        if block not in start.blocks or _bodies(start.blocks[block].contacts) != {ROBOT}:
            return False
        return block not in _bodies(end.robot_contacts) and Contact(TABLE, link) in end.blocks[block].contacts

    return solved


def _stack(start: Info, end: Info) -> bool:
    for block in start.blocks:
        touched = _bodies(end.blocks[block].contacts)
        if (
            touched
            and touched <= set(BLOCKS)
            and not _bodies(start.blocks[block].contacts) & set(BLOCKS)
            and _slow(end.blocks[block])
        ):
            return True
    return False


def _unstack(start: Info, end: Info) -> bool:
    for block in start.blocks:
        touched = _bodies(start.blocks[block].contacts)
        if (
            touched
            and touched <= set(BLOCKS)
            and not _bodies(end.blocks[block].contacts) & set(BLOCKS)
            and _slow(start.blocks[block])
        ):
            return True
    return False


def _toggle(light: str, before: int) -> Test:
    def solved(start: Info, end: Info) -> bool:
        return start.lights[light] == before and end.lights[light] == 1 - before

    return solved


def _push_into_drawer(start: Info, end: Info) -> bool:
    return any(
        start.blocks[block].contacts == {Contact(TABLE, BASE)} and Contact(TABLE, DRAWER) in end.blocks[block].contacts
        for block in start.blocks
    )


def _bodies(contacts: Iterable[Contact]) -> set[str]:
    return {contact.body for contact in contacts}


def _without_robot(contacts: Iterable[Contact]) -> set[Contact]:
    return {contact for contact in contacts if contact.body != ROBOT}


def _slow(block: BlockState) -> bool:
    return bool((np.abs(block.linear_velocity) < 1).all() and (np.abs(block.angular_velocity) < 1).all())


def _all_tasks() -> dict[str, Test]:
    tasks: dict[str, Test] = {}
    colours = [(block.removeprefix("block_"), block) for block in BLOCKS]
    for colour, block in colours:
        tasks[f"rotate_{colour}_block_right"] = _rotate(block, -60)
        tasks[f"rotate_{colour}_block_left"] = _rotate(block, 60)
    for colour, block in colours:
        tasks[f"push_{colour}_block_right"] = _push(block, 0.1)
        tasks[f"push_{colour}_block_left"] = _push(block, -0.1)
    tasks["move_slider_left"] = _move_door("base__slide", 0.15)
    tasks["move_slider_right"] = _move_door("base__slide", -0.15)
    tasks["open_drawer"] = _move_door("base__drawer", 0.12)
    tasks["close_drawer"] = _move_door("base__drawer", -0.12)
    for colour, block in colours:
        tasks[f"lift_{colour}_block_table"] = _lift(block, BASE, 0.05)
        tasks[f"lift_{colour}_block_slider"] = _lift(block, PLANK, 0.03)
        tasks[f"lift_{colour}_block_drawer"] = _lift(block, DRAWER, 0.05)
    tasks["place_in_slider"] = _place(PLANK)
    tasks["place_in_drawer"] = _place(DRAWER)
    tasks["stack_block"] = _stack
    tasks["unstack_block"] = _unstack
    tasks["turn_on_lightbulb"] = _toggle("lightbulb", 0)
    tasks["turn_off_lightbulb"] = _toggle("lightbulb", 1)
    tasks["turn_on_led"] = _toggle("led", 0)
    tasks["turn_off_led"] = _toggle("led", 1)
    tasks["push_into_drawer"] = _push_into_drawer
    return tasks


TASKS: dict[str, Test] = _all_tasks()
"""The 34 tasks by name, in CALVIN's order: given (start, end), whether the task was solved in between."""


def solved(start: Info, end: Info, tasks: Collection[str] = tuple(TASKS)) -> set[str]:
    """Which of the tasks were solved between two moments.

    Raises:
        KeyError: no such task.
    """
    return {task for task in tasks if TASKS[task](start, end)}


def read_snapshot(snapshot: dict[str, Any], scene: dict[str, Any]) -> Info:
    """A recorded moment of a cases file; its contacts are [body, other body, link, other link, distance]."""
    names = {scene["robot_uid"]: ROBOT, scene["table_uid"]: TABLE}
    names |= {uid: block for block, uid in scene["uids"].items()}
    links = {index: link for link, index in scene["links"].items()}

    def contacts(points: list[list[float]]) -> frozenset[Contact]:
        result = set()
        for point in points:
            body, link = int(point[1]), int(point[3])
            name = names.get(body, f"body_{body}")
            known = links if name == TABLE else {-1: BASE}
            result.add(Contact(name, known.get(link, f"link_{link}")))
        return frozenset(result)

    blocks = {
        name: BlockState(
            np.array(block["pos"]),
            np.array(block["orn"]),
            np.array(block["lin_vel"]),
            np.array(block["ang_vel"]),
            contacts(block["contacts"]),
        )
        for name, block in snapshot["movable"].items()
    }
    robot_contacts = contacts(snapshot["robot_contacts"])
    return Info(snapshot["scene"], snapshot["doors"], snapshot["lights"], blocks, robot_contacts)


def check(path: Path) -> tuple[int, int, list[str]]:
    """Replays a cases file: (how many agree, how many there are, the first ten disagreements in words).

    Raises:
        UserError: the file is not gzipped JSON, is damaged, or lacks a key.
    """
    try:
        with gzip.open(path, "rt") as file:
            data = json.load(file)
    except (gzip.BadGzipFile, zlib.error, EOFError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{path} is not a file of cases, gzipped JSON: {error}") from error
    missing = {"scenes", "snapshots", "cases"} - set(data if isinstance(data, dict) else ())
    if missing:
        raise UserError(f"{path} is not a file of cases: it lacks {', '.join(sorted(missing))}")
    try:
        snapshots = [read_snapshot(s, data["scenes"][s["scene"]]) for s in data["snapshots"]]
        cases = [(snapshots[start], snapshots[end], set(expected)) for start, end, expected in data["cases"]]
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{path} is not a file of cases: an entry is not as it should be ({error!r})") from error
    agree, wrong = 0, list[str]()
    for number, (start, end, expected) in enumerate(cases):
        found = solved(start, end)
        if found == expected:
            agree += 1
        elif len(wrong) < 10:
            wrong.append(f"case {number}: official {sorted(expected)}, ours {sorted(found)}")
    return agree, len(cases), wrong


def main(arguments: list[str] | None = None) -> int:
    """The command line; 1 if any case disagrees."""
    parser = argparse.ArgumentParser(
        "python -m calvin_eval.benchmark.tasks", description="The oracle for CALVIN's 34 tasks."
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    verb = verbs.add_parser("check", help="replay recorded cases of the official oracle")
    verb.add_argument("cases", type=Path, help="file of cases, json.gz")
    options = parser.parse_args(arguments)
    try:
        agree, total, wrong = check(options.cases)
    except (OSError, UserError) as error:
        parser.error(str(error))
    for line in wrong:
        print(line)
    print(f"agree {agree}/{total}")
    return int(agree != total)


if __name__ == "__main__":
    sys.exit(main())
