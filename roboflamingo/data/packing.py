"""Packs a CALVIN split once into arrays that are mapped into memory, so that reading a window costs a copy.

A split of small compressed files takes milliseconds a frame to read; its packed form takes microseconds.
Only frames that an annotated segment covers are packed, resized to what the policy sees.

A packed folder holds `rgb_static.npy` (N, S, S, 3) and `rgb_gripper.npy` (N, G, G, 3) uint8,
`robot_obs.npy` (N, 15), `scene_obs.npy` (N, 24, blocks always red, blue, pink) and `actions.npy` (N, 7)
float32, and `index.json`.

Non-obvious behaviours
    - The folder appears under its name when it is complete. A killed packing leaves `<name>.building`,
      which the next call continues.
    - Several processes may ask for the same folder: one packs, the others wait.
    - When a source file or a setting changes, the folder is made again.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import multiprocessing
import os
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from roboflamingo.data.annotations import DataError
from roboflamingo.data.frames import FrameJob, PackSettings
from roboflamingo.data.split import Split, read_split

FORMAT = 1
"""Raised when the layout of a packed folder changes, so that older ones are made again."""

FRAMES_PER_JOB = 256


def pack(
    split: Path,
    cache: Path,
    settings: PackSettings,
    *,
    processes: int | None = None,
    console: Console | None = None,
) -> Path:
    """Makes sure that `split` lies packed under `cache`.

    Args:
        split: a CALVIN `training` or `validation` folder.
        cache: the folder for packed folders; made if missing.
        settings: image sizes and the like.
        processes: how many read in parallel; None for one per core.
        console: where the progress bar goes; None for the terminal.

    Returns:
        The packed folder, named after the split and the settings.

    Raises:
        DataError: a source file is missing or broken, or the disk is too small. Names the file and the key.
    """
    source = read_split(split.resolve(), settings.language)
    fingerprint = f"{FORMAT}-{source.fingerprint}"
    name = _name(source.folder, settings)
    target, building = cache / name, cache / f"{name}.building"
    cache.mkdir(parents=True, exist_ok=True)
    with _locked(cache / f"{name}.lock"):
        if _read_json(target / "index.json").get("fingerprint") == fingerprint:
            return target
        _prepare(building, source, settings, fingerprint)
        _fill(building, source, settings, processes or _cores(), console or Console(stderr=True))
        (building / "index.json").write_text(json.dumps(_index(source, settings, fingerprint)), encoding="utf-8")
        shutil.rmtree(target, ignore_errors=True)
        os.replace(building, target)
        (target / "done.json").unlink()
    return target


def _name(split: Path, settings: PackSettings) -> str:
    digest = hashlib.sha256(json.dumps([str(split), asdict(settings)]).encode()).hexdigest()[:8]
    return f"{split.parent.name}_{split.name}_{settings.static_size}_{settings.gripper_size}_{digest}"


def _cores() -> int:
    """Cores this process may use, which can be fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Holds a lock that the system releases when the process dies."""
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _index(source: Split, settings: PackSettings, fingerprint: str) -> dict[str, Any]:
    """Describes a packed folder; a segment's rows are its first row and the one after its last."""
    starts = np.searchsorted(source.frames, [segment.start for segment in source.segments]).tolist()
    return {
        "fingerprint": fingerprint,
        "source": str(source.folder),
        "settings": asdict(settings),
        "frames": len(source.frames),
        "segments": [
            {"rows": [row, row + s.stop - s.start], "task": s.task, "instruction": s.instruction}
            for row, s in zip(starts, source.segments, strict=True)
        ],
    }


def _prepare(building: Path, source: Split, settings: PackSettings, fingerprint: str) -> None:
    """Makes empty arrays, or keeps those of a packing that was killed."""
    if _read_json(building / "done.json").get("fingerprint") == fingerprint:
        return
    shutil.rmtree(building, ignore_errors=True)
    arrays = settings.arrays(len(source.frames))
    need = sum(int(np.prod(shape)) * np.dtype(kind).itemsize for shape, kind in arrays.values())
    free = shutil.disk_usage(building.parent).free
    if need > free:
        raise DataError(
            f"packing {source.folder} needs {need / 1e9:.1f} GB, {building.parent} has {free / 1e9:.1f} GB; "
            "set data.cache to a folder on a larger disk"
        )
    building.mkdir()
    for name, (shape, kind) in arrays.items():
        np.lib.format.open_memmap(building / f"{name}.npy", mode="w+", dtype=kind, shape=shape)
    _write_done(building, fingerprint, [])


def _fill(building: Path, source: Split, settings: PackSettings, processes: int, console: Console) -> None:
    """Runs the jobs that are not done yet, under a progress bar."""
    done = _read_json(building / "done.json")
    jobs = [
        FrameJob(source.folder, building, settings, row, source.frames[rows], source.block_order[rows])
        for row in range(0, len(source.frames), FRAMES_PER_JOB)
        if row not in done["rows"]
        for rows in [slice(row, row + FRAMES_PER_JOB)]
    ]
    total, to_do = len(source.frames), sum(len(job.frames) for job in jobs)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as bar:
        title = f"packing {source.folder.parent.name}/{source.folder.name}"
        task = bar.add_task(title, total=total, completed=total - to_do)
        for job in _run(jobs, min(len(jobs), processes)):
            done["rows"].append(job.first_row)
            _write_done(building, done["fingerprint"], done["rows"])
            bar.advance(task, len(job.frames))


def _run(jobs: list[FrameJob], processes: int) -> Iterator[FrameJob]:
    """Yields every job when it is done; in this process when one is enough."""
    if processes <= 1:
        yield from (job.run() for job in jobs)
        return
    # spawn: a fork would copy whatever threads and devices the caller has open
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context, initializer=_die_with_parent) as pool:
        futures = [pool.submit(job.run) for job in jobs]
        try:
            yield from (future.result() for future in as_completed(futures))
        finally:
            pool.shutdown(cancel_futures=True)  # after an error, start nothing more


def _die_with_parent() -> None:
    """Lets a worker end when the packing process is killed, which it would otherwise outlive for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _write_done(building: Path, fingerprint: str, rows: list[int]) -> None:
    """Notes which jobs are done, by their first rows."""
    temporary = building / "done.json.tmp"
    temporary.write_text(json.dumps({"fingerprint": fingerprint, "rows": rows}), encoding="utf-8")
    os.replace(temporary, building / "done.json")
