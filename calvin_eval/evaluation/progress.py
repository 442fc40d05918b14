"""How an evaluation stands, on the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from calvin_eval.protocol import EpisodeResult

SHOWN_RATES = 5
"""Rates that the progress bar shows at most: of 1, 2, ... sub-tasks in a row."""


def show(
    results: Iterator[EpisodeResult], before: Sequence[EpisodeResult], missing: int, label: str
) -> Iterator[EpisodeResult]:
    """Passes results on, and shows a progress bar with the rates so far.

    Args:
        results: as they come.
        before: those that were there.
        missing: how many will come.
        label: of the bar.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    numbers = (TextColumn("{task.fields[rates]}"), TimeRemainingColumn(elapsed_when_finished=True))
    so_far = list(before)
    with Progress(*columns, *numbers) as progress:
        total = len(before) + missing
        bar = progress.add_task(label, total=total, completed=len(before), rates=rates(so_far))
        for result in results:
            so_far.append(result)
            progress.update(bar, advance=1, rates=rates(so_far))
            yield result


def rates(results: Sequence[EpisodeResult]) -> str:
    """How it stands, for the progress bar, whatever the number of sub-tasks.

    Shown are the shares of episodes with at least 1, 2, ... sub-tasks solved, each of those that have as many, and how
    many are solved on average.
    """
    if not results:
        return ""
    shares = []
    for k in range(1, SHOWN_RATES + 1):
        long = [result.solved >= k for result in results if len(result.tasks) >= k]
        if long:
            shares.append(f"{100 * sum(long) / len(long):.0f}")
    mean = sum(result.solved for result in results) / len(results)
    return f"SR {' '.join(shares)} % length {mean:.2f}"
