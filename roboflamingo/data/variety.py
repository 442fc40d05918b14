"""What of a window is drawn at random: a function of a seed and of its place in the stream of windows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np


class Drawn(NamedTuple):
    """What was drawn for B windows.

    Attributes:
        shown: (B,) frames of the window.
        sentences: B instructions.
        goals: (B,) rows.
        moved: by camera, (B,) number of the kept shift of its images.
    """

    shown: np.ndarray
    sentences: list[str]
    goals: np.ndarray
    moved: dict[str, np.ndarray]


@dataclass(frozen=True)
class Variety:
    """What of a window is drawn anew whenever it is drawn.

    Attributes:
        seed: decides, with the place in the stream.
        shortest: least number of frames; each number from it to T is as likely. None for always T.
        wordings: other sentences by task, each as likely as the annotated one.
        shifts: by camera, from how many kept shifts of its images one is drawn.
    """

    seed: int = 0
    shortest: int | None = None
    wordings: Mapping[str, Sequence[str]] = field(default_factory=dict)
    shifts: Mapping[str, int] = field(default_factory=dict)

    def draw(
        self,
        places: np.ndarray,
        windows: np.ndarray,
        rows: np.ndarray,
        stops: np.ndarray,
        told: Sequence[tuple[str, str]],
        longest: int,
    ) -> Drawn:
        """Draws for B windows.

        Args:
            places: (B,) in the stream.
            windows: (B,) numbers.
            rows: (B,) the last frame of each.
            stops: (B,) one after the last row that may be a goal.
            told: B annotated instructions with their tasks.
            longest: T.
        """
        shown, goals, sentences = np.full(len(windows), longest), rows.copy(), []
        moved = {camera: np.zeros(len(windows), np.int64) for camera in self.shifts}
        for i, (instruction, task) in enumerate(told):
            random = np.random.default_rng([self.seed, int(places[i]), int(windows[i])])
            if self.shortest is not None:
                shown[i] = random.integers(min(self.shortest, longest), longest + 1)
            texts = (instruction, *self.wordings.get(task, ()))
            sentences.append(texts[random.integers(len(texts))])
            goals[i] = random.integers(min(rows[i] + 1, stops[i] - 1), stops[i])
            for camera, count in self.shifts.items():  # last, so that what came before does not depend on them
                moved[camera][i] = random.integers(count)
        return Drawn(shown, sentences, goals, moved)
