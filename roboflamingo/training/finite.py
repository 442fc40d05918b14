"""Ends training where a gradient is no number, before such a step can reach a file.

Non-obvious behaviours
    - Only the norm of the gradient is watched. A loss that is not finite makes its own gradient NaN (`stops`), and the
      norm is the same in all processes, so that they stop together without a word to each other.
    - On a CPU the norm is read before every step, which costs nothing. A GPU would have to be waited for, so there the
      first such step is kept on the device and read where its numbers are read anyway: before a line of the log, a
      validation and a save. The steps since are lost; nothing of them has been saved.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from calvin_eval.system.errors import UserError
from roboflamingo.data.windows import Windows
from roboflamingo.training.config import TrainConfig
from roboflamingo.training.datamodule import WindowDataModule

NAMED = 5
"""Windows that a message names."""


class DivergenceError(UserError):
    """A gradient or a weight became NaN or infinite. The run's files are those of its last save.

    Attributes:
        step: the optimizer step that could not be made.
    """

    def __init__(self, message: str, step: int) -> None:
        super().__init__(message)
        self.step = step


def stops(loss: Tensor) -> Tensor:
    """The same loss to the last bit; one that is not finite has a gradient of NaN."""
    return loss * torch.where(loss.detach().isfinite(), 1.0, float("nan"))


class FiniteWatch:
    """Notices the first step whose gradient is not finite.

    Args:
        config: the run's.
        data: which windows a step has.
    """

    def __init__(self, config: TrainConfig, data: WindowDataModule) -> None:
        self._config, self._data = config, data
        self._failed = torch.tensor(-1)

    def see(self, norm: Tensor, step: int) -> None:
        """Takes in the norm of the gradient of a step that is about to be made.

        Raises:
            DivergenceError: on a CPU: it is not finite.
        """
        first = (self._failed.to(norm.device) < 0) & ~norm.isfinite()
        self._failed = torch.where(first, step, self._failed.to(norm.device))
        if norm.device.type == "cpu":
            self.check()

    def check(self) -> None:
        """Reads what was seen.

        Raises:
            DivergenceError: some step's gradient was not finite. Names step and windows, and what to do.
        """
        step = int(self._failed)
        if step >= 0:
            raise self.error("the gradient", step)

    def error(self, what: str, step: int) -> DivergenceError:
        """The error that says that something was not finite at a step."""
        config, count = self._config, self._config.windows_a_step
        numbers = self._data.stream.take((step - 1) * count, count).tolist()
        culprits = _culprits(self._data.training, numbers)
        if culprits:
            advice = f"mend the data: {culprits}"
        else:
            advice = (
                "their data are finite, so begin a new run with a lower optimizer.learning_rate "
                f"(now {config.scaled_learning_rate:g})"
            )
            advice += " or a smaller optimizer.clip" if config.optimizer.clip else " or with optimizer.clip 1.0"
            advice += ", or with precision fp32" if config.precision == "bf16" else ""
        return DivergenceError(
            f"{what} is not finite at step {step}, so training ends; the files in {config.run} stay as they were saved "
            f"before. The step's windows are {_named(self._data.training, numbers)}; {advice}",
            step,
        )


def _named(windows: Windows, numbers: Sequence[int]) -> str:
    """The first numbers with their instructions, and how many more there are."""
    sentences = windows.__getitems__(numbers[:NAMED])["instruction"]
    named = ", ".join(f"{number} ({sentence!r})" for number, sentence in zip(numbers, sentences, strict=False))
    return named + (f" and {len(numbers) - NAMED} more" if len(numbers) > NAMED else "")


def _culprits(windows: Windows, numbers: Sequence[int]) -> str:
    """Windows whose data are not finite, and which part of them; empty where there are none."""
    found = []
    for number in dict.fromkeys(numbers):
        batch = windows.__getitems__([number])
        arrays = {name: value for name, value in batch.items() if isinstance(value, np.ndarray)}
        bad = [n for n, value in arrays.items() if value.dtype.kind == "f" and not np.isfinite(value).all()]
        if bad:
            found.append(f"{', '.join(bad)} of window {number} ({batch['instruction'][0]!r})")
    return "; ".join(found[:NAMED])
