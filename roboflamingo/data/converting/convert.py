"""`convert`: a data set of one kind is written as another, in parallel, killed and continued."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from calvin_eval.system.machine import cores
from roboflamingo.data.converting import to_calvin, to_lerobot
from roboflamingo.data.errors import DataError
from roboflamingo.data.lerobot.files import WriteSettings
from roboflamingo.data.lerobot.making import SET, check_free, making
from roboflamingo.data.lerobot.writing import write_dataset
from roboflamingo.data.sources import kind_of
from roboflamingo.data.sources.base import Source, SourceOptions
from roboflamingo.data.sources.calvin.plain import load_plain_dict
from roboflamingo.data.sources.calvin.source import CalvinSource
from roboflamingo.data.sources.lerobot import LeRobotSource

Target = Literal["lerobot", "calvin"]
LEROBOT_SPLITS = {"training": "train", "validation": "val"}


def convert(
    source: Path,
    target: Path,
    to: Target,
    settings: WriteSettings,
    options: SourceOptions | None = None,
    *,
    kind: str | None = None,
    processes: int | None = None,
    console: Console | None = None,
) -> list[str]:
    """Writes a data set as one of another kind.

    To LeRobot: every language sample becomes an episode, its instruction the episode's task. To CALVIN: from a LeRobot
    set that gives what CALVIN's frames hold.

    Args:
        source: the data set.
        target: the folder to write; nothing may be there.
        to: its kind.
        settings: how a LeRobot set is written.
        options: how the source is read.
        kind: of the source, where its path would not tell.
        processes: how many work at once; None for one a core.
        console: where progress goes; None for the terminal.

    Returns:
        What is lost, in sentences; none where nothing is.

    Raises:
        DataError: a file is missing or broken, or the source does not give what the target's kind needs. Names it.
        OSError: the disk is full. Names the file.
    """
    options, console = options or SourceOptions(), console or Console(stderr=True)
    found = kind_of(source, kind)
    if found.kind == to:
        raise DataError(f"{source} is of the kind {to} already")
    check_free(target)
    splits = [found(source, split, options) for split in found.splits(source)]
    if to == "lerobot":
        return _to_lerobot(splits, target, settings, processes or cores(), console)
    return _to_calvin(splits, target, processes or cores(), console)


def _to_lerobot(
    sources: Sequence[Source], target: Path, settings: WriteSettings, processes: int, console: Console
) -> list[str]:
    recording = to_lerobot.record_source(sources, settings.images, settings.numbers)
    splits, first = {}, 0
    for source in sources:
        count = len(to_lerobot.language_samples(source))
        splits[LEROBOT_SPLITS[source.split]] = (first, first + count)
        first += count
    notes: dict[str, Any] = {"roboflamingo.json": to_lerobot.names_note(recording.spec)}
    if isinstance(sources[0], CalvinSource):
        notes["calvin.json"] = {s.split: _calvin_note(s) for s in sources if isinstance(s, CalvinSource)}
    with _bar(console, f"writing {target.name}") as advance:
        write_dataset(
            target,
            recording,
            settings,
            content=_content(sources),
            splits=splits,
            notes=notes,
            processes=processes,
            on_progress=advance,
        )
    return _losses(sources, settings)


def _losses(sources: Sequence[Source], settings: WriteSettings) -> list[str]:
    """What a LeRobot set does not hold of its source."""
    lost = []
    if settings.images == "video":
        lost.append(f"images are in videos of quality {settings.quality}, close but not equal; png keeps every pixel")
    if settings.numbers == "float32":
        lost.append("numbers are in float32, as LeRobot's policies take them; recorded keeps them as they were")
    for source in sources:
        outside = np.ones(len(source), bool)
        for sample in to_lerobot.language_samples(source):
            outside[sample.first : sample.stop] = False
        if left := int(outside.sum()):
            lost.append(f"{source.title}: {left} of {len(source)} frames lie outside of every segment and are left out")
    if isinstance(sources[0], CalvinSource):
        lost.append("embeddings of sentences are left out" + _other_arrays(sources[0]))
    return lost


def _other_arrays(source: CalvinSource) -> str:
    """What else of CALVIN's frames is left out, such as depth, in words that go on."""
    spec = source.spec
    taken = {*spec.cameras, *spec.state, *spec.privileged, "rel_actions", "actions"}
    with np.load(source.name(source.samples[0].first)) as frame:
        others = sorted(set(frame.files) - taken)
    return f", and {', '.join(others)} of every frame" if others else ""


def _to_calvin(sources: Sequence[Source], target: Path, processes: int, console: Console) -> list[str]:
    sets = [source for source in sources if isinstance(source, LeRobotSource) and len(source)]
    if len(sets) < sum(len(source) > 0 for source in sources):
        raise DataError(f"{sources[0].path} is of the kind {sources[0].kind}; CALVIN folders are made of lerobot")
    for each in sets:
        to_calvin.check_calvin(each)
    done, total = 0, sum(len(each) for each in sets)
    with making(target, {"content": _content(sets)}) as work, _bar(console, f"writing {target.name}") as advance:

        def on_frames(count: int) -> None:
            nonlocal done
            done += count
            advance(done, total)

        for each in sets:
            to_calvin.write_split(work / SET / each.split, each, processes, on_frames)
    return ["embeddings of sentences are zeros: no sentence model belongs to this package"]


def _calvin_note(source: CalvinSource) -> dict[str, Any]:
    """What a CALVIN split holds besides frames and instructions."""
    scenes = source.folder / "scene_info.npy"
    ranges = load_plain_dict(scenes) if scenes.is_file() else {}
    texts = {"merged_config": ".hydra/merged_config.yaml", "statistics": "statistics.yaml"}
    return {
        "tasks": [sample.task for sample in to_lerobot.language_samples(source)],
        "scene_info": {str(name): [int(bound) for bound in bounds] for name, bounds in ranges.items()},
        **{
            name: (source.folder / file).read_text(encoding="utf-8") if (source.folder / file).is_file() else None
            for name, file in texts.items()
        },
    }


def _content(sources: Sequence[Source]) -> str:
    """Names what the sources hold, so that a run is continued for the same alone."""
    digest = hashlib.sha256()
    for source in sources:
        digest.update(f"{source.title} {source.notes} {source.stamp()} {source.options}".encode())
    return digest.hexdigest()


@contextmanager
def _bar(console: Console, title: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar of frames; what is yielded is told (done, in all)."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(title, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)
