"""Small recordings for tests: episodes of random actions, and what recording them leaves."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from calvin_eval.benchmark.tasks import TASKS
from calvin_eval.demonstrations.recording import Recorder
from calvin_eval.demonstrations.segments import Segment
from calvin_eval.worlds.playtable.world import PlayTable

Episodes = list[list[Segment]]
FIRST, SECOND = list(TASKS)[:2]


def act(world: PlayTable, task: str, frames: int, rng: np.random.Generator, solved: bool = True) -> Segment:
    """A segment of random actions from the world's present state."""
    segment = Segment(task, f"please {task}", [world.observe()], [], solved)
    for _ in range(frames):
        action = np.append(rng.uniform(-1, 1, 6), rng.choice([-1.0, 1.0]))
        segment.observations.append(world.step(action))
        segment.labels.append(action / [2, 2, 2, 2, 2, 2, 1])
    return segment


@lru_cache(maxsize=1)
def three_episodes() -> Episodes:
    """Three episodes: two tasks solved; one solved, then one failed; one failed at once."""
    rng, result = np.random.default_rng(0), []
    with PlayTable("D") as world:
        for lengths, outcomes in (((20, 18), (True, True)), ((17, 3), (True, False)), ((4,), (False,))):
            world.reset()
            tasks = (FIRST, SECOND)[: len(lengths)]
            result.append([act(world, t, n, rng, o) for t, n, o in zip(tasks, lengths, outcomes, strict=True)])
    return result


def cut(segment: Segment, frames: int) -> Segment:
    """The first frames of a segment, as if it had been solved then."""
    return replace(segment, observations=segment.observations[: frames + 1], labels=segment.labels[:frames])


def record(folder: Path, episodes: Episodes, order: Sequence[int] | None = None, scene: str = "D") -> Recorder:
    """Records episodes in an order, finishing left to the caller."""
    recorder = Recorder(folder, scene)
    for number in order if order is not None else range(len(episodes)):
        recorder.write(number, scene, episodes[number])
    return recorder


def tree(folder: Path) -> dict[str, str]:
    """A digest of every file."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
