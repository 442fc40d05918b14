"""What a data set holds, and what is wrong with it: facts for people, gathered by reading its frames in parallel."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from calvin_eval.specs import RobotSpec
from calvin_eval.system.processes import run_jobs
from roboflamingo.data.errors import DataError
from roboflamingo.data.sources.base import ACTIONS, Reader, Sample, Source

BLOCK = 64
"""Rows that a process reads at once."""
STRIP = 6
"""Pictures of a strip."""


@dataclass(frozen=True)
class Facts:
    """One split.

    Attributes:
        title: its name.
        kind: of data set.
        spec: cameras, states, actions.
        frames: rows, missing ones counted.
        episodes: how many.
        missing: names of frames that are missing.
        windows: rows of language samples, each of which ends a window.
        lengths: of the language samples.
        tasks: samples of each task.
        sentences: how often each sentence is said.
        captions: how many samples are captions.
        unannotated: why there are no samples; "" where there are.
        looked: rows that were read.
        damaged: what is wrong with rows that cannot be read.
        actions: (n, A) float32, of the rows that were read.
        strip: pictures of one sample by camera, evenly spread.
        shown: what the strip shows.
    """

    title: str
    kind: str
    spec: RobotSpec
    frames: int
    episodes: int
    missing: list[str]
    windows: int
    lengths: list[int]
    tasks: Counter[str]
    sentences: Counter[str]
    captions: int
    unannotated: str
    looked: int
    damaged: list[str]
    actions: np.ndarray
    strip: dict[str, list[np.ndarray]] = field(default_factory=dict)
    shown: str = ""


@dataclass(frozen=True)
class Looked:
    """What reading some rows found.

    Attributes:
        rows: how many were read.
        damaged: what is wrong with those that cannot be.
        actions: (n, A) float32, of the others.
    """

    rows: int
    damaged: list[str]
    actions: np.ndarray


@dataclass(frozen=True)
class LookJob:
    """Rows that one process reads.

    Attributes:
        reader: of the rows.
        rows: how many.
        names: the arrays that are read.
        size: A, numbers of an action.
    """

    reader: Reader
    rows: int
    names: tuple[str, ...]
    size: int

    def run(self) -> Looked:
        """Reads them."""
        damaged, actions = [], []
        for frame in self.reader.frames(self.names):
            if isinstance(frame, DataError):
                damaged.append(str(frame))
            else:
                actions.append(frame.arrays[ACTIONS])
        return Looked(self.rows, damaged, np.array(actions, np.float32).reshape(-1, self.size))


def read_rows(
    source: Source, rows: np.ndarray, processes: int, on_rows: Callable[[int], object] = lambda count: None
) -> Iterator[Looked]:
    """Reads rows in full, in blocks, in parallel.

    Args:
        source: the split.
        rows: (n,), ascending.
        processes: how many read.
        on_rows: told how many rows more were read.
    """
    spec = source.spec
    names = (*spec.cameras, *spec.state, *spec.privileged, ACTIONS)
    pieces = (rows[first : first + BLOCK] for first in range(0, len(rows), BLOCK))
    jobs = (LookJob(source.reader(piece), len(piece), names, spec.actions.size) for piece in pieces)
    workers = min(-(-len(rows) // BLOCK), processes)
    for looked in run_jobs(LookJob.run, jobs, workers) if workers > 1 else (job.run() for job in jobs):
        on_rows(looked.rows)
        yield looked


def inspect(
    source: Source, most: int | None, processes: int, on_rows: Callable[[int], object] = lambda count: None
) -> Facts:
    """Gathers the facts of a split.

    Args:
        source: the split.
        most: how many frames are read, evenly spread; None for all.
        processes: how many read.
        on_rows: told how many rows more were read.

    Raises:
        DataError: what describes the frames is damaged.
    """
    rows = rows_to_read(len(source), most)
    looked = list(read_rows(source, rows, processes, on_rows))
    samples: tuple[Sample, ...] = source.samples if source.annotated else ()
    unannotated = "" if source.annotated else "nothing is said of its frames, so that no language is learned from them"
    said = [sample for sample in samples if sample.kind == "language"]
    strip, shown = _strip(source)
    return Facts(
        title=source.title,
        kind=source.kind,
        spec=source.spec,
        frames=len(source),
        episodes=len(source.episodes),
        missing=[source.name(row) for row in source.missing.tolist()],
        windows=sum(sample.stop - sample.first for sample in said),
        lengths=[sample.stop - sample.first for sample in said],
        tasks=Counter(sample.task for sample in said),
        sentences=Counter(sample.instruction for sample in said),
        captions=len(samples) - len(said),
        unannotated=unannotated,
        looked=len(rows),
        damaged=[problem for part in looked for problem in part.damaged],
        actions=np.concatenate([part.actions for part in looked]),
        strip=strip,
        shown=shown,
    )


def rows_to_read(count: int, most: int | None) -> np.ndarray:
    """(n,) int64, at most so many of `count` rows, evenly spread; all for None."""
    if most is None or most >= count:
        return np.arange(count)
    return np.unique(np.linspace(0, count - 1, most).round().astype(np.int64))


def _strip(source: Source) -> tuple[dict[str, list[np.ndarray]], str]:
    """Pictures of the first sample, or else episode, that can be read, and what they show."""
    spans = [(s.first, s.stop, s.instruction) for s in (source.samples if source.annotated else ())[:20]]
    spans += [(first, stop, "an episode") for first, stop in source.episodes[:20].tolist()]
    cameras = tuple(source.spec.cameras)
    for first, stop, shown in spans:
        rows = np.unique(np.linspace(first, stop - 1, STRIP).round().astype(np.int64))
        frames = list(source.reader(rows).frames(cameras))
        if not any(isinstance(frame, DataError) for frame in frames):
            pictures = [frame.arrays for frame in frames if not isinstance(frame, DataError)]
            return {name: [arrays[name] for arrays in pictures] for name in cameras}, shown
    return {}, ""
