"""Reads the tables of a LeRobotDataset v3.0: tasks, episodes, and the rows of an episode's frames."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from roboflamingo.data.errors import DataError
from roboflamingo.data.lerobot.layout import TASKS, Info, need


@dataclass(frozen=True)
class VideoPart:
    """Where an episode's frames lie in a camera's videos.

    Attributes:
        chunk: number of the chunk.
        file: number of the file within it.
        start: seconds into that file at which the episode begins.
        stop: seconds at which it ends.
    """

    chunk: int
    file: int
    start: float
    stop: float


@dataclass(frozen=True)
class Episode:
    """One episode.

    Attributes:
        index: its number.
        length: frames.
        first: number of its first frame, counted through the set.
        tasks: texts.
        chunk: of the table with its rows.
        file: likewise.
        row: of its first frame in that table.
        videos: where its frames lie, by camera.
    """

    index: int
    length: int
    first: int
    tasks: tuple[str, ...]
    chunk: int
    file: int
    row: int
    videos: Mapping[str, VideoPart]


def read_table(path: Path, columns: Sequence[str] | None = None) -> Any:
    """A parquet file as a pyarrow table.

    Raises:
        DataError: it is missing or damaged, or lacks a column. Names file and column.
    """
    file = open_parquet(path)
    if columns is not None:
        check_columns(path, file.schema_arrow.names, columns)
    try:
        return file.read(columns=columns)
    except Exception as error:  # damage makes pyarrow raise almost anything
        raise DataError(f"{path} cannot be read: {error}") from error


def open_parquet(path: Path) -> Any:
    """A parquet file, its rows not read yet.

    Raises:
        DataError: it is missing or damaged.
    """
    parquet = need("pyarrow.parquet")
    try:
        return parquet.ParquetFile(path, page_checksum_verification=True)  # of pages that have one
    except FileNotFoundError:
        raise DataError(f"{path} is missing") from None
    except Exception as error:  # damage makes pyarrow raise almost anything
        raise DataError(f"{path} cannot be read: {error}") from error


def check_columns(path: Path, there: Sequence[str], wanted: Sequence[str]) -> None:
    """Refuses a table that lacks a column.

    Raises:
        DataError: it does. Names file and column.
    """
    if missing := [name for name in wanted if name not in there]:
        named = ", ".join(name for name in there if not name.startswith("stats/"))
        raise DataError(f"{path} has no column {', '.join(missing)}; it holds {named}")


def read_tasks(info: Info) -> list[str]:
    """The task texts in the order of their numbers; none where no episode has a task.

    Raises:
        DataError: the table is damaged, or numbers are left out. Names the file.
    """
    path = info.folder / TASKS
    if not path.is_file() and not info.frames:
        return []
    table = read_table(path)
    # the texts are the index of a pandas table, which may or may not have kept its name
    name = next((name for name in ("task", "__index_level_0__") if name in table.column_names), None)
    if name is None or "task_index" not in table.column_names:
        raise DataError(f"{path} should have the columns task and task_index; it holds {', '.join(table.column_names)}")
    numbers, texts = table.column("task_index").to_pylist(), table.column(name).to_pylist()
    if sorted(numbers, key=str) != sorted(range(len(numbers)), key=str):
        raise DataError(f"{path}: task_index should count from 0 to {len(numbers) - 1}")
    if bad := [text for text in texts if not isinstance(text, str)]:
        raise DataError(f"{path}: the task {bad[0]!r} is no text")
    return [text for _, text in sorted(zip(numbers, texts, strict=True))]


def read_episodes(info: Info) -> list[Episode]:
    """All episodes in order.

    Raises:
        DataError: a table is missing or damaged, or contradicts `meta/info.json` or itself. Names file and episode.
    """
    folder = info.folder / "meta" / "episodes"
    paths = sorted(folder.glob("*/*.parquet"))
    if not paths and info.episodes:
        raise DataError(f"{folder} holds no table, though {info.folder / 'meta/info.json'} counts {info.episodes}")
    cameras = [key for key, feature in info.features.items() if feature.dtype == "video"]
    columns = ["episode_index", "length", "dataset_from_index", "tasks", "data/chunk_index", "data/file_index"]
    places = [f"videos/{key}/{what}" for key in cameras for what in ("chunk_index", "file_index")]
    times = [f"videos/{key}/{what}" for key in cameras for what in ("from_timestamp", "to_timestamp")]
    episodes: list[Episode] = []
    rows: dict[tuple[int, int], int] = {}
    for path in paths:
        table = read_table(path, [*columns, *places, *times])
        for row in table.to_pylist():
            try:
                episode = _episode(row, cameras, rows)
            except (ValueError, TypeError) as error:
                raise DataError(f"{path}: the row of episode {row['episode_index']} is damaged: {error}") from error
            if episode.index != len(episodes) or episode.first != (
                episodes[-1].first + episodes[-1].length if episodes else 0
            ):
                raise DataError(
                    f"{path}: episode {episode.index} begins at frame {episode.first}; expected here is episode "
                    f"{len(episodes)} right behind the one before"
                )
            episodes.append(episode)
    frames = sum(episode.length for episode in episodes)
    if (len(episodes), frames) != (info.episodes, info.frames):
        raise DataError(
            f"{folder} lists {len(episodes)} episodes with {frames} frames, and {info.folder / 'meta/info.json'} "
            f"counts {info.episodes} with {info.frames}"
        )
    return episodes


def _episode(row: Mapping[str, Any], cameras: Sequence[str], rows: dict[tuple[int, int], int]) -> Episode:
    """An episode from its row.

    Args:
        row: of the table.
        cameras: keys of the videos.
        rows: rows that earlier episodes take in each file; counted on.

    Raises:
        ValueError: a number cannot be.
    """
    videos = {}
    for key in cameras:
        get = {what: row[f"videos/{key}/{what}"] for what in ("chunk_index", "file_index")}
        start, stop = (float(row[f"videos/{key}/{what}_timestamp"]) for what in ("from", "to"))
        if not 0 <= start < stop < float("inf"):
            raise ValueError(f"{key} lies between {start} s and {stop} s")
        videos[key] = VideoPart(int(get["chunk_index"]), int(get["file_index"]), start, stop)
    place = int(row["data/chunk_index"]), int(row["data/file_index"])
    length = int(row["length"])
    if length < 1:
        raise ValueError(f"it has {length} frames")
    tasks = tuple(str(text) for text in row["tasks"] or ())
    episode = Episode(
        index=int(row["episode_index"]),
        length=length,
        first=int(row["dataset_from_index"]),
        tasks=tasks,
        chunk=place[0],
        file=place[1],
        row=rows.get(place, 0),
        videos=videos,
    )
    rows[place] = episode.row + length
    return episode


class RowReader:
    """Reads the rows of episodes, one row group of one file in memory at a time.

    Args:
        info: of the set.
        columns: which are read, besides those that number the frames.
    """

    def __init__(self, info: Info, columns: Sequence[str]) -> None:
        self.info = info
        self.columns = [*dict.fromkeys([*columns, "episode_index", "frame_index"])]
        self._path: Path | None = None
        self._file: Any = None
        self._group: tuple[int, Any] = (-1, None)

    def rows(self, episode: Episode) -> Any:
        """The rows of an episode, a pyarrow table.

        Raises:
            DataError: the file is missing or damaged, lacks a column, or holds other frames there. Names file and
                episode.
        """
        path = self.info.data_file(episode.chunk, episode.file)
        if path != self._path:
            file = open_parquet(path)
            check_columns(path, file.schema_arrow.names, self.columns)
            self._path, self._file, self._group = path, file, (-1, None)
        if episode.row + episode.length > self._file.metadata.num_rows:
            raise DataError(
                f"{path} has {self._file.metadata.num_rows} rows; episode {episode.index} should be the "
                f"{episode.length} from row {episode.row}"
            )
        arrow = need("pyarrow")
        table = arrow.concat_tables(self._parts(path, episode.row, episode.row + episode.length))
        numbers, frames = (table.column(name).to_numpy() for name in ("episode_index", "frame_index"))
        wrong = np.flatnonzero((numbers != episode.index) | (frames != np.arange(episode.length)))
        if len(wrong):
            place = int(wrong[0])
            raise DataError(
                f"{path}: row {episode.row + place} is frame {frames[place]} of episode {numbers[place]}; expected is "
                f"frame {place} of episode {episode.index}"
            )
        return table

    def _parts(self, path: Path, start: int, stop: int) -> list[Any]:
        """The rows from start up to stop, as slices of row groups."""
        parts, first = [], 0
        for number in range(self._file.metadata.num_row_groups):
            last = first + self._file.metadata.row_group(number).num_rows
            if first < stop and last > start:
                table = self._read_group(path, number)
                begin = max(start, first) - first
                parts.append(table.slice(begin, min(stop, last) - first - begin))
            first = last
        return parts

    def _read_group(self, path: Path, number: int) -> Any:
        if self._group[0] != number:
            try:
                self._group = number, self._file.read_row_group(number, columns=self.columns)
            except Exception as error:  # damage makes pyarrow raise almost anything
                raise DataError(f"{path}: row group {number} cannot be read: {error}") from error
        return self._group[1]


def numbers(path: Path, column: str, values: Any, size: int) -> np.ndarray:
    """A column of numbers or of vectors as an array (n, size) of the column's type.

    Args:
        path: for messages.
        column: its name.
        values: a pyarrow chunked array.
        size: numbers in a row.

    Raises:
        DataError: a row is empty, has another length, or is no numbers. Names file and column.
    """
    arrow = need("pyarrow")
    rows = len(values)
    if values.null_count:
        raise DataError(f"{path}: {values.null_count} rows have no {column}")
    flat = values.combine_chunks() if isinstance(values, arrow.ChunkedArray) else values
    if arrow.types.is_list(flat.type) or arrow.types.is_fixed_size_list(flat.type):
        lengths = need("pyarrow.compute").list_value_length(flat).to_numpy(zero_copy_only=False)
        if len(wrong := np.flatnonzero(lengths != size)):
            raise DataError(
                f"{path}: {column} of row {wrong[0]} has {lengths[wrong[0]]} numbers; `meta/info.json` says {size}"
            )
        flat = flat.flatten()
    elif size != 1:
        raise DataError(f"{path}: {column} is one {flat.type} a row; `meta/info.json` says {size} numbers")
    if flat.null_count:
        raise DataError(f"{path}: {column} holds {flat.null_count} empty numbers")
    array = flat.to_numpy(zero_copy_only=False)
    if array.dtype.kind not in "fiub":
        raise DataError(f"{path}: {column} is {flat.type}, not numbers")
    return array.reshape(rows, size)
