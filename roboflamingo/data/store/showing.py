"""A progress bar that shows itself when the wait gets long."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

PATIENCE_S = 5.0
"""Work that takes longer shows how far it is."""


@contextmanager
def bar_when_slow(title: str, total: int, console: Console) -> Iterator[Callable[[int], None]]:
    """Gives what is told how much more is done."""
    begin, done, task = time.monotonic(), 0, TaskID(-1)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    bar = Progress(*columns, console=console, transient=True)

    def advance(count: int) -> None:
        nonlocal done, task
        done += count
        if task < 0 and time.monotonic() - begin > PATIENCE_S:
            bar.start()
            task = bar.add_task(title, total=total)
        if task >= 0:
            bar.update(task, completed=done)

    try:
        yield advance
    finally:
        if task >= 0:
            bar.stop()
