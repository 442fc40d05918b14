"""What we write is a LeRobotDataset v3.0; `benchmarks/lerobot_proof.py` shows the same with the package lerobot."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from roboflamingo.data.errors import DataError
from roboflamingo.data.lerobot.files import WriteSettings
from roboflamingo.data.lerobot.writing import write_dataset
from roboflamingo.data.sources import open_source
from roboflamingo.data.sources.base import Frame
from robots import FPS, FRONT, TASKS, WRIST, Robot, write_robot

NAMES = ("front", "wrist", "state", "actions")


def frames(folder: Path, split: str) -> list[Frame]:
    found = open_source(folder, split)
    read = list(found.reader(np.arange(len(found))).frames(NAMES))
    for frame in read:
        if isinstance(frame, DataError):
            raise frame
    return read  # type: ignore[return-value]


@pytest.fixture(scope="module", params=["video", "image"])
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Robot]:
    folder = tmp_path_factory.mktemp("sets") / request.param
    return folder, write_robot(folder, Robot(images=request.param), frames_per_file=8, quality=4)


def test_numbers_come_back_equal_and_images_too_unless_a_video_lies_between(written: tuple[Path, Robot]) -> None:
    folder, robot = written
    read, start = frames(folder, "training"), 0
    for number, length in enumerate(robot.lengths):
        if number == 2:  # the last is for validation
            read, start = frames(folder, "validation"), 0
        for step in range(length):
            frame, wanted = read[start + step].arrays, robot.frame(number, step)
            assert (frame["state"] == wanted["observation.state"]).all()
            assert (frame["actions"] == wanted["action"]).all()
            for camera in ("front", "wrist"):
                gap = np.abs(frame[camera].astype(int) - wanted[f"observation.images.{camera}"])
                # colours have half the resolution in a video, so edges differ; frames differ by more
                assert gap.max() == 0 if robot.images == "image" else gap.mean() < 6
        start += length


def test_what_it_is_says_itself(written: tuple[Path, Robot]) -> None:
    folder, _ = written
    spec = open_source(folder).spec
    assert (dict(spec.cameras), dict(spec.state)) == ({"front": FRONT, "wrist": WRIST}, {"state": 8})
    assert (spec.actions.size, spec.rate_hz) == (8, FPS)
    assert [s.instruction for s in open_source(folder).samples] == list(TASKS)
    info = json.loads((folder / "meta/info.json").read_text())
    assert info["codebase_version"] == "v3.0"
    assert (info["total_episodes"], info["total_frames"], info["total_tasks"]) == (3, 21, 2)
    assert info["splits"] == {"train": "0:2", "val": "2:3"}
    assert info["features"]["next.done"] == {"dtype": "bool", "shape": [1], "names": None}


def test_files_end_with_the_episode_that_passes_their_size(written: tuple[Path, Robot]) -> None:
    folder, robot = written
    tables = sorted(folder.glob("data/*/*.parquet"))
    assert [pq.read_metadata(path).num_rows for path in tables] == [12, 9]
    assert pq.read_metadata(tables[0]).num_row_groups == 2  # an episode each
    videos = 4 if robot.images == "video" else 0
    assert len(list(folder.glob("videos/*/*/*.mp4"))) == videos


def test_the_table_of_tasks_has_the_texts_for_an_index(written: tuple[Path, Robot]) -> None:
    """As pandas reads it, through which lerobot does."""
    table = pq.read_table(written[0] / "meta/tasks.parquet")
    assert table.to_pydict() == {"task_index": [0, 1], "task": list(TASKS)}
    assert json.loads(table.schema.metadata[b"pandas"])["index_columns"] == ["task"]


def test_statistics_are_those_of_the_frames(written: tuple[Path, Robot]) -> None:
    folder, robot = written
    found = json.loads((folder / "meta/stats.json").read_text())
    every = [robot.frame(number, step) for number, length in enumerate(robot.lengths) for step in range(length)]
    actions = np.stack([frame["action"] for frame in every]).astype(float)
    each = found["action"]
    assert each["count"] == [21]
    for name in ("min", "max", "mean", "std"):
        assert each[name] == pytest.approx(getattr(actions, name)(0), abs=1e-12), name
    assert np.all(np.array(each["q01"]) <= each["q50"]) and np.all(np.array(each["q50"]) <= each["q99"])
    image = found["observation.images.front"]
    assert np.shape(image["mean"]) == (3, 1, 1)
    pixels = np.stack([frame["observation.images.front"][::4, ::4] for frame in every]).reshape(-1, 3) / 255
    assert np.ravel(image["mean"]) == pytest.approx(pixels.mean(0), abs=1e-9)
    assert np.ravel(image["std"]) == pytest.approx(pixels.std(0), abs=1e-9)


def test_each_episode_begins_with_a_key_frame_and_says_where_it_lies(tmp_path: Path) -> None:
    import av

    write_robot(tmp_path / "set", validation=0, key_frame_every=100)
    rows = pq.read_table(tmp_path / "set/meta/episodes/chunk-000/file-000.parquet").to_pylist()
    key = "videos/observation.images.front"
    assert [row[f"{key}/from_timestamp"] for row in rows] == pytest.approx([0, 0.7, 1.2])
    assert [row[f"{key}/to_timestamp"] for row in rows] == pytest.approx([0.7, 1.2, 2.1])
    with av.open(str(tmp_path / "set" / key / "chunk-000/file-000.mp4")) as video:
        keys = [float(frame.time) for frame in video.decode(video=0) if frame.key_frame]
    assert keys == pytest.approx([0, 0.7, 1.2])


def test_odd_sizes_keep_their_colours(tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Odd(Robot):
        @property
        def features(self) -> Any:
            found = dict(super().features)
            found["observation.images.wrist"] = {**found["observation.images.wrist"], "shape": [31, 33, 3]}
            return found

        def frame(self, episode: int, frame: int) -> dict[str, np.ndarray]:
            found = super().frame(episode, frame)
            return found | {"observation.images.wrist": np.full((31, 33, 3), (200, 10, 90), np.uint8)}

    write_robot(tmp_path / "set", Odd(lengths=(3,)), validation=0)
    read = frames(tmp_path / "set", "training")
    assert np.abs(read[0].arrays["wrist"].astype(int) - (200, 10, 90)).max() <= 3


def test_whole_colours_are_nearer_and_said(tmp_path: Path) -> None:
    gaps = []
    for pix_fmt in ("yuv420p", "yuv444p"):
        robot = write_robot(tmp_path / pix_fmt, Robot(lengths=(4,)), validation=0, pix_fmt=pix_fmt, quality=4)
        info = json.loads((tmp_path / pix_fmt / "meta/info.json").read_text())
        assert info["features"]["observation.images.front"]["info"]["video.pix_fmt"] == pix_fmt
        read = frames(tmp_path / pix_fmt, "training")
        wanted = [robot.frame(0, step)["observation.images.front"] for step in range(4)]
        gaps.append(np.mean([np.abs(f.arrays["front"].astype(int) - w) for f, w in zip(read, wanted, strict=True)]))
    assert gaps[1] < gaps[0] / 2


class StoppedError(Exception):
    pass


def test_what_a_stopped_run_has_finished_is_kept_and_nothing_appears_before_the_end(tmp_path: Path) -> None:
    folder, robot = tmp_path / "set", Robot()
    once, told = tmp_path / "once", []
    write_robot(once, robot, frames_per_file=1)

    def stop(done: int, total: int) -> None:
        told.append((done, total))
        if done >= 12:
            raise StoppedError

    def write(on_progress: Any, content: str = "a robot") -> None:
        settings, splits = WriteSettings(frames_per_file=1), {"train": (0, 2), "val": (2, 3)}
        write_dataset(
            folder,
            robot,
            settings,
            content=content,
            splits=splits,
            robot="made up",
            processes=1,
            on_progress=on_progress,
        )

    with pytest.raises(StoppedError):
        write(stop)
    assert told == [(0, 21), (7, 21), (12, 21)]
    assert not folder.exists()
    kept = tmp_path / ".set.part/set/data/chunk-000/file-000.parquet"
    before = kept.stat().st_mtime_ns
    told.clear()
    write(lambda done, total: told.append((done, total)))
    assert told == [(12, 21), (21, 21)]
    assert (folder / "data/chunk-000/file-000.parquet").stat().st_mtime_ns == before
    assert {p.name for p in tmp_path.iterdir()} == {"set", "once"}
    files = sorted(p.relative_to(once) for p in once.rglob("*") if p.is_file())
    assert files == sorted(p.relative_to(folder) for p in folder.rglob("*") if p.is_file())
    for path in files:
        if path.suffix != ".mp4" and path.name != "checksums.json":  # x264 is not always the same to the bit
            assert (folder / path).read_bytes() == (once / path).read_bytes(), path
    for first, second in zip(frames(folder, "training"), frames(once, "training"), strict=True):
        for name in NAMES:
            gap = np.abs(first.arrays[name].astype(float) - second.arrays[name])
            assert gap.mean() < 6 if name in ("front", "wrist") else not gap.any(), name


def test_of_another_recording_nothing_is_kept(tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        if done:
            raise StoppedError

    told: list[int] = []
    for content, on_progress in (("one", stop), ("another", lambda done, total: told.append(done))):
        settings = WriteSettings(frames_per_file=1)
        try:
            write_dataset(
                tmp_path / "set", Robot(), settings, content=content, splits={}, processes=1, on_progress=on_progress
            )
        except StoppedError:
            continue
    assert told[0] == 0


def test_a_changed_file_of_ours_is_no_frame(tmp_path: Path) -> None:
    """A few changed bytes of a video may make another image that no decoder notices."""
    folder = tmp_path / "set"
    write_robot(folder, validation=0)
    path = next(folder.glob("videos/*front/*/*.mp4"))
    path.write_bytes(path.read_bytes() + bytes(8))
    found = open_source(folder)
    read = list(found.reader(np.arange(len(found))).frames(NAMES))
    assert all(isinstance(frame, DataError) and f"{path} is not as it was written" in str(frame) for frame in read)
    (folder / "meta/checksums.json").unlink()
    assert isinstance(next(open_source(folder).reader(np.arange(1)).frames(NAMES)), Frame)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"quality": 52}, r"settings\.quality is 52"),
        ({"key_frame_every": 0}, r"settings\.key_frame_every is 0"),
        ({"images": "gif"}, r"settings\.images is 'gif'; it must be one of video, png"),
    ],
)
def test_settings_that_cannot_be_are_named(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(DataError, match=words):
        WriteSettings(**settings)


def test_nothing_is_written_over(tmp_path: Path) -> None:
    write_robot(tmp_path / "set")
    with pytest.raises(DataError, match="set is there already"):
        write_robot(tmp_path / "set")
    with pytest.raises(DataError, match="there are no episodes"):
        write_robot(tmp_path / "none", Robot(lengths=()), validation=0)
