"""Where metrics go besides `metrics.jsonl`."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from torch.utils.tensorboard import SummaryWriter

from calvin_eval.system.files import naming, write_text
from roboflamingo.training.config import TrainConfig
from roboflamingo.training.resolved import plain


class Logger(Protocol):
    """Takes in lines of metrics (see `metrics.py`)."""

    def write(self, line: dict[str, float]) -> None:
        """One line; `step` is its place."""

    def close(self) -> None:
        """After the session's last line."""


def _without_its_writers_traceback(before: Callable[[Any], Any]) -> Callable[[Any], None]:
    """A hook for exceptions in threads that leaves out what TensorBoard's thread says of a full disk.

    The next call to the writer raises the same error.
    """

    def hook(failure: Any) -> None:
        if not (issubclass(failure.exc_type, OSError) and "AsyncWriter" in type(failure.thread).__name__):
            before(failure)

    return hook


class TensorBoard:
    """Scalars in `tensorboard/`.

    Raises:
        OSError: the disk is full; from `write` or `close`, a while later. Names the folder.

    Args:
        run: the run's folder.
        step: the step that training continues from; what was written of later ones is hidden.
    """

    def __init__(self, run: Path, step: int) -> None:
        self._folder = run / "tensorboard"
        self._hook = threading.excepthook
        threading.excepthook = _without_its_writers_traceback(self._hook)
        with naming(self._folder):
            self._writer = SummaryWriter(str(self._folder), purge_step=step + 1)

    def write(self, line: dict[str, float]) -> None:
        """A scalar for each value."""
        with naming(self._folder):
            for name, value in line.items():
                if name != "step":
                    self._writer.add_scalar(name, value, int(line["step"]))

    def close(self) -> None:
        """Writes what is left."""
        try:
            with naming(self._folder):
                self._writer.close()
        finally:
            threading.excepthook = self._hook


class WeightsAndBiases:
    """A run of Weights & Biases, which later sessions continue.

    Args:
        config: the run's; it is uploaded, too.
    """

    def __init__(self, config: TrainConfig) -> None:
        import wandb  # an extra, see extras.py

        run = Path(config.run)
        self._run: Any = wandb.init(
            project=config.wandb.project,
            mode=config.wandb.mode,
            name=run.name,
            id=_identity(run / "wandb_id.txt"),
            resume="allow" if config.wandb.mode == "online" else None,
            dir=str(run),
            config=plain(config),
        )
        self._run.define_metric("*", step_metric="step")  # steps that a killed session has logged come again

    def write(self, line: dict[str, float]) -> None:
        """All values of the line."""
        self._run.log(line)

    def close(self) -> None:
        """Waits for what is still to be written or uploaded."""
        self._run.finish()


def open_loggers(config: TrainConfig, step: int) -> list[Logger]:
    """Those that the configuration names besides `jsonl`.

    Args:
        config: the run's.
        step: the step that training continues from.
    """
    loggers: list[Logger] = []
    if "tensorboard" in config.loggers:
        loggers.append(TensorBoard(Path(config.run), step))
    if "wandb" in config.loggers:
        loggers.append(WeightsAndBiases(config))
    return loggers


def _identity(path: Path) -> str:
    """The name by which Weights & Biases knows a run again; a new one where there is none."""
    if not path.is_file():
        write_text(path, uuid.uuid4().hex[:8])
    return path.read_text(encoding="utf-8")
