"""When files were changed: what tells which of them are worth a second look."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from calvin_eval.system.files import write_atomic


def identity(path: Path) -> tuple[int, ...] | None:
    """What changes when a file is replaced, be it by one of the same content; None where there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_ctime_ns


def read_stamps(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """The stamps of a packed folder; -2 where the file is damaged, so that every frame is compared."""
    try:
        stamps = np.load(path, allow_pickle=False)
    except Exception:  # damage makes numpy raise almost anything
        return np.full(shape, -2)
    return stamps if stamps.shape == shape and stamps.dtype == np.int64 else np.full(shape, -2)


def write_stamps(path: Path, stamps: np.ndarray) -> None:
    """Writes the stamps of a packed folder, atomically."""
    write_atomic(path, lambda file: np.save(file, stamps))
