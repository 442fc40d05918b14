"""Statistics of a LeRobotDataset: minimum, maximum, mean, spread and quantiles of every feature.

Vectors are counted whole. Of images at most `IMAGES` of an episode are, one pixel in `STRIDE` of their rows and
columns; their statistics are of colours from 0 to 1, shaped (3, 1, 1).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

QUANTILES = {"q01": 0.01, "q10": 0.1, "q50": 0.5, "q90": 0.9, "q99": 0.99}
IMAGES = 50
STRIDE = 4

Statistics = Mapping[str, np.ndarray]


def of_rows(rows: np.ndarray, count: int | None = None) -> dict[str, np.ndarray]:
    """The statistics of rows (N, n), each (n,), and how many rows there are, (1,).

    Args:
        rows: at least one.
        count: what is counted, where that is not rows.
    """
    values = rows.astype(np.float64)
    result = {"min": values.min(0), "max": values.max(0), "mean": values.mean(0), "std": values.std(0)}
    result["count"] = np.array([len(rows) if count is None else count])
    return result | dict(zip(QUANTILES, np.quantile(values, list(QUANTILES.values()), axis=0), strict=True))


def of_images(images: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    """The statistics of images (H, W, 3) uint8, each (3, 1, 1), and how many there are, (1,)."""
    pixels = np.concatenate([image[::STRIDE, ::STRIDE].reshape(-1, 3) for image in images])
    found = of_rows(pixels / 255, len(images))
    return {name: value if name == "count" else value.reshape(3, 1, 1) for name, value in found.items()}


def sampled(length: int) -> set[int]:
    """Which frames of an episode the statistics of its images look at."""
    return set(np.unique(np.linspace(0, length - 1, min(length, IMAGES)).round().astype(int)).tolist())


def merge(parts: Sequence[Statistics]) -> dict[str, np.ndarray]:
    """The statistics of several parts together.

    Mean and spread are exact. Quantiles of the whole cannot be told from those of its parts: the lower ones are the
    least, the upper ones the greatest of any part, so that what lies within is never called an outlier.
    """
    counts = np.array([part["count"][0] for part in parts], np.float64)
    shares = counts / counts.sum()

    def mean(values: list[np.ndarray]) -> np.ndarray:
        return np.tensordot(shares, np.stack(values), 1)

    centre = mean([part["mean"] for part in parts])
    square = mean([part["std"] ** 2 + (part["mean"] - centre) ** 2 for part in parts])
    result = {
        "min": np.min([part["min"] for part in parts], 0),
        "max": np.max([part["max"] for part in parts], 0),
        "mean": centre,
        "std": np.sqrt(square),
        "count": np.array([int(counts.sum())]),
    }
    for name, share in QUANTILES.items():
        result[name] = (np.min if share <= 0.5 else np.max)([part[name] for part in parts], 0)
    return result


def plain(statistics: Mapping[str, Statistics]) -> dict[str, Any]:
    """Statistics by feature as JSON holds them."""
    return {key: {name: value.tolist() for name, value in each.items()} for key, each in statistics.items()}
