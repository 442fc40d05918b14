"""One split on its way into the cache: is there a packed copy of its content, and if not, make it.

Whose copy it is, content decides. Frames whose files were touched since they were packed (another size or time of
change, also of the file's state, which no tool sets back) are read and compared by digest. Of data sets of more than
`LOOKED_AT` rows only the folder's own times and the annotations are looked at; without `looked.json` in the packed
folder every file is looked at once more.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from calvin_eval.system.errors import UserError
from calvin_eval.system.files import append_line, read_lines, replace_folder
from calvin_eval.system.machine import cores
from calvin_eval.system.processes import run_jobs
from calvin_eval.system.sealing import opened, sealed
from roboflamingo.data.errors import DataError
from roboflamingo.data.sources.base import Source
from roboflamingo.data.store.arrays import (
    Arrays,
    create_arrays,
    damaged_blocks,
    needs_verifying,
    note_verified,
    open_array,
    size_of,
)
from roboflamingo.data.store.index import INDEX, arrays_of, read_sealed, write_sealed
from roboflamingo.data.store.jobs import Filled, FillJob
from roboflamingo.data.store.making import index_of, key_of, rows_of
from roboflamingo.data.store.settings import PackSettings
from roboflamingo.data.store.showing import bar_when_slow
from roboflamingo.data.store.stamps import identity, read_stamps, write_stamps
from roboflamingo.data.store.verifying import damaged_shards, shard_problem

DONE, STAMPS, LOOKED = "done.jsonl", "stamps.npy", "looked.json"
LOOKED_AT = 200_000
"""Rows up to which every frame's file is looked at whenever a packed copy is asked for."""


