"""One recorded episode in a folder of its own, a *piece*: whole and safe on the disk, or not there.

A piece holds its frames and `piece.json`, which says how large each frame's file is and carries a checksum, so that
what a disk or a hand has damaged since is noticed and recorded again.

Frames are not waited for one by one: at some 3 ms each that would make collecting slower by half. The disk is asked
once, before the piece gets its name.
"""

from __future__ import annotations

import ctypes
import io
import os
import shutil
import sys
import zipfile
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from calvin_eval.demonstrations.frames import frame_arrays, standing_still
from calvin_eval.demonstrations.segments import Segment, kept
from calvin_eval.system.errors import UserError
from calvin_eval.system.files import naming, read_json, write_json
from calvin_eval.system.sealing import opened, sealed

NOTES = "piece.json"
SUMMED = ("robot_obs", "scene_obs", "actions")
"""Arrays whose sums a piece keeps, for the split's statistics."""


def write_piece(folder: Path, scene: str, segments: Sequence[Segment], maker: str) -> int:
    """Records what of one episode is kept, with its final observation, and returns how many frames that are.

    Args:
        folder: of the piece; what is there already is replaced.
        scene: where it happened.
        segments: tasks in a row; see `segments.kept`.
        maker: names the settings and code that made it.

    Raises:
        UserError: a frame lacks scene_obs or an image.
        OSError: the disk is full, or cannot be written to. Names the file.
    """
    recorded, short = kept(segments)
    frames = [
        (observation, label) for s in recorded for observation, label in zip(s.observations, s.labels, strict=False)
    ]
    if recorded:
        frames.append((recorded[-1].observations[-1], standing_still(recorded[-1].labels[-1])))
    starts = accumulate((len(segment.labels) for segment in recorded), initial=0)
    notes = [
        [start, len(s.labels), s.task, s.instruction] for start, s in zip(starts, recorded, strict=False) if s.annotated
    ]
    temporary = folder.with_suffix(".part")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        vectors: list[list[np.ndarray]] = []
        sizes: list[int] = []
        for number, (observation, label) in enumerate(frames):
            arrays = frame_arrays(observation, label)
            sizes.append(write_npz(frame_file(temporary, number), arrays))
            vectors.append([arrays[name] for name in SUMMED])
        piece = {"scene": scene, "frames": len(frames), "segments": notes, "short": short, "moments": _moments(vectors)}
        write_json(temporary / NOTES, sealed({**piece, "sizes": sizes, "maker": maker}))
        _sync(temporary, [frame_file(temporary, frame) for frame in range(len(frames))])
        shutil.rmtree(folder, ignore_errors=True)
        temporary.rename(folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return len(frames)


def read_piece(folder: Path) -> dict[str, Any] | None:
    """What `piece.json` says, or None where it is missing or damaged."""
    return read_sealed(folder / NOTES)


def frame_file(folder: Path, frame: int) -> Path:
    """Where a piece keeps a frame."""
    return folder / f"{frame:05d}.npz"


def has_size(path: Path, size: int) -> bool:
    """Whether a file is there and as large as it was written."""
    try:
        return path.stat().st_size == size
    except FileNotFoundError:
        return False


def read_sealed(path: Path) -> dict[str, Any] | None:
    """The value of a file that holds a `sealed` one; None where it is missing or damaged."""
    try:
        return opened(read_json(path, "a sealed value"), str(path))
    except UserError:
        return None


def write_npz(path: Path, arrays: Mapping[str, np.ndarray]) -> int:
    """Writes an .npz as np.savez_compressed does, but faster (deflate level 1); same arrays, same bytes.

    Returns:
        The file's size.

    Raises:
        OSError: the disk is full, or cannot be written to. Names the file.
    """
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, array in arrays.items():
            buffer = io.BytesIO()
            np.lib.format.write_array(buffer, np.ascontiguousarray(array), allow_pickle=False)
            entry = zipfile.ZipInfo(f"{name}.npy")  # dated 1980, so that equal frames are equal files
            archive.writestr(entry, buffer.getvalue(), zipfile.ZIP_DEFLATED, compresslevel=1)
    with naming(path):
        return path.write_bytes(content.getbuffer())


def _sync(folder: Path, files: Sequence[Path]) -> None:
    """Waits until a folder's files are on the disk."""
    with naming(folder):
        if sys.platform == "linux":  # one wait for all files
            handle = os.open(folder, os.O_RDONLY)
            try:
                if ctypes.CDLL(None, use_errno=True).syncfs(handle) != 0:
                    number = ctypes.get_errno()
                    raise OSError(number, os.strerror(number))
            finally:
                os.close(handle)
            return
        for file in files:
            with file.open("rb") as content:
                os.fsync(content.fileno())


def _moments(vectors: list[list[np.ndarray]]) -> dict[str, Any]:
    """Count, sums, sums of squares and bounds of the arrays `SUMMED`."""
    moments: dict[str, Any] = {"count": len(vectors)}
    for column, name in enumerate(SUMMED):
        if vectors:
            values = np.array([row[column] for row in vectors])
            moments[name] = {
                "sum": values.sum(0).tolist(),
                "square": (values**2).sum(0).tolist(),
                "min": values.min(0).tolist(),
                "max": values.max(0).tolist(),
            }
    return moments
