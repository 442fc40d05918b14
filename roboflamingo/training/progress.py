"""How far a training run is: by optimizer steps or by a budget of minutes."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass


@dataclass
class Progress:
    """Steps made and seconds spent, those of earlier sessions of the same run included.

    Attributes:
        max_steps: where training ends, or None.
        max_minutes: likewise.
        step: optimizer steps made.
        elapsed_s: seconds spent, as of the last step.
        previous_s: seconds spent, as of the step before.
        stopped_early: training has ended before that, as it brought nothing any more.
    """

    max_steps: int | None
    max_minutes: float | None
    step: int = 0
    elapsed_s: float = 0.0
    previous_s: float = 0.0
    stopped_early: bool = False
    _origin: float = 0.0

    def start_clock(self) -> None:
        """Begins a session: `clock` continues at `elapsed_s`."""
        self._origin = time.monotonic() - self.elapsed_s

    def clock(self) -> float:
        """Seconds spent up to now."""
        return time.monotonic() - self._origin

    def advance(self, elapsed_s: float) -> None:
        """One optimizer step more."""
        self.step += 1
        self.previous_s, self.elapsed_s = self.elapsed_s, elapsed_s

    def fraction(self) -> float:
        """0 at the start, 1 at the end."""
        if self.max_steps is not None:
            return min(1.0, self.step / self.max_steps)
        assert self.max_minutes is not None
        return min(1.0, self.elapsed_s / (60 * self.max_minutes))

    def finished(self) -> bool:
        """Whether training has reached its end."""
        return self.stopped_early or self.fraction() >= 1.0

    def passed(self, every_steps: float) -> int | None:
        """How many times `every_steps` steps (which need not be whole) are done, where the last step completed one."""
        now, before = math.floor(self.step / every_steps), math.floor((self.step - 1) / every_steps)
        return now if now > before else None

    def due(self, every_steps: int | None, every_minutes: float | None) -> bool:
        """Whether the last step completed another `every_steps` steps or `every_minutes` minutes."""
        by_steps = every_steps is not None and self.step % every_steps == 0
        if by_steps or every_minutes is None:
            return by_steps
        return self.elapsed_s // (60 * every_minutes) > self.previous_s // (60 * every_minutes)


class SaveTimes:
    """When to save: as told, or so often that saving takes little of the time however large the state is.

    Args:
        every_steps: optimizer steps from one to the next, or None.
        every_minutes: minutes, or None.

    Attributes:
        cost_s: seconds that the last save took.
    """

    MINUTES, SHARE = 2.0, 0.02
    """Where nothing is told: minutes between saves, and the largest share of time that saving may take."""

    def __init__(self, every_steps: int | None, every_minutes: float | None) -> None:
        self._every_steps, self._every_minutes = every_steps, every_minutes
        self.cost_s = 0.0
        self._saved_s = 0.0

    def start(self, elapsed_s: float) -> None:
        """A session begins, or a save has been made."""
        self._saved_s = elapsed_s

    def due(self, progress: Progress) -> bool:
        """Whether to save after the last step."""
        if self._every_steps is not None or self._every_minutes is not None:
            return progress.due(self._every_steps, self._every_minutes)
        return progress.elapsed_s - self._saved_s >= max(60 * self.MINUTES, self.cost_s / self.SHARE)
