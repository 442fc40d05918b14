"""One split on its way into the cache: is there a packed copy of its content, and if not, make it.

Whose copy it is, content decides. Frames whose files were touched since they were packed (another size or time of
change, also of the file's state, which no tool sets back) are read and compared by digest.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from calvin_eval.system.files import replace_folder, write_atomic
from calvin_eval.system.machine import cores
from calvin_eval.system.processes import run_jobs
from roboflamingo.data.errors import DataError
from roboflamingo.data.frames import PackSettings, file_digest
from roboflamingo.data.split import Split
from roboflamingo.data.store import (
    BLOCK,
    FORMAT,
    INDEX,
    STAMPS,
    Filled,
    FrameJob,
    create_arrays,
    damaged_blocks,
    needs_verifying,
    note_verified,
    open_array,
    read_sealed,
    stored_arrays,
    write_sealed,
)

DONE = "done.json"
PATIENCE_S = 5.0
"""Checks that take longer show how far they are."""


@dataclass
class Packing:
    """One split on its way into the cache.

    Attributes:
        source: the split.
        cache: the folder for packed folders.
        settings: what is taken from a frame.
        console: for progress and notes.
        target: the packed folder when it is complete, building: until then.
        arrays: shape and type of each.
        key: what annotations and settings come to; packed folders with another are another's.
    """

    source: Split
    cache: Path
    settings: PackSettings
    console: Console

    def __post_init__(self) -> None:
        where = os.path.relpath(self.source.folder.resolve(), self.cache.resolve())  # kept when both are moved
        layout = {name: value for name, value in asdict(self.settings).items() if name != "out_of_range"}
        digest = hashlib.sha256(json.dumps([where, layout]).encode()).hexdigest()[:8]
        split, sizes = self.source.folder, f"{self.settings.static_size}_{self.settings.gripper_size}"
        name = f"{split.parent.name}_{split.name}_{sizes}_{digest}"
        self.target, self.building = self.cache / name, self.cache / f"{name}.building"
        self.arrays = stored_arrays(self.settings, len(self.source.frames))
        self.key = hashlib.sha256(json.dumps([FORMAT, self.source.notes, layout], sort_keys=True).encode()).hexdigest()
        self._seen: tuple[int, ...] | None = None

    @property
    def size(self) -> int:
        """Bytes of all arrays."""
        return sum(int(np.prod(shape)) * np.dtype(kind).itemsize for shape, kind in self.arrays.values())

    @property
    def state(self) -> str:
        """What a killed packing must have begun with to be continued."""
        return hashlib.sha256(self.key.encode() + self.source.stamps.tobytes()).hexdigest()

    @property
    def title(self) -> str:
        """The split as users know it."""
        return f"{self.source.folder.parent.name}/{self.source.folder.name}"

    def find(self) -> Path | None:
        """A complete packed folder of this split's content, this split's own first; None where there is none."""
        self._seen = _identity(self.target / INDEX)
        others = sorted(path.parent for path in self.cache.glob(f"*/{INDEX}"))
        for folder in dict.fromkeys([self.target, *others]):
            index = read_sealed(folder / INDEX)
            if index is None or index.get("key") != self.key or folder == self.building:
                if folder == self.target and self._seen is not None:
                    self._say("annotations or settings have changed" if index else f"{folder / INDEX} is damaged")
                continue
            problem = self._problem(folder, index)
            if problem is None:
                return folder
            if folder == self.target:
                self._say(problem)
        return None

    def _say(self, reason: str) -> None:
        self.console.print(f"{self.title} is packed again: {reason}", soft_wrap=True, markup=False, highlight=False)

    def _problem(self, folder: Path, index: dict[str, Any]) -> str | None:
        """What keeps a packed folder from being this split's, if anything."""
        try:
            if index["clipped"] and self.settings.out_of_range == "error":
                return "relative actions beyond [-1, 1] were clipped, and data.out_of_range is error now"
            changed = self._changed_frame(folder)
            if changed is not None:
                return f"{changed} has changed"
            if needs_verifying(folder, self.arrays):
                with self._bar(f"checking {folder.name}", self.size) as advance:
                    for name, row in damaged_blocks(folder, self.arrays, index["blocks"], advance):
                        return f"{folder / name}.npy is damaged in rows {row} to {row + BLOCK - 1}"
                note_verified(folder, self.arrays)
        except (DataError, OSError) as error:
            return str(error)
        return None

    def _changed_frame(self, folder: Path) -> str | None:
        """A frame whose file is not what was packed. Only those that were touched since are read."""
        stamps = _read_stamps(folder / STAMPS, self.source.stamps.shape)
        suspects = np.flatnonzero((stamps != self.source.stamps).any(axis=1))
        if not len(suspects):
            return None
        resized = stamps[suspects, 0] != self.source.stamps[suspects, 0]
        suspects = np.concatenate([suspects[resized], suspects[~resized]])  # those that tell soonest come first
        digests = open_array(folder, "digests", *self.arrays["digests"])

        def same(row: int) -> bool:
            content = (self.source.folder / self.source.names[row]).read_bytes()
            return bool((file_digest(content) == digests[row]).all())

        title = f"comparing {self.title}"
        with self._bar(title, len(suspects)) as advance, ThreadPoolExecutor(4 * cores()) as pool:
            try:
                for first in range(0, len(suspects), BLOCK):
                    some = suspects[first : first + BLOCK].tolist()
                    for row, equal in zip(some, pool.map(same, some), strict=True):
                        if not equal:
                            return str(self.source.folder / self.source.names[row])
                    advance(len(some))
            finally:
                pool.shutdown(cancel_futures=True)
        with suppress(OSError):  # a read-only cache compares them again the next time
            _write_stamps(folder / STAMPS, self.source.stamps)
        return None

    def make(self, processes: int) -> None:
        """Packs, unless another process has done so while this one waited for the lock."""
        if _identity(self.target / INDEX) != self._seen and self.find() == self.target:
            return
        filled = self._continued()
        if filled is None:
            shutil.rmtree(self.building, ignore_errors=True)
            self.building.mkdir()
            create_arrays(self.building, self.arrays)
            filled = []
        self._fill(filled, processes)
        _write_stamps(self.building / STAMPS, self.source.stamps)
        note_verified(self.building, self.arrays)
        write_sealed(self.building / INDEX, self._index(filled))
        (self.building / DONE).unlink()
        replace_folder(self.building, self.target)

    def _continued(self) -> list[Filled] | None:
        """What a killed packing has filled, as far as it is whole; None where there is nothing to continue."""
        done = read_sealed(self.building / DONE)
        if done is None or done["state"] != self.state:
            return None
        filled = [Filled(**job) for job in done["filled"]]
        if self.settings.out_of_range == "error":
            filled = [job for job in filled if not job.clipped]
        try:
            damaged = {row for _, row in damaged_blocks(self.building, self.arrays, _blocks(filled))}
        except DataError:
            return None
        return [job for job in filled if job.first not in damaged]

    def _fill(self, filled: list[Filled], processes: int) -> None:
        """Runs the jobs that are not done yet, under a progress bar."""
        source, total = self.source, len(self.source.frames)
        done = {job.first for job in filled}
        jobs = [
            FrameJob(
                source.folder, self.building, self.settings, total, row, source.names[rows], source.block_order[rows]
            )
            for row in range(0, total, BLOCK)
            if row not in done
            for rows in [slice(row, row + BLOCK)]
        ]
        self._note(filled)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=self.console) as bar:
            task = bar.add_task(f"packing {self.title}", total=total, completed=sum(job.rows for job in filled))
            workers = min(len(jobs), processes)
            results = run_jobs(FrameJob.run, jobs, workers) if workers > 1 else (job.run() for job in jobs)
            for result in results:
                filled.append(result)
                self._note(filled)
                bar.advance(task, result.rows)

    def _note(self, filled: list[Filled]) -> None:
        write_sealed(self.building / DONE, {"state": self.state, "filled": [asdict(job) for job in filled]})

    def _index(self, filled: list[Filled]) -> dict[str, Any]:
        """Describes the packed folder; a segment's rows are its first row and the one after its last."""
        source = self.source
        digests = open_array(self.building, "digests", *self.arrays["digests"])
        starts = np.searchsorted(source.frames, [segment.start for segment in source.segments]).tolist()
        return {
            "format": FORMAT,
            "key": self.key,
            "content": hashlib.sha256(source.notes.encode() + digests.tobytes()).hexdigest(),
            "source": str(source.folder),
            "settings": asdict(self.settings),
            "frames": len(source.frames),
            "clipped": sum(job.clipped for job in filled),
            "beyond": max(job.beyond for job in filled),
            "segments": [
                {"rows": [row, row + s.stop - s.start], "task": s.task, "instruction": s.instruction}
                for row, s in zip(starts, source.segments, strict=True)
            ],
            "blocks": _blocks(filled),
        }

    @contextmanager
    def _bar(self, title: str, total: int) -> Iterator[Any]:
        """Gives what a progress bar is told; it shows itself when the wait gets long."""
        begin, done, task = time.monotonic(), 0, TaskID(-1)
        columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
        bar = Progress(*columns, console=self.console, transient=True)

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
            bar.stop()


def _blocks(filled: Sequence[Filled]) -> dict[str, dict[str, int]]:
    """Checksums by array and first row."""
    names = filled[0].checksums if filled else ()
    return {
        name: {str(job.first): job.checksums[name] for job in sorted(filled, key=lambda job: job.first)}
        for name in names
    }


def _identity(path: Path) -> tuple[int, ...] | None:
    """What changes when a file is replaced, be it by one of the same content; None where there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_ctime_ns


def _read_stamps(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """The stamps of a packed folder; -1 where the file is damaged, so that every frame is compared."""
    try:
        stamps = np.load(path, allow_pickle=False)
    except Exception:  # damage makes numpy raise almost anything
        return np.full(shape, -1)
    return stamps if stamps.shape == shape and stamps.dtype == np.int64 else np.full(shape, -1)


def _write_stamps(path: Path, stamps: np.ndarray) -> None:
    write_atomic(path, lambda file: np.save(file, stamps))
