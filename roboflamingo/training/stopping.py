"""When a session ends before its run does: a signal came, or the policy has stopped getting better."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

from roboflamingo.training.launching import is_launched


class Patience:
    """Follows the held-out loss: which policy is the best, and since when nothing has been gained.

    Args:
        patience: validations in a row without gain after which training ends; None for no limit.
        min_delta: by how much the loss must fall below that of the last gain to be one.

    Attributes:
        best: the lowest loss so far, or None.
        stale: validations since the last gain.
    """

    def __init__(self, patience: int | None, min_delta: float) -> None:
        self._patience, self._min_delta = patience, min_delta
        self.best: float | None = None
        self.stale = 0
        self._gained = float("inf")

    def is_best(self, loss: float) -> bool:
        """Takes in a validation's loss and says whether it is the lowest so far."""
        if loss < self._gained - self._min_delta:
            self._gained, self.stale = loss, 0
        else:
            self.stale += 1
        best = loss < (float("inf") if self.best is None else self.best)
        if best:
            self.best = loss
        return best

    def exhausted(self) -> bool:
        """Whether training is to end."""
        return self._patience is not None and self.stale >= self._patience

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"best": self.best, "stale": self.stale, "gained": self._gained}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from what `state_dict` gave; limit and smallest gain may have changed since."""
        self.best = state["best"]
        self.stale = state.get("stale", 0)  # states of runs that knew no patience lack these two
        self._gained = state.get("gained", float("inf") if self.best is None else self.best)


class StopSignals:
    """Turns SIGTERM and SIGINT into a wish to stop after the current step.

    Attributes:
        received: the signal's number, 0 while there was none.
    """

    def __init__(self) -> None:
        self.received = 0

    def catch(self) -> None:
        """Replaces Lightning's handlers, which do not save; it puts the original ones back afterwards.

        Processes that a run has launched leave signals to the main one, which tells them.
        """
        if is_launched():
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, signal.SIG_IGN)
        elif threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._on_signal)
            signal.signal(signal.SIGINT, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        """A second signal finds the default handlers, which end the process at once; its files are whole."""
        self.received = number
        for each in (signal.SIGTERM, signal.SIGINT):
            signal.signal(each, signal.SIG_DFL)
