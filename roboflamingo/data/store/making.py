"""What of a source is packed, and how the packed folder is described."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from roboflamingo.data.errors import DataError
from roboflamingo.data.sources.base import Sample, Source
from roboflamingo.data.store.arrays import Arrays, open_array
from roboflamingo.data.store.index import FORMAT, arrays_as_json
from roboflamingo.data.store.jobs import Filled
from roboflamingo.data.store.settings import PackSettings, spec_as_json


def key_of(source: Source, settings: PackSettings) -> str:
    """What annotations and settings come to."""
    return hashlib.sha256(json.dumps([FORMAT, source.notes, settings.layout()], sort_keys=True).encode()).hexdigest()


def samples_of(source: Source, settings: PackSettings) -> tuple[Sample, ...]:
    """The source's samples; none where nothing is said of its frames and every row is packed."""
    return source.samples if source.annotated or settings.rows == "annotated" else ()


def rows_of(source: Source, settings: PackSettings) -> np.ndarray:
    """(n,) int64, the rows that are packed, ascending.

    Raises:
        DataError: the source has no annotations where these decide. Says what is missing.
    """
    if settings.rows == "all":
        return np.arange(len(source))
    covered = np.zeros(len(source) + 1, np.int64)  # +1 where a sample begins, -1 where it ends
    samples = source.samples
    if not samples:
        raise DataError(f"{source.title} has no annotated segments; data.rows = all packs every frame")
    np.add.at(covered, [sample.first for sample in samples], 1)
    np.add.at(covered, [sample.stop for sample in samples], -1)
    return np.flatnonzero(np.cumsum(covered)[:-1] > 0)


def runs_of(rows: np.ndarray, episodes: np.ndarray) -> np.ndarray:
    """(R, 2) int64, packed rows, first and one after the last, that follow one another within one episode."""
    owner = np.searchsorted(episodes[:, 0], rows, "right") - 1
    inside = (owner >= 0) & (rows < episodes[np.maximum(owner, 0), 1])
    places = np.flatnonzero(inside)
    if not len(places):
        return np.zeros((0, 2), np.int64)
    cuts = np.flatnonzero((np.diff(rows[places]) != 1) | (np.diff(owner[places]) != 0)) + 1
    first, last = np.append(0, cuts), np.append(cuts, len(places)) - 1
    return np.stack([places[first], places[last] + 1], axis=1)


def index_of(
    source: Source,
    settings: PackSettings,
    rows: np.ndarray,
    arrays: Arrays,
    filled: Sequence[Filled],
    folder: Path,
) -> dict[str, Any]:
    """Describes a packed folder whose arrays are filled."""
    digests, filled = open_array(folder, "digests", *arrays["digests"]), sorted(filled, key=lambda job: job.first)
    samples = samples_of(source, settings)
    starts = np.searchsorted(rows, [sample.first for sample in samples]).tolist()
    return {
        "format": FORMAT,
        "key": key_of(source, settings),
        "content": hashlib.sha256(source.notes.encode() + digests.tobytes()).hexdigest(),
        "source": f"{source.path / source.split}",
        "images": settings.images,
        "spec": spec_as_json(source.spec),
        "frames": len(rows),
        "block": settings.block,
        "arrays": arrays_as_json(arrays),
        "cameras": list(settings.shots(source.spec)),
        "clipped": sum(job.clipped for job in filled),
        "beyond": max((job.beyond for job in filled), default=0.0),
        "damaged": [[row, message] for job in filled for row, message in job.damaged],
        "episodes": runs_of(rows, source.episodes).tolist(),
        "samples": [
            {
                "rows": [row, row + s.stop - s.first],
                "kind": s.kind,
                "task": s.task,
                "instruction": s.instruction,
                "bounds": s.bounds or [s.first, s.stop],
            }
            for row, s in zip(starts, samples, strict=True)
        ],
        "blocks": {name: {str(job.first): job.checksums[name] for job in filled} for name in arrays},
        "shards": {str(job.first): job.shard for job in filled if job.shard},
    }
