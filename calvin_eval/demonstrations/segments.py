"""One demonstrated task, as scripted experts and recorder hand it to each other, and what of an episode is kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import takewhile

import numpy as np

from calvin_eval.protocol import Observation

SHORTEST = 16
"""Frames of the shortest segment that is annotated: the shortest window of CALVIN's loaders (`min_window_size`).

A shorter one gives them no window, and their shared-memory loader fails on it at an episode's end."""


@dataclass
class Segment:
    """One demonstrated task.

    Attributes:
        task: its name. instruction: what was asked for.
        observations: one per frame, and the one after the last action.
        labels: the scripted expert's clean action (7,) at every frame.
        solved: whether the oracle said so.
    """

    task: str
    instruction: str
    observations: list[Observation] = field(default_factory=list)
    labels: list[np.ndarray] = field(default_factory=list)
    solved: bool = False

    @property
    def annotated(self) -> bool:
        """Whether it is long enough to be a demonstration."""
        return len(self.labels) >= SHORTEST


def kept(segments: Sequence[Segment]) -> tuple[list[Segment], int]:
    """What of an episode is recorded, and how many solved tasks are too short to be annotated.

    Recorded is what was solved before the first failure, from the first segment that is annotated to the last. Short
    ones between them stay, without annotation, so that the frames follow each other.
    """
    solved = list(takewhile(lambda segment: segment.solved, segments))
    long = [number for number, segment in enumerate(solved) if segment.annotated]
    return (solved[long[0] : long[-1] + 1] if long else []), len(solved) - len(long)
