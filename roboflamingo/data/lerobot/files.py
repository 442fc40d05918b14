"""One file's worth of episodes: a table of their frames, a video for each camera, and a table of the episodes.

The table of the episodes appears last, so that where it is, the rest is whole.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from PIL import Image

from calvin_eval.system.files import naming
from calvin_eval.system.ranges import AMOUNT, COUNT, Range, check_ranges
from roboflamingo.data.errors import DataError
from roboflamingo.data.lerobot import statistics
from roboflamingo.data.lerobot.layout import CHUNK, DATA, EPISODES, INDEX_FEATURES, VIDEOS, need
from roboflamingo.data.lerobot.video import VideoWriter


@dataclass(frozen=True)
class WriteSettings:
    """How a data set is written.

    Attributes:
        images: video: H.264, small and lossy. png: in the tables, larger by far and exact.
        quality: of videos: the constant rate factor, from 0 (best) to 51.
        pix_fmt: of videos: yuv420p has colours at half the resolution and plays everywhere; yuv444p has them whole,
            which `lerobot` reads and some players do not.
        key_frame_every: frames from one key frame of a video to the next; reading at random begins at one.
        numbers: float32, which LeRobot's policies take; recorded: as they were recorded, often float64.
        frames_per_file: at which a file ends with the episode that passes it; 0 for 5,000, or fewer of some 100 MB.
    """

    images: Literal["video", "png"] = "video"
    quality: int = 18
    pix_fmt: Literal["yuv420p", "yuv444p"] = "yuv420p"
    key_frame_every: int = 2
    numbers: Literal["float32", "recorded"] = "float32"
    frames_per_file: int = 0

    def __post_init__(self) -> None:
        check_ranges(self, "settings", DataError, quality=Range(0, 51), key_frame_every=COUNT, frames_per_file=AMOUNT)


@dataclass(frozen=True)
class EpisodePlan:
    """One episode to be written.

    Attributes:
        length: frames.
        task: text.
    """

    length: int
    task: str


class Recording(Protocol):
    """What is written.

    Attributes:
        fps: frames a second.
        features: name -> dtype, shape, names, besides those that number the frames. `video` and `image` are cameras.
        episodes: in order.
    """

    @property
    def fps(self) -> float: ...  # noqa: D102

    @property
    def features(self) -> Mapping[str, Mapping[str, Any]]: ...  # noqa: D102

    @property
    def episodes(self) -> Sequence[EpisodePlan]: ...  # noqa: D102

    def frames(self, episode: int) -> Iterator[Mapping[str, np.ndarray]]:
        """The values of every feature, frame by frame: images (H, W, 3) uint8, vectors (n,).

        Raises:
            DataError: a frame cannot be read. Names it.
        """

    def part(self, first: int, stop: int) -> Recording:
        """Episodes `first` to `stop` - 1 alone, counted from 0 again: small and picklable, for a worker process."""


@dataclass(frozen=True)
class FileJob:
    """Episodes that go into one file of each kind.

    Attributes:
        folder: of the data set.
        recording: these episodes alone.
        settings: how they are written.
        number: of the file.
        episode: number of its first episode, counted through the data set.
        frame: number of its first frame, likewise.
        tasks: number of each of its texts.
    """

    folder: Path
    recording: Recording
    settings: WriteSettings
    number: int
    episode: int
    frame: int
    tasks: Mapping[str, int]

    @property
    def place(self) -> dict[str, int]:
        """Chunk and file."""
        return {"chunk_index": self.number // CHUNK, "file_index": self.number % CHUNK}

    def run(self) -> dict[str, Any]:
        """Writes the files.

        Returns:
            `file`, `frames`, `statistics` of the file's episodes together, and `checksums`: SHA-256 by path.

        Raises:
            DataError: a frame cannot be read. Names it.
            OSError: the disk is full. Names the file.
        """
        parquet, features = need("pyarrow.parquet"), self.recording.features
        videos = [key for key, feature in features.items() if feature["dtype"] == "video"]
        data = _part(self.folder / DATA.format(**self.place))
        paths = {key: _part(self.folder / VIDEOS.format(video_key=key, **self.place)) for key in videos}
        rows, found, start = [], [], 0
        with ExitStack() as stack:
            with naming(data):
                table = stack.enter_context(parquet.ParquetWriter(data, _schema(features), write_page_checksum=True))
            writers: dict[str, VideoWriter] = {}
            for number in range(len(self.recording.episodes)):
                columns, images = self._read(number, paths, writers)
                length = self.recording.episodes[number].length
                columns |= self._numbering(number, start, length)
                with naming(data):
                    table.write_table(_table(features, columns))  # a row group an episode
                vectors = {key: value for key, value in columns.items() if isinstance(value, np.ndarray)}
                each = {key: statistics.of_rows(value) for key, value in vectors.items()} | images
                found.append(each)
                rows.append(self._row(number, start, length, videos) | _flat(each))
                start += length
            for key, writer in writers.items():
                with naming(paths[key]):
                    writer.close()
        episodes = _part(self.folder / EPISODES.format(**self.place))
        arrow = need("pyarrow")
        with naming(episodes):
            parquet.write_table(arrow.Table.from_pylist(rows), episodes, write_page_checksum=True)
        for path in (data, *paths.values(), episodes):
            _settle(path)
        together = {key: statistics.merge([each[key] for each in found]) for key in found[0]}
        return {
            "file": self.number,
            "frames": start,
            "statistics": statistics.plain(together),
            "checksums": dict(_checksum(self.folder, path) for path in (data, *paths.values())),
        }

    def _read(
        self, number: int, paths: Mapping[str, Path], writers: dict[str, VideoWriter]
    ) -> tuple[dict[str, Any], dict[str, statistics.Statistics]]:
        """Reads an episode's frames and writes its videos.

        Returns:
            Columns: vectors (N, n) as arrays, images as lists of bytes. Statistics of the cameras.
        """
        features, plan = self.recording.features, self.recording.episodes[number]
        columns: dict[str, list[Any]] = {key: [] for key, f in features.items() if f["dtype"] != "video"}
        cameras = [key for key, feature in features.items() if feature["dtype"] in ("video", "image")]
        seen: dict[str, list[np.ndarray]] = {key: [] for key in cameras}
        looked_at = statistics.sampled(plan.length)
        count = 0
        for frame in self.recording.frames(number):
            for key, value in frame.items():
                if key in seen and count in looked_at:
                    seen[key].append(value)
                if key in paths:
                    if key not in writers:
                        with naming(paths[key]):
                            writers[key] = self._writer(paths[key], value)
                    with naming(paths[key]):
                        writers[key].add(value, key=count == 0)
                else:
                    columns[key].append(_png(value) if key in seen else value)
            count += 1
        if count != plan.length:
            raise DataError(f"episode {self.episode + number} has {count} frames, not {plan.length} as was planned")
        stacked = {key: value if key in seen else np.stack(value) for key, value in columns.items()}
        return stacked, {key: statistics.of_images(images) for key, images in seen.items()}

    def _writer(self, path: Path, image: np.ndarray) -> VideoWriter:
        size, told = (image.shape[0], image.shape[1]), self.settings
        return VideoWriter(path, self.recording.fps, size, told.quality, told.key_frame_every, told.pix_fmt)

    def _numbering(self, number: int, start: int, length: int) -> dict[str, np.ndarray]:
        """The columns of every data set."""
        frames = np.arange(length)
        task = self.tasks[self.recording.episodes[number].task]
        numbering: dict[str, np.ndarray] = {
            "timestamp": (frames / self.recording.fps).astype(np.float32),
            "frame_index": frames,
            "episode_index": np.full(length, self.episode + number),
            "index": self.frame + start + frames,
            "task_index": np.full(length, task),
        }
        return {key: value[:, None] for key, value in numbering.items()}

    def _row(self, number: int, start: int, length: int, videos: Sequence[str]) -> dict[str, Any]:
        """What the table of the episodes says of one, besides its statistics."""
        row: dict[str, Any] = {
            "episode_index": self.episode + number,
            "tasks": [self.recording.episodes[number].task],
            "length": length,
            **{f"data/{what}": value for what, value in self.place.items()},
            "dataset_from_index": self.frame + start,
            "dataset_to_index": self.frame + start + length,
        }
        for key in videos:
            row |= {f"videos/{key}/{what}": value for what, value in self.place.items()}
            row[f"videos/{key}/from_timestamp"] = start / self.recording.fps
            row[f"videos/{key}/to_timestamp"] = (start + length) / self.recording.fps
        return row | {f"meta/episodes/{what}": value for what, value in self.place.items()}


def complete(folder: Path, number: int) -> bool:
    """Whether a file's worth of episodes lies there whole."""
    return (folder / EPISODES.format(chunk_index=number // CHUNK, file_index=number % CHUNK)).is_file()


def _part(path: Path) -> Path:
    """The name of a file under construction."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.with_name(f".{path.name}.part")


def _settle(part: Path) -> None:
    """Gives a finished file its name, safe on the disk."""
    path = part.with_name(part.name.removeprefix(".").removesuffix(".part"))
    with naming(path):
        with part.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(part, path)


def _checksum(folder: Path, part: Path) -> tuple[str, str]:
    """A finished file's path within the data set, and its SHA-256."""
    path = part.with_name(part.name.removeprefix(".").removesuffix(".part"))
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return path.relative_to(folder).as_posix(), digest.hexdigest()


def _png(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(file, "PNG", compress_level=6)
    return file.getvalue()


def _schema(features: Mapping[str, Mapping[str, Any]]) -> Any:
    """The types of the table's columns."""
    arrow = need("pyarrow")
    fields = []
    for key, feature in {**features, **INDEX_FEATURES}.items():
        if feature["dtype"] == "video":
            continue
        if feature["dtype"] == "image":
            kind = arrow.struct([("bytes", arrow.binary()), ("path", arrow.string())])
        else:
            kind = arrow.bool_() if feature["dtype"] == "bool" else arrow.from_numpy_dtype(feature["dtype"])
            if feature["shape"] != [1]:
                kind = arrow.list_(kind, feature["shape"][0])
        fields.append((key, kind))
    return arrow.schema(fields)


def _table(features: Mapping[str, Mapping[str, Any]], columns: Mapping[str, Any]) -> Any:
    """Columns as a pyarrow table: vectors (N, n), or lists of the bytes of images."""
    arrow = need("pyarrow")
    schema = _schema(features)
    arrays = []
    for field in schema:
        value = columns[field.name]
        if isinstance(value, list):
            arrays.append(arrow.array([{"bytes": content, "path": None} for content in value], field.type))
        elif arrow.types.is_fixed_size_list(field.type):
            flat = arrow.array(value.ravel(), field.type.value_type)
            arrays.append(arrow.FixedSizeListArray.from_arrays(flat, field.type.list_size))
        else:
            arrays.append(arrow.array(value[:, 0], field.type))
    return arrow.Table.from_arrays(arrays, schema=schema)


def _flat(found: Mapping[str, statistics.Statistics]) -> dict[str, Any]:
    """Statistics as columns of the table of the episodes."""
    return {f"stats/{key}/{name}": value.tolist() for key, each in found.items() for name, value in each.items()}
