"""CALVIN folders as a source: what a split (`training`, `validation`) holds, before any frame is read.

Quirks of the format (CALVIN SPEC 1.12) that are handled here: ids of frames are not contiguous; names have six or
seven digits, or others; annotations lie in `lang_annotations` or in any `lang_*`; the end of a segment is read as
exclusive or inclusive; a split may have no annotations, no scene_obs and no gripper camera.
"""

from __future__ import annotations

import hashlib
import os
import re
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import ClassVar

import numpy as np

from calvin_eval.calvin import BLOCKS, SCENE_OBS
from calvin_eval.specs import RobotSpec
from roboflamingo.data.errors import DataError
from roboflamingo.data.sources.base import SPLITS, Sample, Source, SourceOptions
from roboflamingo.data.sources.calvin.annotations import Segment, read_segments
from roboflamingo.data.sources.calvin.frames import VECTORS, CalvinReader, spec_of
from roboflamingo.data.sources.calvin.scenes import BlockOrder

FRAME = re.compile(r"(.*?)(\d+)\.npz")
"""A frame's file name: CALVIN's own loader takes any prefix and any number of digits."""
TRIED = 100
"""Frames that are tried for one that tells what frames hold."""


class CalvinSource(Source):
    """One split of a CALVIN data set. Rows are the frames of its folder by id, and those that annotations promise."""

    kind: ClassVar[str] = "calvin"

    def __init__(self, path: Path, split: str, options: SourceOptions | None = None) -> None:
        super().__init__(path, split, options or SourceOptions())
        self.folder = path / split
        if not self.folder.is_dir():
            raise DataError(f"{self.folder} is not a folder; a CALVIN data set has training/ and validation/")

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """See `Source`."""
        return any((path / split).is_dir() for split in SPLITS) and not (path / "meta" / "info.json").exists()

    @classmethod
    def splits(cls, path: Path) -> tuple[str, ...]:
        """See `Source`."""
        return tuple(split for split in SPLITS if (path / split).is_dir())

    # --- annotations -----------------------------------------------------------------------------

    @cached_property
    def segments(self) -> tuple[Segment, ...]:
        """What is annotated, in ids of frames."""
        inclusive = self.options.segment_ends == "inclusive"
        return tuple(read_segments(self.folder, self.options.language, inclusive=inclusive))

    @property
    def annotated(self) -> bool:
        """Whether there are annotations."""
        return (self.folder / self.options.language / "auto_lang_ann.npy").is_file()

    @cached_property
    def samples(self) -> tuple[Sample, ...]:
        """See `Source`."""
        rows = np.searchsorted(self.ids, [segment.start for segment in self.segments]).tolist()
        last = int(self.options.segment_ends == "inclusive")
        return tuple(
            Sample(row, row + s.stop - s.start, "language", s.instruction, s.task, (s.start, s.stop - last))
            for row, s in zip(rows, self.segments, strict=True)
        )

    @property
    def notes(self) -> str:
        """See `Source`. The folder of the language is no content: another of the same sentences is the same."""
        digest = hashlib.sha256(self.options.segment_ends.encode())
        names = (f"{self.options.language}/auto_lang_ann.npy", "scene_info.npy", ".hydra/merged_config.yaml")
        for name in (*names, "ep_start_end_ids.npy"):
            path = self.folder / name
            digest.update(f"{name.rsplit('/', 1)[-1]}:".encode() + (path.read_bytes() if path.is_file() else b"none"))
        return digest.hexdigest()

    # --- frames ----------------------------------------------------------------------------------

    @cached_property
    def _listing(self) -> tuple[str, np.ndarray, np.ndarray]:
        """The prefix of frames' names, the ids that are there, ascending, and how many digits each name has."""
        prefix, found = _frame_files(self.folder)
        ids = np.fromiter(found, np.int64, len(found))
        digits = np.fromiter(found.values(), np.int8, len(found))
        order = np.argsort(ids)
        return prefix, ids[order], digits[order]

    @cached_property
    def ids(self) -> np.ndarray:
        """(N,) int64, ids of the frames: those that are there, and those that annotations promise."""
        there = self._listing[1]
        if not self.annotated:
            return there
        promised = np.unique(np.concatenate([np.arange(s.start, s.stop) for s in self.segments]))
        return np.union1d(there, promised)

    @cached_property
    def missing(self) -> np.ndarray:
        """See `Source`."""
        return np.flatnonzero(~np.isin(self.ids, self._listing[1], assume_unique=True))

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def episodes(self) -> np.ndarray:
        """See `Source`; where no file tells, frames without a gap between them are one."""
        path = self.folder / "ep_start_end_ids.npy"
        if not path.is_file():
            cuts = np.flatnonzero(np.diff(self.ids) > 1) + 1
            return np.stack([np.append(0, cuts), np.append(cuts, len(self.ids))], axis=1)
        try:
            bounds = np.load(path, allow_pickle=False).astype(np.int64).reshape(-1, 2)
        except Exception as error:  # damage makes numpy raise almost anything
            raise DataError(f"{path} cannot be read: {error}") from error
        bounds = bounds[np.argsort(bounds[:, 0])]
        if (bounds[:, 1] < bounds[:, 0]).any() or (bounds[1:, 0] <= bounds[:-1, 1]).any():
            raise DataError(f"{path} holds episodes that overlap or have no frames")
        rows = np.stack([np.searchsorted(self.ids, bounds[:, 0]), np.searchsorted(self.ids, bounds[:, 1], "right")], 1)
        return rows[rows[:, 1] > rows[:, 0]]

    def file_name(self, row: int) -> str:
        """The name of a frame's file; of one that is missing, the name that it should have."""
        prefix, there, digits = self._listing
        frame = int(self.ids[row])
        place = min(int(np.searchsorted(there, frame)), len(there) - 1)
        return f"{prefix}{frame:0{int(digits[place])}d}.npz"

    def name(self, row: int) -> str:
        """See `Source`."""
        return str(self.folder / self.file_name(row))

    @cached_property
    def spec(self) -> RobotSpec:
        """See `Source`. A damaged frame is passed over for the next. The folder is not listed whole."""
        names = self._first_names()
        for name in names:
            try:
                return spec_of(self.folder / name, self.options.actions)
            except DataError:
                if name == names[-1]:
                    raise
        raise DataError(f"{self.folder} holds no frames; CALVIN's are episode_0000000.npz and so on")

    def _first_names(self) -> list[str]:
        """Names of some frames' files: those that the folder gives first, by name."""
        with os.scandir(self.folder) as entries:
            found = (entry.name for entry in entries if FRAME.fullmatch(entry.name) and not entry.name.startswith("."))
            names = sorted(islice(found, TRIED))
        return [name for name in names if name.startswith("episode_")] or names

    def stamps(self, rows: np.ndarray) -> np.ndarray:
        """See `Source`."""
        stamps = np.full((len(rows), 3), -1, np.int64)
        for place, row in enumerate(rows.tolist()):
            try:
                status = os.stat(self.folder / self.file_name(row))
            except FileNotFoundError:  # missing, or a link that leads nowhere
                continue
            stamps[place] = status.st_size, status.st_mtime_ns, status.st_ctime_ns
        return stamps

    def stamp(self) -> str:
        """See `Source`: the folder's times change when a file comes, goes or is replaced."""
        status = self.folder.stat()
        return f"{self.notes}:{status.st_mtime_ns}:{status.st_ctime_ns}"

    @cached_property
    def _block_order(self) -> BlockOrder:
        return BlockOrder(self.folder)

    def block_order(self, rows: np.ndarray) -> np.ndarray:
        """(n, 3) int64, the places of the red, blue and pink block among the three of each row's recorded scene_obs."""
        if SCENE_OBS not in self.spec.privileged:
            return np.tile(np.arange(len(BLOCKS)), (len(rows), 1))
        return self._block_order.of(self.ids[rows])

    def reader(self, rows: np.ndarray) -> CalvinReader:
        """See `Source`."""
        spec, gone = self.spec, set(rows[np.isin(rows, self.missing)].tolist())
        return CalvinReader(
            folder=self.folder,
            files=tuple(self.file_name(row) for row in rows.tolist()),
            block_order=self.block_order(rows),
            lengths={**spec.state, **spec.privileged, **VECTORS},
            actions=self.options.actions,
            out_of_range=self.options.out_of_range,
            missing={place: self._promise(row) for place, row in enumerate(rows.tolist()) if row in gone},
        )

    def _promise(self, row: int) -> str:
        """Which annotation needs a frame that is missing."""
        frame = int(self.ids[row])
        for number, segment in enumerate(self.segments):
            if segment.start <= frame < segment.stop:
                where = f"segment {number} of {self.options.language}/auto_lang_ann.npy ({segment.task})"
                return f"{self.name(row)} is missing, but {where} needs it"
        return f"{self.name(row)} is missing"


def _frame_files(folder: Path) -> tuple[str, dict[int, int]]:
    """The prefix of frames' names, and digits by id, from one listing. Of several kinds of names, "episode_" counts.

    Raises:
        DataError: two files have the same id, or there are none.
    """
    found: dict[str, dict[int, int]] = {}
    with os.scandir(folder) as entries:
        for entry in entries:
            name = entry.name
            if (match := FRAME.fullmatch(name)) and not name.startswith("."):
                prefix, number = match.groups()
                known = found.setdefault(prefix, {})
                frame = int(number)
                if known.setdefault(frame, len(number)) != len(number):
                    twice = f"{prefix}{frame:0{known[frame]}d}.npz and {name}"
                    raise DataError(f"{folder} holds frame {frame} twice, as {twice}")
    if len(found) > 1 and "episode_" not in found:
        raise DataError(f"{folder} holds frames of several names: {', '.join(sorted(found))}; CALVIN's begin episode_")
    prefix = "episode_" if "episode_" in found else next(iter(found), "")
    if not found:
        raise DataError(f"{folder} holds no frames; CALVIN's are episode_0000000.npz and so on")
    return prefix, found[prefix]
