"""`roboflamingo weights get`: brings a preset's published weights and says where they lie."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from roboflamingo.cli.arguments import parse, verb_parser

EXAMPLES = """
roboflamingo weights get mpt-1b-dolly
roboflamingo weights get rpj-3b --cache /data/huggingface
"""


def main(arguments: Sequence[str]) -> None:
    """Downloads what is missing, checks all hashes, says where it lies."""
    from roboflamingo.backbone.config import PRESETS

    parser = verb_parser(
        "weights", "Brings a preset's published weights from the Hugging Face hub.", EXAMPLES, "get PRESET"
    )
    parser.add_argument("action", choices=["get"], help="what to do")
    parser.add_argument(
        "preset", choices=[name for name in PRESETS if name not in ("scratch", "tiny")], help="which model"
    )
    parser.add_argument("--cache", type=str, default=None, help="a folder in the layout of the Hugging Face cache")
    values = parse(parser, arguments)
    get(values.preset, None if values.cache is None else Path(values.cache).expanduser().absolute())


def get(preset: str, cache: Path | None = None, console: Console | None = None) -> None:
    """Brings the weights of a preset; downloads show their own progress and continue where they were cut off.

    Raises:
        WeightsError: something cannot be had or is broken. Says what to do.
    """
    from roboflamingo.weights.hub import check_hashes, files_of, licence, published, snapshot
    from roboflamingo.weights.presets import preset as policy_of

    console = console or Console()
    for source in published(policy_of(preset).backbone):
        folder = snapshot(source.name, source.files, cache)
        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console, transient=True) as bar:
            total = sum(path.stat().st_size for path in files_of(folder))
            task = bar.add_task(f"checking {source.name}", total=total)
            size = check_hashes(folder, lambda count, task=task: bar.advance(task, count))  # type: ignore[misc]
        about = f"{source.part} {source.name}: {size / 1e9:.2f} GB, licence {licence(folder)}, hashes right"
        console.print(f"{about}\n  {folder}", soft_wrap=True, highlight=False)
    if cache is not None:
        console.print(
            f"So that train, convert and evaluate find them there: export HF_HUB_CACHE={shlex.quote(str(cache))}",
            soft_wrap=True,
            highlight=False,
        )
