"""Writes what training measures to `metrics.jsonl`, and hands it on to further loggers.

`metrics.jsonl` has a line for every logged step, with losses as the mean over the steps since the last line, and lr
and grad_norm of that step alone:
    {"step", "epoch", "lr", "loss", "pose", "gripper", "auxiliary", "grad_norm", "frames_per_s", "elapsed_s"}
and a line for every validation, with the errors of every part of an action in its units (see `validation.py`):
    {"step", "epoch", "elapsed_s", "val_loss", "val_pose_m", "val_pose_rad", "val_gripper_accuracy", ...}
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer

from calvin_eval.system.errors import UserError
from calvin_eval.system.files import naming, read_lines, write_atomic
from roboflamingo.training.loggers import Logger


class RunningMean:
    """Means of named scalars over steps, kept on the device, so that a GPU is not waited for."""

    def __init__(self) -> None:
        self._sums: dict[str, torch.Tensor] = {}
        self._count = 0

    def add(self, values: dict[str, torch.Tensor]) -> None:
        """One batch more."""
        for name, value in values.items():
            self._sums[name] = self._sums[name] + value if name in self._sums else value.clone()
        self._count += 1

    def share(self, trainer: Trainer) -> None:
        """Puts the mean over processes into each of them."""
        if trainer.world_size > 1:
            self._sums = {name: trainer.strategy.reduce(v, reduce_op="mean") for name, v in self._sums.items()}

    def take(self) -> dict[str, torch.Tensor]:
        """The means since the last call."""
        means = {name: total / self._count for name, total in self._sums.items()}
        self._sums, self._count = {}, 0
        return means

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint between two lines of the log."""
        return {"sums": {name: total.item() for name, total in self._sums.items()}, "count": self._count}

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        """Continues from what `state_dict` gave."""
        self._sums = {name: torch.tensor(total, device=device) for name, total in state["sums"].items()}
        self._count = state["count"]


class MetricsLog:
    """The log of one run.

    Args:
        run: the run's folder.
        step: the step that training continues from. Lines of later steps, which a killed session has
            written after its last checkpoint, are dropped, as they will be written again.
        further: where lines go besides the file.
    """

    def __init__(self, run: Path, step: int, further: Sequence[Logger] = ()) -> None:
        self._path = run / "metrics.jsonl"
        _truncate(self._path, step)
        with naming(self._path):
            self._file = self._path.open("ab")
        self._further = further

    def write(self, line: dict[str, float]) -> None:
        """One line. No kill can undo it; that the disk has it is not waited for (4 ms), as `last.ckpt` is behind it.

        Raises:
            OSError: the disk is full. Names the file; nothing of the line is left.
        """
        before = self._file.tell()
        with naming(self._path):
            try:
                self._file.write(json.dumps(line).encode() + b"\n")
                self._file.flush()
            except OSError:
                os.truncate(self._path, before)
                raise
        for logger in self._further:
            logger.write(line)

    def close(self) -> None:
        """Ends all logs."""
        self._file.close()
        for logger in self._further:
            logger.close()


def _truncate(path: Path, step: int) -> None:
    """Keeps the lines up to `step`; a last line that was cut off by a kill is later than any checkpoint.

    Raises:
        UserError: a line is damaged. Names file and line.
    """
    kept = []
    for number, line in enumerate(read_lines(path), start=1):
        place = line.get("step") if isinstance(line, dict) else None
        if not isinstance(place, int):
            raise UserError(f"{path}, line {number} is no line of a training log; remove the line")
        if place > step:
            break
        kept.append(json.dumps(line) + "\n")
    if path.exists():
        write_atomic(path, lambda file: file.write("".join(kept).encode()))
