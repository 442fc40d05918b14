"""LeRobotDatasets v3.0 are read exactly, and what is wrong with one is named."""

from __future__ import annotations

import json
import pickle
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from lerobot_by_hand import FPS, KEY, LENGTHS, SIZE, TASKS, numbers, pictures, write_by_hand, write_video

from calvin_eval.system.errors import MissingExtraError
from roboflamingo.data.errors import DataError
from roboflamingo.data.sources import open_source
from roboflamingo.data.sources.base import Frame, SourceOptions
from roboflamingo.data.sources.columns import Columns, PartColumns
from roboflamingo.data.sources.lerobot import LeRobotSource

DATA = Path("data/chunk-000/file-000.parquet")
VIDEO = Path("videos") / KEY / "chunk-000/file-000.mp4"
ALL = ("front", "state", "force", "actions")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_by_hand(tmp_path_factory.mktemp("sets") / "by-hand")


@pytest.fixture
def own(shared: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(shared, tmp_path / "set"))


def source(folder: Path, split: str = "training", **options: Any) -> LeRobotSource:
    found = open_source(folder, split, SourceOptions(**options))
    assert isinstance(found, LeRobotSource)
    return found


def read(found: LeRobotSource, names: tuple[str, ...] = ALL) -> list[Frame | DataError]:
    return list(found.reader(np.arange(len(found))).frames(names))


def stacked(frames: list[Any], name: str) -> np.ndarray:
    return np.stack([frame.arrays[name] for frame in frames])


def change_info(folder: Path, **values: Any) -> None:
    path = folder / "meta" / "info.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def change_table(path: Path, **columns: Any) -> None:
    """Puts other columns into a table; None takes one away."""
    table = pq.read_table(path, partitioning=None)
    for name, column in columns.items():
        table = table.drop_columns([name])
        if column is not None:
            table = table.append_column(name, pa.array(column))
    pq.write_table(table, path)


# --- what is read ----------------------------------------------------------------------------------


def test_frames_and_numbers_are_those_of_their_rows(shared: Path) -> None:
    frames = read(source(shared))
    for name, key in {"state": "observation.state", "force": "observation.force", "actions": "action"}.items():
        assert (stacked(frames, name) == numbers()[key].astype(np.float32)).all()
    # greys pass the video's colours within rounding; frames differ by 16
    assert np.abs(stacked(frames, "front").astype(int) - pictures()).max() <= 3


def test_cameras_states_and_rate_have_plain_names_and_what_no_policy_reads_is_left_aside(shared: Path) -> None:
    spec = source(shared).spec
    assert dict(spec.cameras) == {"front": SIZE}
    assert dict(spec.state) == {"state": 8, "force": 1}
    assert spec.rate_hz == FPS
    assert [(part.name, part.kind, part.size) for part in spec.actions.parts] == [("action", "continuous", 8)]


def test_a_task_that_changes_within_an_episode_makes_two_samples(shared: Path) -> None:
    found = source(shared)
    assert found.episodes.tolist() == [[0, 6], [6, 15]]
    assert [(s.first, s.stop, s.instruction) for s in found.samples] == [
        (0, 6, TASKS[0]),
        (6, 10, TASKS[0]),
        (10, 15, TASKS[1]),
    ]


def test_splits_are_those_that_the_set_names(shared: Path, tmp_path: Path) -> None:
    assert LeRobotSource.splits(shared) == ("training",)
    named = write_by_hand(tmp_path / "named", splits={"train": "0:1", "val": "1:2"})
    assert LeRobotSource.splits(named) == ("training", "validation")
    held_out = source(named, "validation")
    assert len(source(named)) == LENGTHS[0]
    assert len(held_out) == LENGTHS[1]
    assert held_out.samples[0].first == 0
    frames = read(held_out)
    assert (stacked(frames, "state") == numbers()["observation.state"][LENGTHS[0] :]).all()
    assert np.abs(stacked(frames, "front").astype(int) - pictures()[LENGTHS[0] :]).max() <= 3


def test_any_rows_are_read_by_a_reader_that_was_sent_elsewhere(shared: Path) -> None:
    rows = np.array([1, 4, 5, 6, 13])
    reader = pickle.loads(pickle.dumps(source(shared).reader(rows)))
    frames = list(reader.frames(ALL))
    assert (stacked(frames, "actions") == numbers()["action"][rows]).all()
    assert np.abs(stacked(frames, "front").astype(int) - pictures()[rows]).max() <= 3


def test_digests_belong_to_content(shared: Path, own: Path) -> None:
    here, there = read(source(shared)), read(source(own), ("state",))
    digests = [frame.digest.tobytes() for frame in here]  # type: ignore[union-attr]
    assert len(set(digests)) == len(digests)
    assert digests == [frame.digest.tobytes() for frame in there]  # type: ignore[union-attr]
    reader = source(own).reader(np.arange(sum(LENGTHS)))
    assert digests == [digest.tobytes() for digest in reader.digests()]
    write_video(own / VIDEO, pictures()[::-1])
    changed = [digest.tobytes() for digest in source(own).reader(np.arange(sum(LENGTHS))).digests()]
    assert not set(changed) & set(digests)


