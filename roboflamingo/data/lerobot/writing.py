"""Writes LeRobotDatasets v3.0 that `lerobot` loads: in parallel, killed and continued, and whole or not there.

Every file of it takes the
episodes that the plan gives it, so that what a killed run has finished is kept by the next.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from calvin_eval.system.files import append_line, read_lines, write_atomic, write_json, write_text
from calvin_eval.system.machine import cores
from calvin_eval.system.processes import run_jobs
from roboflamingo.data.errors import DataError
from roboflamingo.data.lerobot import statistics
from roboflamingo.data.lerobot.files import FileJob, Recording, WriteSettings, complete
from roboflamingo.data.lerobot.layout import (
    CHECKSUMS,
    INDEX_FEATURES,
    INFO,
    STATS,
    TASKS,
    Feature,
    Info,
    info_json,
    need,
)
from roboflamingo.data.lerobot.making import PROGRESS, SET, making
from roboflamingo.data.lerobot.statistics import merge
from roboflamingo.data.lerobot.video import pixel_format

FILE_BYTES, FILE_FRAMES = 100e6, 5000
"""What is in a file at most, about. A process writes a file at a time, and a kill loses what it has of it."""
PNG_SHARE, VIDEO_SHARE = 0.7, 0.03
"""Bytes that a pixel's three take as PNG and in a video, about; only the sizes of files follow from them."""


def write_dataset(
    folder: Path,
    recording: Recording,
    settings: WriteSettings,
    *,
    content: str,
    splits: Mapping[str, tuple[int, int]],
    robot: str = "",
    notes: Mapping[str, Any] | None = None,
    processes: int | None = None,
    on_progress: Callable[[int, int], None] = lambda done, frames: None,
) -> None:
    """Writes a data set.

    Args:
        folder: where it will lie; nothing may be there.
        recording: what is written.
        settings: how.
        content: names what is recorded; a run continues what was begun for the same.
        splits: first episode and the one after the last, by name.
        robot: the robot's name.
        notes: further files under `meta`, by name, as JSON.
        processes: how many work at once; None for one a core.
        on_progress: told (frames done, frames in all).

    Raises:
        DataError: something lies there, there are no episodes, or a frame cannot be read. Names it.
        OSError: the disk is full. Names the file.
        MissingExtraError: pyarrow or av is not installed.
    """
    need("pyarrow"), need("av")
    if not recording.episodes:
        raise DataError("there are no episodes to write")
    files = _files(recording, settings)
    plan = {"content": content, "settings": asdict(settings), "files": len(files)}
    with making(folder, plan) as work:
        done = _done(work)
        total = sum(plan.length for plan in recording.episodes)
        written = sum(each["frames"] for each in done.values())
        on_progress(written, total)
        rest = (job for job in _jobs(work / SET, recording, settings, files) if job.number not in done)
        workers = min(processes or cores(), len(files) - len(done))
        for finished in run_jobs(FileJob.run, rest, workers) if workers > 1 else map(FileJob.run, rest):
            append_line(work / PROGRESS, finished)
            done[finished["file"]] = finished
            written += finished["frames"]
            on_progress(written, total)
        _describe(work / SET, recording, done, splits, robot, settings)
        for name, value in (notes or {}).items():
            write_json(work / SET / "meta" / name, value)


def _texts(recording: Recording) -> list[str]:
    """The tasks, each once, in the order of their numbers."""
    return list(dict.fromkeys(plan.task for plan in recording.episodes))


def _files(recording: Recording, settings: WriteSettings) -> list[tuple[int, int]]:
    """Which episodes go into each file: the first, and the one after the last."""
    limit = settings.frames_per_file or _frames_per_file(recording)
    files: list[tuple[int, int]] = []
    first = frames = 0
    for number, plan in enumerate(recording.episodes):
        frames += plan.length
        if frames >= limit or number + 1 == len(recording.episodes):
            files.append((first, number + 1))
            first, frames = number + 1, 0
    return files