@dataclass
class Packing:
    """One split on its way into the cache.

    Attributes:
        source: the split.
        cache: the folder for packed folders.
        settings: what is taken of a frame.
        console: for progress and notes.
        name: of the packed folder; one of title, sizes and a digest where none is given.
        target: the packed folder when it is complete, building: until then.
        key: what annotations and settings come to; packed folders with another are another's.
    """

    source: Source
    cache: Path
    settings: PackSettings
    console: Console
    name: str | None = None

    def __post_init__(self) -> None:
        source, layout = self.source, self.settings.layout()
        where = os.path.relpath((source.path / source.split).resolve(), self.cache.resolve())  # kept if both move
        digest = hashlib.sha256(json.dumps([where, layout]).encode()).hexdigest()[:8]
        decoded = self.settings.images == "decoded"
        sizes = "_".join(map(str, self.settings.cameras.values())) if decoded else "compressed"
        name = self.name or re.sub(r"[^\w.-]+", "_", f"{source.title}_{sizes}_{digest}")
        self.target, self.building = self.cache / name, self.cache / f"{name}.building"
        self.key = key_of(source, self.settings)
        self._seen: tuple[int, ...] | None = None

    @cached_property
    def rows(self) -> np.ndarray:
        """(n,) int64, the rows of the source that are packed, ascending."""
        return rows_of(self.source, self.settings)

    @cached_property
    def arrays(self) -> Arrays:
        """Shape and type of each array."""
        return self.settings.arrays(self.source.spec, len(self.rows))

    @cached_property
    def stamps(self) -> np.ndarray:
        """(n, 3) int64, of the packed rows' files."""
        return self.source.stamps(self.rows)

    @property
    def size(self) -> int:
        """Bytes of the packed copy; of a compressed one, about."""
        return self.settings.size(self.source.spec, len(self.rows))

    @property
    def state(self) -> str:
        """What a killed packing must have begun with to be continued."""
        return hashlib.sha256(self.key.encode() + self.stamps.tobytes()).hexdigest()

    # --- is there one? ---------------------------------------------------------------------------

    def find(self) -> Path | None:
        """A complete packed folder of this split's content, this split's own first; None where there is none."""
        self._seen = identity(self.target / INDEX)
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
        text = f"{self.source.title} is packed again: {reason}"
        self.console.print(text, soft_wrap=True, markup=False, highlight=False)

    def _problem(self, folder: Path, index: dict[str, Any]) -> str | None:
        """What keeps a packed folder from being this split's, if anything."""
        try:
            if index["clipped"] and self.settings.options.out_of_range == "error":
                return "actions out of range were clipped, and data.out_of_range is error now"
            if index["damaged"] and self.settings.damaged == "error":
                return "damaged frames were left out, and data.damaged is error now"
            if (changed := self._changed_row(folder, index)) is not None:
                return f"{changed} has changed"
            arrays = arrays_of(index)
            if needs_verifying(folder, arrays):
                with bar_when_slow(f"checking {folder.name}", size_of(arrays), self.console) as advance:
                    for name, row in damaged_blocks(folder, arrays, index["blocks"], index["block"], advance):
                        return f"{folder / name}.npy is damaged in rows {row} to {row + index['block'] - 1}"
                note_verified(folder, arrays)
            return shard_problem(folder, index)
        except (DataError, OSError) as error:
            return str(error)

    def _changed_row(self, folder: Path, index: dict[str, Any]) -> str | None:
        """A row whose file is not what was packed. Only those that were touched since are read."""
        large = index["frames"] > LOOKED_AT
        if large and read_sealed(folder / LOOKED) == {"stamp": self.source.stamp()}:
            return None
        if index["frames"] != len(self.rows):
            return f"the number of frames ({index['frames']}, now {len(self.rows)})"
        stamps = read_stamps(folder / STAMPS, self.stamps.shape)
        suspects = np.flatnonzero((stamps != self.stamps).any(axis=1))
        if len(suspects):
            resized = stamps[suspects, 0] != self.stamps[suspects, 0]
            suspects = np.concatenate([suspects[resized], suspects[~resized]])  # those that tell soonest come first
            changed = self._first_changed(suspects, open_array(folder, "digests", *arrays_of(index)["digests"]))
            if changed is not None:
                return changed
        with suppress(OSError):  # a read-only cache compares them again the next time
            if len(suspects):
                write_stamps(folder / STAMPS, self.stamps)
            if large:
                write_sealed(folder / LOOKED, {"stamp": self.source.stamp()})
        return None

    def _first_changed(self, suspects: np.ndarray, digests: np.ndarray) -> str | None:
        """The first of these packed rows whose content has another digest."""
        pieces = [suspects[i : i + 16] for i in range(0, len(suspects), 16)]

        def changed(piece: np.ndarray) -> int | None:
            order = np.argsort(piece)
            found = list(self.source.reader(self.rows[piece[order]]).digests())
            pairs = zip(order, found, strict=True)
            wrong = [place for place, digest in pairs if (digest != digests[piece[place]]).any()]
            return int(piece[min(wrong)]) if wrong else None

        title = f"comparing {self.source.title}"
        with bar_when_slow(title, len(suspects), self.console) as advance, ThreadPoolExecutor(4 * cores()) as pool:
            try:
                for first in range(0, len(pieces), 16):
                    for row in pool.map(changed, pieces[first : first + 16]):
                        if row is not None:
                            return self.source.name(int(self.rows[row]))
                        advance(16)
            finally:
                pool.shutdown(cancel_futures=True)
        return None

    # --- make one --------------------------------------------------------------------------------

    def look(self) -> None:
        """Refuses what would be found out too late: missing frames, a first frame that cannot be packed.

        Raises:
            DataError: a frame is missing or damaged. Names it.
        """
        strict = self.settings.damaged == "error"
        missing = np.intersect1d(self.source.missing, self.rows)
        if strict and len(missing):
            for problem in self.source.reader(missing[:1]).frames(()):
                if isinstance(problem, DataError):
                    raise problem
        self.settings.check(self.source)
        for frame in self.source.reader(self.rows[:1]).frames(self.settings.names(self.source.spec)):
            if strict and isinstance(frame, DataError):
                raise frame

    def make(self, processes: int) -> None:
        """Packs, unless another process has done so while this one waited for the lock."""
        if identity(self.target / INDEX) != self._seen and self.find() == self.target:
            return
        filled = self._continued()
        if filled is None:
            shutil.rmtree(self.building, ignore_errors=True)
            self.building.mkdir()
            create_arrays(self.building, self.arrays)
            append_line(self.building / DONE, sealed({"state": self.state}))
            filled = []
        self._fill(filled, processes)
        write_stamps(self.building / STAMPS, self.stamps)
        if len(self.rows) > LOOKED_AT:
            write_sealed(self.building / LOOKED, {"stamp": self.source.stamp()})
        note_verified(self.building, self.arrays)
        index = index_of(self.source, self.settings, self.rows, self.arrays, filled, self.building)
        write_sealed(self.building / INDEX, index)
        (self.building / DONE).unlink()
        replace_folder(self.building, self.target)

    def _continued(self) -> list[Filled] | None:
        """What a killed packing has filled, as far as it is whole; None where there is nothing to continue."""
        lines = read_lines(self.building / DONE, mend=True, on_damage=lambda number, problem: None)
        held = []
        for line in lines:
            with suppress(UserError):  # a damaged line is a job that is done again
                held.append(opened(line, DONE))
        if not held or held[0] != {"state": self.state}:
            return None
        filled = {job.first: job for job in (Filled(**line) for line in held[1:])}
        if self.settings.options.out_of_range == "error":
            filled = {row: job for row, job in filled.items() if not job.clipped}
        if self.settings.damaged == "error":
            filled = {row: job for row, job in filled.items() if not job.damaged}
        whole = list(filled.values())
        try:
            blocks = {name: {str(job.first): job.checksums[name] for job in whole} for name in self.arrays}
            damaged = {row for _, row in damaged_blocks(self.building, self.arrays, blocks, self.settings.block)}
        except (DataError, KeyError):
            return None
        damaged |= damaged_shards(self.building, {job.first: job.shard for job in whole if job.shard})
        return [job for job in whole if job.first not in damaged]

    def _jobs(self, done: set[int]) -> Iterator[FillJob]:
        spec, block = self.source.spec, self.settings.block
        for first in range(0, len(self.rows), block):
            if first not in done:
                rows = self.rows[first : first + block]
                yield FillJob(
                    reader=self.source.reader(rows),
                    target=self.building,
                    arrays=self.arrays,
                    names=self.settings.names(spec),
                    shots=self.settings.shots(spec),
                    first=first,
                    rows=len(rows),
                    leave_out=self.settings.damaged == "leave_out",
                )

    def _fill(self, filled: list[Filled], processes: int) -> None:
        """Runs the jobs that are not done yet, under a progress bar."""
        total, done = len(self.rows), {job.first for job in filled}
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=self.console) as bar:
            task = bar.add_task(f"packing {self.source.title}", total=total, completed=sum(job.rows for job in filled))
            workers = min(-(-total // self.settings.block) - len(done), processes)
            jobs = self._jobs(done)
            results = run_jobs(FillJob.run, jobs, workers) if workers > 1 else (job.run() for job in jobs)
            for result in results:
                filled.append(result)
                append_line(self.building / DONE, sealed(asdict(result)))
                bar.advance(task, result.rows)