def test_stamps_change_with_the_files(own: Path) -> None:
    before = source(own)
    rows = np.arange(len(before))
    stamps, stamp, notes = before.stamps(rows), before.stamp(), before.notes
    write_video(own / VIDEO, pictures()[::-1])
    after = source(own)
    assert (after.stamps(rows) != stamps).any(axis=1).all()
    assert after.stamp() != stamp
    assert after.notes == notes  # no frame's content is in it
    change_info(own, fps=FPS + 1)
    assert source(own).notes != notes


def test_a_row_says_where_it_stands(shared: Path) -> None:
    assert source(shared).name(7) == f"{shared / DATA}, row 7 (frame 1 of episode 1)"


# --- parts of actions, and states -----------------------------------------------------------------


def test_columns_make_parts_of_an_action_and_states_of_their_own(shared: Path) -> None:
    columns = Columns(
        actions={
            "arm": PartColumns(tuple(range(7)), units=("rad",) * 7),
            "gripper": PartColumns(("gripper",), "binary", threshold=-5.0),
        },
        states={"joints": [str(n) for n in range(7)], "hand": ["gripper", "force.0"]},
    )
    found = source(shared, columns=columns)
    assert [(part.name, part.kind, part.size) for part in found.spec.actions.parts] == [
        ("arm", "continuous", 7),
        ("gripper", "binary", 1),
    ]
    assert dict(found.spec.state) == {"joints": 7, "hand": 2}
    frames = read(found, ("joints", "hand", "actions"))
    recorded = numbers()
    assert (stacked(frames, "actions")[:, 7] == np.where(recorded["action"][:, 7] > -5, 1, -1)).all()
    assert (stacked(frames, "joints") == recorded["observation.state"][:, :7]).all()
    hand = np.stack([recorded["observation.state"][:, 7], recorded["observation.force"][:, 0]], 1)
    assert (stacked(frames, "hand") == hand.astype(np.float32)).all()


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        (Columns(actions={"arm": PartColumns((9,))}), "action of .* has no column 9; it has 8, .*joint_0"),
        (Columns(actions={"arm": PartColumns(("wheel",))}), "no column 'wheel'"),
        (Columns(states={"hand": ["torque.0"]}), "no column 'torque.0'"),
        (Columns(states={"hand": []}), "hand names no columns"),
        (Columns(actions={"two": PartColumns((0, 1), "binary")}), "two: a binary part is one number"),
    ],
)
def test_columns_that_are_not_there_are_named(shared: Path, columns: Columns, words: str) -> None:
    with pytest.raises(DataError, match=words):
        source(shared, columns=columns)


def test_numbers_beyond_a_bound_are_an_error_or_clipped(shared: Path) -> None:
    columns = Columns(actions={"arm": PartColumns(tuple(range(8)), low=-10.0, high=10.0)})
    last = read(source(shared, columns=columns), ("actions",))[-1]
    assert isinstance(last, DataError)
    assert "action[0] is -14" in str(last)
    clipped = read(source(shared, columns=columns, out_of_range="clip"), ("actions",))[-1]
    assert isinstance(clipped, Frame)
    assert clipped.arrays["actions"][0] == -10
    assert clipped.beyond == 14


# --- what is wrong --------------------------------------------------------------------------------


def test_a_video_that_is_missing_is_named_and_ends_nothing_else(own: Path) -> None:
    (own / VIDEO).unlink()
    found = LeRobotSource(own, "training", SourceOptions())
    errors = read(found)
    assert len(errors) == len(found)
    assert all(isinstance(error, DataError) and str(own / VIDEO) in str(error) for error in errors)
    assert all(isinstance(frame, Frame) for frame in read(found, ("state", "actions")))
    with pytest.raises(DataError, match=r"file-000\.mp4 is missing"):
        _ = found.spec


