"""One demonstrated task, as recorder and demonstrators hand it to each other."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from calvin_eval.protocol import Observation


@dataclass
class Segment:
    """One demonstrated task.

    Attributes:
        task: its name. instruction: the sentence given.
        observations: one per frame, and the one after the last action.
        labels: the demonstrator's clean action (7,) at every frame.
        solved: whether the oracle said so.
    """

    task: str
    instruction: str
    observations: list[Observation] = field(default_factory=list)
    labels: list[np.ndarray] = field(default_factory=list)
    solved: bool = False
