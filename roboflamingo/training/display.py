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
            f"step {line['step']}  held-out loss {line['val_loss']:.4f}{_errors(line)}{'  (best)' if is_best else ''}",
            highlight=False,
            soft_wrap=True,
        )

    def close(self) -> None:
        """Takes the bar down."""
        self._bar.stop()


def _errors(line: dict[str, float]) -> str:
    """The held-out errors of each part of an action: ", pose error 3.1 mm and 0.012 rad, gripper right 98.0%"."""
    parts = [name for name in line if name.startswith("val_")]  # of which some are a part's loss, some its errors
    said = []
    for part in parts:
        errors = {name.removeprefix(f"{part}_"): line[name] for name in parts if name.startswith(f"{part}_")}
        sizes = [_size(unit, error) for unit, error in errors.items() if unit != "accuracy"]
        if sizes:
            said.append(f"{part.removeprefix('val_')} error {' and '.join(sizes)}")
        if "accuracy" in errors:
            said.append(f"{part.removeprefix('val_')} right {errors['accuracy']:.1%}")
    return "".join(f", {words}" for words in said)


def _size(unit: str, error: float) -> str:
    if unit == "m":
        return f"{1000 * error:.1f} mm"
    return f"{error:.3f}" if unit == "error" else f"{error:.3f} {unit.replace('_per_', '/')}"