def test_a_video_that_is_cut_off_is_named(own: Path) -> None:
    content = (own / VIDEO).read_bytes()
    (own / VIDEO).write_bytes(content[: len(content) // 2])
    errors = read(source(own))
    assert all(isinstance(error, DataError) and str(own / VIDEO) in str(error) for error in errors)


def test_frames_that_a_video_lacks_are_named_and_the_others_are_read(own: Path) -> None:
    write_video(own / VIDEO, pictures()[:12])
    frames = read(source(own))
    assert [isinstance(frame, Frame) for frame in frames] == [True] * 12 + [False] * 3
    assert "has no frame at 0.6000 s" in str(frames[12])
    assert np.abs(stacked(frames[:12], "front").astype(int) - pictures()[:12]).max() <= 3


def test_a_damaged_video_gives_no_frame_that_is_painted_over(own: Path) -> None:
    noisy = np.random.default_rng(0).integers(0, 256, pictures().shape, np.uint8)
    write_video(own / VIDEO, noisy)
    whole = stacked(read(source(own)), "front")
    content = bytearray((own / VIDEO).read_bytes())
    place = content.index(b"mdat") + 4 + (len(content) - content.index(b"mdat")) // 2
    content[place : place + 4000] = bytes(4000)
    (own / VIDEO).write_bytes(bytes(content))
    frames = read(source(own))
    assert any(isinstance(frame, DataError) for frame in frames)
    for frame, image in zip(frames, whole, strict=True):
        if isinstance(frame, Frame):
            assert np.abs(frame.arrays["front"].astype(int) - image).mean() < 5


def test_a_video_at_another_rate_is_noticed(own: Path) -> None:
    write_video(own / VIDEO, pictures(), fps=FPS + 5)
    frames = read(source(own))
    assert any(isinstance(frame, DataError) for frame in frames)
    found = [(row, frame) for row, frame in enumerate(frames) if isinstance(frame, Frame)]
    for row, frame in found:  # those that happen to stand at the right time
        assert abs(row / FPS - round(row / FPS * (FPS + 5)) / (FPS + 5)) <= 0.25 / FPS, frame


def test_an_episode_with_more_or_fewer_video_frames_than_rows_is_named(own: Path) -> None:
    path = own / "meta/episodes/chunk-000/file-000.parquet"
    change_table(path, **{f"videos/{KEY}/to_timestamp": [0.3, 1.0]})
    frames = read(source(own))
    assert [isinstance(frame, Frame) for frame in frames] == [True] * 6 + [False] * 9
    assert f"episode 1 has 9 rows, and {KEY} 14 frames" in str(frames[-1])


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"action": None}, "has no column action"),
        ({"frame_index": [0] * 15}, "row 1 is frame 0 of episode 0; expected is frame 1"),
        ({"episode_index": [0] * 15}, "row 6 is frame 0 of episode 0; expected is frame 0 of episode 1"),
        ({"timestamp": [0.0] * 15}, "frame 1 of episode 0 has the timestamp 0.0000; .* it should be 0.0500"),
        ({"action": [[0.0] * 7] * 15}, "action of row 0 has 7 numbers; .* says 8"),
        ({"action": [None] + [[0.0] * 8] * 14}, "1 rows have no action"),
        ({"action": [["a"] * 8] * 15}, "action is .*, not numbers"),
    ],
)
def test_tables_that_do_not_fit_are_named(own: Path, columns: dict[str, Any], words: str) -> None:
    change_table(own / DATA, **columns)
    frames = read(source(own))
    errors = [frame for frame in frames if isinstance(frame, DataError)]
    assert errors
    with pytest.raises(DataError, match=words):
        raise errors[0]
    assert str(own / DATA) in str(errors[0])


def test_a_number_that_is_not_finite_is_named(own: Path) -> None:
    actions = numbers()["action"].tolist()
    actions[3][2] = float("nan")
    change_table(own / DATA, action=actions)
    frames = read(source(own))
    assert [row for row, frame in enumerate(frames) if isinstance(frame, DataError)] == [3]
    assert "row 3 (frame 3 of episode 0): action" in str(frames[3])


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"codebase_version": "v2.1"}, "codebase_version is v2.1; v3.0 is read"),
        ({"fps": 0}, "fps 0.0"),
        ({"fps": None}, "fps is missing or damaged"),
        ({"total_frames": 16}, "lists 2 episodes with 15 frames, and .* counts 2 with 16"),
        ({"features": {"action": {"dtype": "float32"}}}, "features is missing or damaged"),
        ({"splits": {"train": "0:7"}}, "splits is missing or damaged: .*0:7 is outside of 2 episodes"),
        ({"data_path": "../{chunk_index}{file_index}"}, "must stay within the data set"),
    ],
)
def test_a_description_that_cannot_be_is_named(own: Path, values: dict[str, Any], words: str) -> None:
    change_info(own, **values)
    with pytest.raises(DataError, match=words):
        source(own)


def test_a_set_without_actions_is_named(own: Path) -> None:
    features = json.loads((own / "meta/info.json").read_text())["features"]
    features.pop("action")
    change_info(own, features=features)
    with pytest.raises(DataError, match=r"has no feature action of numbers; it has .*observation\.state"):
        source(own)


@pytest.mark.parametrize("name", ["meta/tasks.parquet", "meta/episodes/chunk-000/file-000.parquet"])
def test_a_damaged_table_is_named(own: Path, name: str) -> None:
    content = (own / name).read_bytes()
    (own / name).write_bytes(content[:-20])
    with pytest.raises(DataError, match=f"{name} cannot be read"):
        source(own)


def test_a_damaged_table_of_frames_is_named(own: Path) -> None:
    (own / DATA).write_bytes(b"PAR1" + bytes(100))
    errors = read(source(own))
    assert all(isinstance(error, DataError) and str(own / DATA) in str(error) for error in errors)


@pytest.mark.parametrize("module", ["pyarrow.parquet", "av"])
def test_a_missing_library_is_named_with_the_command_that_brings_it(
    shared: Path, module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=r"pip install 'roboflamingo\[lerobot\]'"):
        _ = source(shared).spec
