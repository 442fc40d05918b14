"""The index of a packed folder: what it holds, and the checksums of every block of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from calvin_eval.system.files import write_json
from roboflamingo.data.errors import DataError

FORMAT = 3
"""Raised when the layout of a packed folder changes, so that older ones are made again."""
INDEX = "index.json"


def _seal(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def write_sealed(path: Path, content: dict[str, Any]) -> None:
    """Writes a JSON file with a checksum of its content, atomically.

    Raises:
        OSError: the disk is full, or the folder cannot be written to. Names the file.
    """
    content = json.loads(json.dumps(content))  # keys and tuples as they will come back
    write_json(path, {"seal": _seal(content), **content})


def read_sealed(path: Path) -> dict[str, Any] | None:
    """The content of a file that `write_sealed` wrote; None where it is missing or damaged."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(content, dict) or content.pop("seal", None) != _seal(content):
        return None
    return content


def read_index(folder: Path) -> dict[str, Any]:
    """The index of a packed folder.

    Raises:
        DataError: it is missing or damaged.
    """
    index = read_sealed(folder / INDEX)
    if index is None or index.get("format") != FORMAT:
        raise DataError(f"{folder / INDEX} is missing, damaged or of another version; pack the data set again")
    return index


def arrays_as_json(arrays: Mapping[str, tuple[tuple[int, ...], type[np.generic]]]) -> dict[str, Any]:
    """Shapes and types for an index."""
    return {name: [list(shape), np.dtype(kind).name] for name, (shape, kind) in arrays.items()}


def arrays_of(index: Mapping[str, Any]) -> dict[str, tuple[tuple[int, ...], type[np.generic]]]:
    """Shape and type of each array that an index describes."""
    return {name: (tuple(shape), np.dtype(kind).type) for name, (shape, kind) in index["arrays"].items()}
