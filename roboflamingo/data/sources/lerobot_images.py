"""The images of a LeRobotDataset v3.0, frame by frame: each, or what is wrong with it, which ends nothing."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from PIL import Image

from roboflamingo.data.errors import DataError
from roboflamingo.data.lerobot.layout import Info
from roboflamingo.data.lerobot.tables import Episode
from roboflamingo.data.lerobot.video import read_frames


def row_name(info: Info, episode: Episode, frame: int) -> str:
    """What a row is called in messages."""
    path = info.data_file(episode.chunk, episode.file)
    return f"{path}, row {episode.row + frame} (frame {frame} of episode {episode.index})"


def video_images(info: Info, episode: Episode, key: str, times: Sequence[float]) -> Iterator[np.ndarray | DataError]:
    """The images of a camera at times of an episode, each or what is wrong with it."""
    part = episode.videos[key]
    path = info.video_file(key, part.chunk, part.file)
    done = 0
    while done < len(times):
        try:
            for image in read_frames(path, [part.start + time for time in times[done:]], info.fps):
                yield image
                done += 1
        except DataError as error:
            yield error
            done += 1  # later frames may be whole: the next key frame begins anew


def kept_images(
    info: Info, episode: Episode, column: Any, key: str, frames: Sequence[int]
) -> Iterator[np.ndarray | DataError]:
    """The images that a table holds, each or what is wrong with it."""
    for frame in frames:
        try:
            yield _decode(column[frame].as_py(), row_name(info, episode, frame), key)
        except DataError as error:
            yield error


def _decode(value: Any, where: str, key: str) -> np.ndarray:
    """An image file's bytes as (H, W, 3) uint8.

    Raises:
        DataError: there are none, or they are no image.
    """
    content = value.get("bytes") if isinstance(value, dict) else value
    if not content:
        raise DataError(f"{where} holds no image of {key}")
    try:
        with Image.open(io.BytesIO(content)) as picture:
            return np.asarray(picture.convert("RGB"))
    except Exception as error:  # damage makes Pillow raise almost anything
        raise DataError(f"{where}: {key} is no image: {error}") from error