def _jobs(
    folder: Path, recording: Recording, settings: WriteSettings, files: list[tuple[int, int]]
) -> Iterator[FileJob]:
    """What is to be done, made as workers ask for it."""
    numbers, frame = {text: number for number, text in enumerate(_texts(recording))}, 0
    for number, (first, stop) in enumerate(files):
        plans = recording.episodes[first:stop]
        tasks = {plan.task: numbers[plan.task] for plan in plans}
        yield FileJob(folder, recording.part(first, stop), settings, number, first, frame, tasks)
        frame += sum(plan.length for plan in plans)


def _frames_per_file(recording: Recording) -> int:
    """How many frames a file takes."""
    size = 1.0
    for feature in recording.features.values():
        values = float(np.prod(feature["shape"]))
        size += values * {"video": VIDEO_SHARE, "image": PNG_SHARE}.get(feature["dtype"], 8)
    return max(1, min(int(FILE_BYTES / size), FILE_FRAMES))


def _done(work: Path) -> dict[int, dict[str, Any]]:
    """What an earlier run finished, by file."""
    lines = read_lines(work / PROGRESS, mend=True)
    return {line["file"]: line for line in lines if complete(work / SET, line["file"])}


def _describe(
    folder: Path,
    recording: Recording,
    done: Mapping[int, Mapping[str, Any]],
    splits: Mapping[str, tuple[int, int]],
    robot: str,
    settings: WriteSettings,
) -> None:
    """Writes what `meta` holds besides the tables of the episodes."""
    texts = _texts(recording)
    features = {**recording.features, **INDEX_FEATURES}
    features = {key: _with_video_info(feature, recording.fps, settings.pix_fmt) for key, feature in features.items()}
    info = Info(
        folder,
        recording.fps,
        {key: Feature(key, value["dtype"], tuple(value["shape"])) for key, value in features.items()},
        len(recording.episodes),
        sum(plan.length for plan in recording.episodes),
        splits,
        robot=robot,
    )
    write_text(folder / INFO, info_json(info, len(texts), features))
    parts: dict[str, list[dict[str, np.ndarray]]] = {}
    for number in sorted(done):
        for key, each in done[number]["statistics"].items():
            parts.setdefault(key, []).append({name: np.array(value) for name, value in each.items()})
    write_json(folder / STATS, statistics.plain({key: merge(each) for key, each in parts.items()}))
    checksums = {path: digest for number in sorted(done) for path, digest in done[number]["checksums"].items()}
    write_json(folder / CHECKSUMS, checksums)
    write, table = need("pyarrow.parquet").write_table, tasks_table(texts)
    write_atomic(folder / TASKS, lambda file: write(table, file, write_page_checksum=True))


def _with_video_info(feature: Mapping[str, Any], fps: float, pix_fmt: str) -> dict[str, Any]:
    """A feature with what `lerobot` notes of its videos."""
    if feature["dtype"] != "video":
        return dict(feature)
    height, width, _ = feature["shape"]
    notes = {
        "video.height": height,
        "video.width": width,
        "video.codec": "h264",
        "video.pix_fmt": pixel_format((height, width), pix_fmt),
        "video.fps": int(fps) if fps == int(fps) else fps,
        "video.channels": 3,
        "is_depth_map": False,
        "has_audio": False,
    }
    return {**feature, "info": notes}


def tasks_table(texts: list[str]) -> Any:
    """The table of task texts, with the note that makes them the index when pandas reads it, as `lerobot` does."""
    arrow = need("pyarrow")
    table = arrow.table({"task_index": arrow.array(range(len(texts)), arrow.int64()), "task": texts})
    column = {"metadata": None, "field_name": "task_index", "name": "task_index"}
    note = {
        "index_columns": ["task"],
        "column_indexes": [],
        "columns": [
            {**column, "pandas_type": "int64", "numpy_type": "int64"},
            {**column, "field_name": "task", "name": "task", "pandas_type": "unicode", "numpy_type": "object"},
        ],
        "creator": {"library": "pyarrow", "version": arrow.__version__},
        "pandas_version": "2.0.0",
    }
    return table.replace_schema_metadata({"pandas": json.dumps(note)})
