"""The index of samples: what of the packed rows belongs together, for every way of learning from it.

    - language: a segment and its instruction, what the policies here are trained on.
    - play: all frames of an episode in a row, whatever is said of them.
    - goal: the same, where a later frame is what is to be reached.
    - caption: frames and a sentence that says what they show.

Nothing is stored twice: language and caption samples come from the source, the others from its episodes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from roboflamingo.data.errors import DataError
from roboflamingo.data.sources.base import Sample, SampleKind
from roboflamingo.data.store.reading import PackedFolder


@dataclass(frozen=True)
class SampleTable:
    """S samples of one kind, of one or several packed folders.

    Attributes:
        bounds: (S, 2) int64, the first row and the one after the last, counted through all folders.
        folders: (S,) int64, the number of each sample's folder.
        instructions: S sentences; "" where there is none.
        tasks: S names; "" where there is none.
        named: S pairs, how the data set itself writes the bounds.
    """

    bounds: np.ndarray
    folders: np.ndarray
    instructions: tuple[str, ...]
    tasks: tuple[str, ...]
    named: tuple[tuple[int, int], ...]

    def __len__(self) -> int:
        return len(self.tasks)

    @property
    def lengths(self) -> np.ndarray:
        """(S,) int64, rows of each."""
        lengths: np.ndarray = self.bounds[:, 1] - self.bounds[:, 0]
        return lengths

    def only(self, kept: Sequence[int] | np.ndarray) -> SampleTable:
        """These samples, by number and in that order."""
        return replace(
            self,
            bounds=self.bounds[kept],
            folders=self.folders[kept],
            instructions=tuple(self.instructions[i] for i in kept),
            tasks=tuple(self.tasks[i] for i in kept),
            named=tuple(self.named[i] for i in kept),
        )

    def share(self, fraction: float, seed: int) -> SampleTable:
        """A share of each task's samples, at least one, drawn by seed."""
        if fraction >= 1:
            return self
        random, tasks = np.random.default_rng(seed), np.array(self.tasks)
        kept: list[int] = []
        for task in np.unique(tasks):
            members = np.flatnonzero(tasks == task)
            kept += random.permutation(members)[: max(1, round(fraction * len(members)))].tolist()
        return self.only(sorted(kept))

    def said(self, sentences: Mapping[str, Sequence[str]]) -> SampleTable:
        """The same samples with the first of their task's sentences instead of their own.

        Raises:
            DataError: a task has none. Names it.
        """
        if missing := sorted(set(self.tasks) - sentences.keys()):
            raise DataError(
                f"data.only_wordings needs a sentence for every task; data.wordings has none for {missing[0]}"
            )
        return replace(self, instructions=tuple(sentences[task][0] for task in self.tasks))


def sample_table(packed: Sequence[PackedFolder], kind: SampleKind = "language") -> SampleTable:
    """The samples of one kind of all packed folders, in order.

    Raises:
        DataError: there are none. Says why.
    """
    samples: list[Sample] = []
    folders: list[int] = []
    first_row = 0
    for number, folder in enumerate(packed):
        found = _of_episodes(folder, kind) if kind in ("play", "goal") else folder.samples()
        found = [sample for sample in found if sample.kind == kind]
        samples += [s._replace(first=s.first + first_row, stop=s.stop + first_row) for s in found]
        folders += [number] * len(found)
        first_row += folder.frames
    if not samples:
        names = ", ".join(str(folder.folder) for folder in packed)
        raise DataError(f"{names} holds no {kind} samples")
    return SampleTable(
        bounds=np.array([(sample.first, sample.stop) for sample in samples], np.int64),
        folders=np.array(folders, np.int64),
        instructions=tuple(sample.instruction for sample in samples),
        tasks=tuple(sample.task for sample in samples),
        named=tuple(sample.bounds or (sample.first, sample.stop) for sample in samples),
    )


def _of_episodes(folder: PackedFolder, kind: SampleKind) -> list[Sample]:
    """A sample for every run of rows of an episode; a goal needs a row to start from and one to reach."""
    least = 2 if kind == "goal" else 1
    return [Sample(first, stop, kind) for first, stop in folder.episodes.tolist() if stop - first >= least]
