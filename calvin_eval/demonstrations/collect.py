"""Fills data sets with demonstrations: parallel, seeded, resumable.

Episode i of a split is a pure function of (seed, split, i): its scene, start, tasks and noise. Whoever runs it gets
the same frames, so a killed collection goes on without a trace.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from calvin_eval.benchmark.tasks import TASKS
from calvin_eval.calvin import SCENES
from calvin_eval.demonstrations.collection import Account, Claim
from calvin_eval.demonstrations.episodes import EpisodeSettings, demonstrate_episode
from calvin_eval.demonstrations.recording import COUNTS, Recorder
from calvin_eval.protocol import Policy
from calvin_eval.system.errors import UserError
from calvin_eval.system.locks import folder_lock
from calvin_eval.system.machine import cores
from calvin_eval.system.processes import run_jobs
from calvin_eval.system.ranges import COUNT, SEED, check_ranges
from calvin_eval.worlds.playtable.world import PlayTable

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
        check_ranges(self, "settings", episodes=COUNT, validation_episodes=COUNT, seed=SEED)
        check_scenes("settings.scenes", self.scenes)
        check_scenes("settings.validation_scene", self.validation_scene, most=1)
        if self.episodes < len(self.scenes):
            raise UserError(
                f"settings.episodes is {self.episodes}, too few for the {len(self.scenes)} scenes {self.scenes}"
            )

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


def check_scenes(key: str, scenes: str, most: int = len(SCENES)) -> None:
    """Makes sure that a text names scenes, each once.

    Raises:
        UserError: it does not. Names the key.
    """
    if not scenes or set(scenes) - set(SCENES) or len(set(scenes)) < len(scenes) or len(scenes) > most:
        several = ", several as in ABC, each once" if most > 1 else ", one of them"
        raise UserError(f"{key} is {scenes!r}; scenes are {', '.join(SCENES)}{several}")


def collect(
    out: Path,
    settings: CollectSettings,
    *,
    workers: int | None = None,
    make_policy: MakePolicy | None = None,
    about: Mapping[str, Any] | None = None,
) -> Path:
    """Collects a data set below `out` and returns its folder. One that is complete is returned at once.

    Args:
        out: parent folder; the data set gets CALVIN's name for its scenes.
        settings: what to collect.
        workers: processes; one per core by default.
        make_policy: makes the policy that acts first (DAgger), once in each worker; picklable.
        about: what makes this policy's actions what they are, as {"policy_fingerprint": ..., "execute": E}; JSON
            values. Needed with a policy, and part of what the data set is known by.

    Raises:
        UserError: the folder holds a collection of other settings or another policy, or one that other code began;
            another process fills it; frames of a complete data set are missing; or the policy cannot act on a play
            table (`PolicySpec.check`), or gives no actions.
        OSError: the disk is full, or cannot be written to. Names the file.
        WorkerError: a worker process was killed, or failed by a fault that is no user's.
    """
    _check(settings, workers, make_policy, about)
    folder, about = out / settings.name, dict(about or {})
    claim = Claim(folder, asdict(settings), asdict(CollectSettings()), about)
    job = _Job(folder, settings, claim.maker, make_policy)
    if job.finished and (Account(folder).complete or not job.counted):
        claim.check(True)  # without a lock, so that a read-only data set serves too
        job.check_frames()
        return folder
    with folder_lock(folder, "roboflamingo collect"):
        claim.check(job.finished)
        account = Account(folder)
        _record(job, min(workers or cores(), settings.episodes + settings.validation_episodes), claim, account)
        claim.write()
        account.close({split: job.finish(split) for split in SPLITS}, asdict(settings), about)
    return folder


def _check(
    settings: CollectSettings, workers: int | None, make_policy: MakePolicy | None, about: Mapping[str, Any] | None
) -> None:
    """Refuses what cannot be recorded, before anything is."""
    if not settings.episode.render:
        raise UserError("recording needs images; leave episode.render at true")
    if workers is not None and workers < 1:
        raise UserError(f"workers must be at least 1, not {workers}")
    if make_policy is not None and not about:
        raise UserError("a policy is given, and `about` does not say which: give its fingerprint and E")


@dataclass(frozen=True)
class _Job:
    """The episodes of a data set. Each worker process gets one copy, which keeps its policy and worlds."""

    folder: Path
    settings: CollectSettings
    maker: str
    make_policy: MakePolicy | None

    @property
    def finished(self) -> bool:
        """Whether both splits are complete."""
        return all(self.recorder(split).finished for split in SPLITS)

    @property
    def counted(self) -> bool:
        """Whether both splits know what they hold; those of an earlier version do not."""
        return all(self.recorder(split).counts() is not None for split in SPLITS)

    def recorder(self, split: str) -> Recorder:
        """Where a split is recorded."""
        scenes = self.settings.scenes if split == "training" else self.settings.validation_scene
        return Recorder(self.folder / split, scenes, self.maker)

    def missing(self, split: str) -> list[int]:
        """Episodes that are still to be recorded."""
        recorder = self.recorder(split)
        return [] if recorder.finished else [i for i in range(self.settings.count(split)) if not recorder.has(i)]

    def finish(self, split: str) -> dict[str, Any]:
        """Completes a split, if need be, and returns its counts."""
        recorder = self.recorder(split)
        if not recorder.finished:
            return recorder.finish()
        counts = recorder.counts()
        if counts is None:
            raise UserError(
                f"{recorder.folder / COUNTS} is damaged; the split is complete without it. "
                "Run again to use the data set as it is, or remove it to collect anew"
            )
        return counts

    def check_frames(self) -> None:
        """Makes sure that no frame of a complete data set is missing."""
        for split in SPLITS:
            counts = self.recorder(split).counts()
            if counts is not None:  # an earlier version kept none
                self.recorder(split).count_frames(counts["frames"], counts.get("first", 0))  # 0: of layout 1

    @cached_property
    def _policy(self) -> Policy | None:
        return None if self.make_policy is None else self.make_policy()

    @cached_property
    def _worlds(self) -> dict[str, PlayTable]:
        return {}

    def __call__(self, job: tuple[str, int]) -> tuple[str, int]:
        """Runs and records one episode (split, number); returns the split and how many tasks were solved."""
        split, episode = job
        scene = self.settings.scene_of(split, episode)
        if scene not in self._worlds:
            self._worlds[scene] = PlayTable(scene)
            if self._policy is not None and self._policy.spec is not None:
                self._policy.spec.check(self._worlds[scene].spec, f"the play table of scene {scene}")
        rng = np.random.default_rng([self.settings.seed, SPLITS.index(split), episode])
        wish = list(TASKS)[episode % len(TASKS)]
        segments = demonstrate_episode(self._worlds[scene], wish, self.settings.episode, rng, self._policy)
        self.recorder(split).write(episode, scene, segments)
        return split, sum(segment.solved for segment in segments)

    def close(self) -> None:
        """Frees what this process made for its episodes."""
        for held in (*vars(self).get("_worlds", {}).values(), vars(self).get("_policy")):
            if held is not None:
                held.close()


def _record(job: _Job, workers: int, claim: Claim, account: Account) -> None:
    """Records all missing episodes on several processes. The first one claims the folder."""
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[tasks]} tasks"),
        TimeElapsedColumn(), TimeRemainingColumn(),
    )  # fmt: skip
    missing = {split: job.missing(split) for split in SPLITS}
    episodes = [(split, episode) for split in SPLITS for episode in missing[split]]
    if not episodes:
        return
    with Progress(*columns) as progress:
        bars, tasks = {}, dict.fromkeys(SPLITS, 0)
        for split in SPLITS:
            total = job.settings.count(split)
            done = total - len(missing[split])
            bars[split] = progress.add_task(f"Collecting {split}", total=total, completed=done, tasks=0)
        # OMP_NUM_THREADS: a process, a core
        for split, solved in run_jobs(job, episodes, min(workers, len(episodes)), environment={"OMP_NUM_THREADS": "1"}):
            claim.write()
            account.tick()
            tasks[split] += solved
            progress.update(bars[split], advance=1, tasks=tasks[split])
