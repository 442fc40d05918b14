"""How far a training run is: by optimizer steps or by a budget of minutes."""

from __future__ import annotations

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

    def due(self, every_steps: int | None, every_minutes: float | None) -> bool:
        """Whether the last step completed another `every_steps` steps or `every_minutes` minutes."""
        by_steps = every_steps is not None and self.step % every_steps == 0
        if by_steps or every_minutes is None:
            return by_steps
        return self.elapsed_s // (60 * every_minutes) > self.previous_s // (60 * every_minutes)
