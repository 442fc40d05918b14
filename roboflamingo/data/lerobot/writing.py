"""Writes LeRobotDatasets v3.0 that `lerobot` loads: in parallel, killed and continued, and whole or not there.

The set is made beside its place, in `.NAME.part`, and put there when it is complete. Every file of it takes the
episodes that the plan gives it, so that what a killed run has finished is kept by the next.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from calvin_eval.system.files import append_line, read_lines, replace_folder, write_atomic, write_json, write_text
from calvin_eval.system.machine import cores
from calvin_eval.system.processes import run_jobs
from roboflamingo.data.errors import DataError
from roboflamingo.data.lerobot import statistics
from roboflamingo.data.lerobot.files import FileJob, Recording, WriteSettings, complete
from roboflamingo.data.lerobot.layout import INDEX_FEATURES, INFO, STATS, TASKS, Feature, Info, info_json, need
from roboflamingo.data.lerobot.statistics import merge

PLAN, PROGRESS = "plan.json", "progress.jsonl"
FILE_BYTES = 100e6
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
    folder = folder.absolute()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError(f"{folder} is there already; name another folder, or remove it")
    if not recording.episodes:
        raise DataError("there are no episodes to write")
    part = folder.with_name(f".{folder.name}.part")
    texts = list(dict.fromkeys(plan.task for plan in recording.episodes))
    jobs = _jobs(part, recording, settings, texts)
    done = _begin(part, {"content": content, "settings": asdict(settings), "files": len(jobs)})
    total = sum(plan.length for plan in recording.episodes)
    written = sum(each["frames"] for each in done.values())
    on_progress(written, total)
    rest = [job for job in jobs if job.number not in done]
    workers = min(processes or cores(), len(rest))
    for finished in run_jobs(FileJob.run, rest, workers) if workers > 1 else map(FileJob.run, rest):
        append_line(part / PROGRESS, finished)
        done[finished["file"]] = finished
        written += finished["frames"]
        on_progress(written, total)
    _describe(part, recording, texts, done, splits, robot, settings)
    for name, value in (notes or {}).items():
        write_json(part / "meta" / name, value)
    for name in (PLAN, PROGRESS):
        (part / name).unlink()
    replace_folder(part, folder)


def _jobs(part: Path, recording: Recording, settings: WriteSettings, texts: list[str]) -> list[FileJob]:
    """Which episodes go into which file."""
    numbers = {text: number for number, text in enumerate(texts)}
    limit = settings.frames_per_file or _frames_per_file(recording)
    jobs: list[FileJob] = []
    first = frame = start = 0
    for number, plan in enumerate(recording.episodes):
        start += plan.length
        if start >= limit or number + 1 == len(recording.episodes):
            mine = {plan.task: numbers[plan.task] for plan in recording.episodes[first : number + 1]}
            jobs.append(FileJob(part, recording, settings, len(jobs), first, number + 1, frame, mine))
            first, frame, start = number + 1, frame + start, 0
    return jobs


def _frames_per_file(recording: Recording) -> int:
    """How many frames make a file of some `FILE_BYTES`."""
    size = 1.0
    for feature in recording.features.values():
        values = float(np.prod(feature["shape"]))
        size += values * {"video": VIDEO_SHARE, "image": PNG_SHARE}.get(feature["dtype"], 8)
    return max(1, int(FILE_BYTES / size))


def _begin(part: Path, plan: dict[str, Any]) -> dict[int, dict[str, Any]]:
    """Finds what an earlier run of the same plan finished, by file; of another plan nothing is kept."""
    try:
        before = json.loads((part / PLAN).read_bytes())
    except (OSError, ValueError):
        before = None
    if before != plan:
        shutil.rmtree(part, ignore_errors=True)
        write_json(part / PLAN, plan)
        return {}
    lines = read_lines(part / PROGRESS, mend=True)
    return {line["file"]: line for line in lines if complete(part, line["file"])}


def _describe(
    part: Path,
    recording: Recording,
    texts: list[str],
    done: Mapping[int, Mapping[str, Any]],
    splits: Mapping[str, tuple[int, int]],
    robot: str,
    settings: WriteSettings,
) -> None:
    """Writes what `meta` holds besides the tables of the episodes."""
    features = {**recording.features, **INDEX_FEATURES}
    features = {key: _with_video_info(feature, recording.fps) for key, feature in features.items()}
    info = Info(
        part,
        recording.fps,
        {key: Feature(key, value["dtype"], tuple(value["shape"])) for key, value in features.items()},
        len(recording.episodes),
        sum(plan.length for plan in recording.episodes),
        splits,
        robot=robot,
    )
    write_text(part / INFO, info_json(info, len(texts), features))
    parts: dict[str, list[dict[str, np.ndarray]]] = {}
    for number in sorted(done):
        for key, each in done[number]["statistics"].items():
            parts.setdefault(key, []).append({name: np.array(value) for name, value in each.items()})
    write_json(part / STATS, statistics.plain({key: merge(each) for key, each in parts.items()}))
    write_atomic(part / TASKS, lambda file: need("pyarrow.parquet").write_table(tasks_table(texts), file))


def _with_video_info(feature: Mapping[str, Any], fps: float) -> dict[str, Any]:
    """A feature with what `lerobot` notes of its videos."""
    if feature["dtype"] != "video":
        return dict(feature)
    height, width, _ = feature["shape"]
    even = height % 2 == width % 2 == 0
    notes = {
        "video.height": height,
        "video.width": width,
        "video.codec": "h264",
        "video.pix_fmt": "yuv420p" if even else "yuv444p",
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
