"""Fills data sets with demonstrations: parallel, seeded, resumable.

Episode i of a split is a pure function of (seed, split, i): its scene, start, tasks and noise. Whoever runs it gets
the same frames, so a killed collection goes on without a trace.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from calvin_eval.demonstrations import EpisodeSettings, demonstrate_episode
from calvin_eval.protocol import SCENES, Policy
from calvin_eval.recording import Recorder
from calvin_eval.system.files import write_json
from calvin_eval.system.provenance import provenance
from calvin_eval.tasks import TASKS
from calvin_eval.world.playtable import PlayTable

SPLITS = ("training", "validation")

MakePolicy = Callable[[], Policy]


@dataclass(frozen=True)
class CollectSettings:
    """What to collect.

    Attributes:
        scenes: training scenes, such as "D" or "ABC".
        validation_scene: the scene of the validation split.
        episodes: training episodes, each of a few tasks in a row.
        validation_episodes: validation episodes.
        seed: decides every start, task and noise.
        episode: how an episode runs.
    """

    scenes: str = "D"
    validation_scene: str = "D"
    episodes: int = 800
    validation_episodes: int = 40
    seed: int = 0
    episode: EpisodeSettings = field(default_factory=EpisodeSettings)

    def __post_init__(self) -> None:
        for scene in (*self.scenes, self.validation_scene):
            if scene not in SCENES:
                raise ValueError(f"scene {scene!r} does not exist; scenes are {', '.join(SCENES)}, several as 'ABC'")
        if self.episodes < 1 or self.validation_episodes < 1:
            raise ValueError("episodes and validation_episodes must be at least 1")

    @property
    def name(self) -> str:
        """CALVIN's name for such a data set, as task_ABC_D."""
        return f"task_{self.scenes}_{self.validation_scene}"

    def count(self, split: str) -> int:
        """Episodes of a split."""
        return self.episodes if split == "training" else self.validation_episodes

    def scene_of(self, split: str, episode: int) -> str:
        """The scene of an episode; training scenes follow each other in equal shares."""
        if split == "validation":
            return self.validation_scene
        return self.scenes[episode * len(self.scenes) // self.episodes]


def collect(
    out: Path,
    settings: CollectSettings,
    *,
    workers: int | None = None,
    make_policy: MakePolicy | None = None,
) -> Path:
    """Collects a data set below `out` and returns its folder.

    Args:
        out: parent folder; the data set gets CALVIN's name for its scenes.
        settings: what to collect.
        workers: processes; one per core by default.
        make_policy: makes the policy that acts first (DAgger), in each worker.

    Raises:
        ValueError: the folder holds a collection with other settings.
    """
    folder = out / settings.name
    _claim(folder, settings)
    started, report = time.time(), {}
    for split in SPLITS:
        scenes = settings.scenes if split == "training" else settings.validation_scene
        recorder = Recorder(folder / split, scenes)
        if recorder.finished:
            continue
        solved = _record(recorder, split, settings, workers or os.cpu_count() or 1, make_policy)
        counts = recorder.finish()
        report[split] = {**counts, "segments_per_task": dict(sorted(solved.items()))}
    if report:
        frames = sum(split["frames"] for split in report.values())
        size = sum(split["bytes"] for split in report.values())
        seconds = time.time() - started
        report["per_1000_frames"] = {"seconds": 1000 * seconds / frames, "megabytes": size / frames / 1000}
        write_json(folder / "collection.json", {**report, "settings": asdict(settings), "made_with": provenance()})
        print(
            f"{folder}: {frames} frames in {seconds:.0f} s; per 1000 frames "
            f"{1000 * seconds / frames:.1f} s and {size / frames / 1000:.1f} MB"
        )
    return folder


def _claim(folder: Path, settings: CollectSettings) -> None:
    """Makes sure that what lies in the folder was collected with the same settings."""
    import json

    path = folder / "settings.json"
    mine = json.loads(json.dumps(asdict(settings)))
    if path.exists():
        theirs = json.loads(path.read_text())
        different = sorted(key for key in mine if theirs.get(key) != mine[key])
        if different:
            raise ValueError(
                f"{folder} was collected with other settings ({', '.join(different)}); "
                f"choose another folder, or remove it to collect anew"
            )
    else:
        write_json(path, mine)


def _record(
    recorder: Recorder, split: str, settings: CollectSettings, workers: int, make_policy: MakePolicy | None
) -> Counter[str]:
    """Records all missing episodes of a split on several processes; returns solved segments per task."""
    count, solved = settings.count(split), Counter[str]()
    missing = iter([episode for episode in range(count) if not recorder.has(episode)])
    context = multiprocessing.get_context("spawn")
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[tasks]} tasks"),
        TimeElapsedColumn(), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns) as progress, ProcessPoolExecutor(workers, mp_context=context) as pool:
        bar = progress.add_task(
            f"Collecting {split}", total=count, completed=sum(map(recorder.has, range(count))), tasks=0
        )

        def submit(number: int) -> Iterator[Future[list[str]]]:
            for _, episode in zip(range(number), missing, strict=False):
                yield pool.submit(_episode, recorder, split, episode, settings, make_policy)

        running = set(submit(2 * workers))
        while running:
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                solved.update(future.result())
                progress.update(bar, advance=1, tasks=solved.total())
            running |= set(submit(len(done)))
    return solved


def _episode(
    recorder: Recorder, split: str, episode: int, settings: CollectSettings, make_policy: MakePolicy | None
) -> list[str]:
    """Runs and records one episode; returns the solved tasks. Runs in a worker process."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    scene = settings.scene_of(split, episode)
    rng = np.random.default_rng([settings.seed, SPLITS.index(split), episode])
    wish = list(TASKS)[episode % len(TASKS)]
    actor = None if make_policy is None else _policy(make_policy)
    segments = demonstrate_episode(_world(scene), wish, settings.episode, rng, actor)
    recorder.write(episode, scene, segments)
    return [segment.task for segment in segments if segment.solved]


@lru_cache(maxsize=len(SCENES))
def _world(scene: str) -> PlayTable:
    """A worker's world of a scene, made once."""
    return PlayTable(scene)


@lru_cache(maxsize=1)
def _policy(make: MakePolicy) -> Policy:
    """A worker's policy, made once."""
    return make()
