"""Training's progress in the terminal."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from roboflamingo.training.progress import Progress


class Display:
    """A bar with step, loss and speed; where there is no terminal, a line for every validation.

    Args:
        progress: how far training is.
        console: where to draw.
    """

    def __init__(self, progress: Progress, console: Console) -> None:
        self._progress, self._console = progress, console
        columns = (BarColumn(), TextColumn("{task.description}"), TimeRemainingColumn())
        self._bar = Bar(*columns, console=console, disable=console.quiet or not console.is_terminal)
        self._task = self._bar.add_task("training", total=1.0)

    def open(self) -> None:
        """Shows the bar."""
        self._bar.start()

    def update(self, line: dict[str, float]) -> None:
        """After a line of the log."""
        text = f"training  step {line['step']}  loss {line['loss']:.4f}  {line['frames_per_s']:.0f} frames/s"
        self._bar.update(self._task, completed=self._progress.fraction(), description=text)

    def validated(self, line: dict[str, float], is_best: bool) -> None:
        """After a validation."""
        self._console.print(
            f"step {line['step']}  held-out loss {line['val_loss']:.4f}, action error "
            f"{1000 * line['val_translation_m']:.1f} mm and {line['val_rotation_rad']:.3f} rad, "
            f"gripper right {line['val_gripper_accuracy']:.1%}{'  (best)' if is_best else ''}",
            highlight=False,
            soft_wrap=True,
        )

    def close(self) -> None:
        """Takes the bar down."""
        self._bar.stop()
