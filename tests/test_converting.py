"""CALVIN folders become LeRobot sets and LeRobot sets CALVIN folders; what is lost is said, and nothing else is."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from roboflamingo.cli.main import main
from roboflamingo.data.converting.convert import convert
from roboflamingo.data.errors import DataError
from roboflamingo.data.lerobot.files import WriteSettings
from roboflamingo.data.sources import open_source
from roboflamingo.data.sources.base import Frame, SourceOptions
from robots import Robot, write_robot
from synthetic import write_split

EXACT = WriteSettings(images="png", numbers="recorded")


def run(source: Path, target: Path, to: Any, settings: WriteSettings = EXACT, **more: Any) -> list[str]:
    console = Console(file=io.StringIO())
    return convert(source, target, to, settings, SourceOptions(), processes=1, console=console, **more)


@pytest.fixture(scope="module")
def calvin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Segments that share frames, in a scene whose blocks are listed in another order; scenes by frames."""
    folder = tmp_path_factory.mktemp("sets") / "calvin"
    write_split(folder / "training", lengths=(9, 5, 12), overlap=2)
    scenes: Any = {"calvin_scene_A": [100, 109], "calvin_scene_C": [110, 200]}
    np.save(folder / "training/scene_info.npy", np.array(scenes, dtype=object), allow_pickle=True)
    blocks = ("block_pink", "block_red", "block_blue")
    write_split(folder / "validation", lengths=(4, 6), first_frame=9000, seed=1, block_order=blocks)
    return folder


def annotations(split: Path) -> Any:
    return np.load(split / "lang_annotations/auto_lang_ann.npy", allow_pickle=True).item()


def test_a_calvin_folder_comes_back_as_it_was(calvin: Path, tmp_path: Path) -> None:
    lost = run(calvin, tmp_path / "lerobot", "lerobot")
    assert lost == [
        "calvin/training: 2 of 24 frames lie outside of every segment and are left out",
        "calvin/validation: 4 of 14 frames lie outside of every segment and are left out",
        "embeddings of sentences are left out",
    ]
    run(tmp_path / "lerobot", tmp_path / "back", "calvin")
    for split, count in (("training", 22), ("validation", 10)):
        files = sorted((tmp_path / "back" / split).glob("episode_*.npz"))
        assert len(files) == count
        for path in files:
            with np.load(path) as back, np.load(calvin / split / path.name) as before:
                assert set(back.files) == set(before.files)
                for key in before.files:
                    assert back[key].dtype == before[key].dtype, key
                    assert (back[key] == before[key]).all(), key
        there, here = annotations(tmp_path / "back" / split), annotations(calvin / split)
        assert there["info"]["indx"] == here["info"]["indx"]
        assert {key: there["language"][key] for key in ("ann", "task")} == {
            key: here["language"][key] for key in ("ann", "task")
        }
        for name in (".hydra/merged_config.yaml",):
            assert (tmp_path / "back" / split / name).read_bytes() == (calvin / split / name).read_bytes()
    spans = np.load(tmp_path / "back/validation/ep_start_end_ids.npy").tolist()
    assert spans == [[9000, 9003], [9006, 9011]]  # what lies between is in no segment
    assert open_source(tmp_path / "back").notes != ""


def test_the_lerobot_set_gives_what_the_folder_gives(calvin: Path, tmp_path: Path) -> None:
    """The same names, parts of actions and canonical order of blocks, so that a policy of one reads the other."""
    run(calvin, tmp_path / "lerobot", "lerobot")
    for split in ("training", "validation"):
        here, there = open_source(calvin, split), open_source(tmp_path / "lerobot", split)
        assert there.spec == here.spec
        assert [(s.stop - s.first, s.instruction) for s in there.samples] == [
            (s.stop - s.first, s.instruction) for s in here.samples
        ]
        names = (*here.spec.cameras, *here.spec.state, *here.spec.privileged, "actions")
        for mine, theirs in zip(here.samples, there.samples, strict=True):
            first = here.reader(np.arange(mine.first, mine.stop)).frames(names)
            second = there.reader(np.arange(theirs.first, theirs.stop)).frames(names)
            for a, b in zip(first, second, strict=True):
                assert isinstance(a, Frame) and isinstance(b, Frame)
                for name in names:
                    assert (a.arrays[name] == b.arrays[name]).all(), name


def test_videos_and_single_precision_are_the_default_and_said(calvin: Path, tmp_path: Path) -> None:
    lost = run(calvin, tmp_path / "lerobot", "lerobot", WriteSettings())
    assert lost[0].startswith("images are in videos of quality 18")
    assert lost[1].startswith("numbers are in float32")
    table = pq.read_schema(tmp_path / "lerobot/data/chunk-000/file-000.parquet")
    assert str(table.field("action").type) == "fixed_size_list<element: float>[7]"
    run(tmp_path / "lerobot", tmp_path / "back", "calvin")
    name = "training/episode_0000103.npz"
    with np.load(tmp_path / "back" / name) as back, np.load(calvin / name) as before:
        for key in ("rel_actions", "actions", "robot_obs", "scene_obs"):
            assert (back[key] == before[key].astype(np.float32)).all(), key
        assert back["rgb_static"].shape == before["rgb_static"].shape


def test_a_set_that_was_never_calvins_is_numbered_from_0_and_gets_absolute_actions(tmp_path: Path) -> None:
    """`actions` is the pose found at the next frame, and behind the last where the relative action leads."""
    write_split(tmp_path / "calvin/training", lengths=(4, 3))
    run(tmp_path / "calvin", tmp_path / "lerobot", "lerobot")
    (tmp_path / "lerobot/meta/calvin.json").unlink()
    path = next((tmp_path / "lerobot").glob("data/*/*.parquet"))
    table = pq.read_table(path, partitioning=None).drop_columns(["calvin.actions", "calvin.frame"])
    (tmp_path / "lerobot/meta/checksums.json").unlink()
    pq.write_table(table, path)
    info = tmp_path / "lerobot/meta/info.json"
    content = json.loads(info.read_text())
    content["features"].pop("calvin.actions")
    content["features"].pop("calvin.frame")
    info.write_text(json.dumps(content))
    run(tmp_path / "lerobot", tmp_path / "back", "calvin")
    split = tmp_path / "back/training"
    frames = [dict(np.load(split / f"episode_{number:07d}.npz")) for number in range(7)]
    assert np.load(split / "ep_start_end_ids.npy").tolist() == [[0, 3], [4, 6]]
    for number in (0, 1, 2, 4, 5):
        assert (frames[number]["actions"][:6] == frames[number + 1]["robot_obs"][:6]).all()
        assert frames[number]["actions"][6] == frames[number]["rel_actions"][6]
    last = frames[3]
    step = last["rel_actions"][:6] * ([0.02] * 3 + [0.05] * 3)
    assert last["actions"][:6] == pytest.approx(last["robot_obs"][:6] + step)
    assert [s.instruction for s in open_source(tmp_path / "back").samples] == [
        s.instruction for s in open_source(tmp_path / "calvin").samples
    ]
    statistics = (split / "statistics.yaml").read_text()
    assert "robot_obs" in statistics and "act_max_bound" in statistics


def test_a_robot_that_is_not_calvins_does_not_become_a_calvin_folder(tmp_path: Path) -> None:
    write_robot(tmp_path / "robot", Robot(lengths=(3,)), validation=0)
    with pytest.raises(DataError, match=r"looks through rgb_static, and .*robot has front, wrist"):
        run(tmp_path / "robot", tmp_path / "calvin", "calvin")
    assert [path.name for path in tmp_path.iterdir()] == ["robot"]


def test_a_damaged_frame_is_named_and_a_mended_one_continued(calvin: Path, tmp_path: Path) -> None:
    write_split(tmp_path / "calvin/training", lengths=(4, 3))
    frame = tmp_path / "calvin/training/episode_0000107.npz"
    content = frame.read_bytes()
    frame.write_bytes(content[:-30])
    settings = WriteSettings(images="png", frames_per_file=1)
    with pytest.raises(DataError, match=f"{frame}: .*cannot be read"):
        run(tmp_path / "calvin", tmp_path / "lerobot", "lerobot", settings)
    assert not (tmp_path / "lerobot").exists()
    frame.write_bytes(content)
    run(tmp_path / "calvin", tmp_path / "lerobot", "lerobot", settings)
    assert len(open_source(tmp_path / "lerobot")) == 7


def test_what_is_of_the_kind_already_or_in_the_way_is_refused(calvin: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is of the kind calvin already"):
        run(calvin, tmp_path / "other", "calvin")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").touch()
    with pytest.raises(DataError, match="full is there already"):
        run(calvin, tmp_path / "full", "lerobot")


def test_what_of_a_frame_is_left_out_is_named(tmp_path: Path) -> None:
    write_split(tmp_path / "calvin/training", lengths=(3,))
    for path in (tmp_path / "calvin/training").glob("episode_*.npz"):
        with np.load(path) as frame:
            arrays = dict(frame)
        np.savez_compressed(path, **arrays, depth_static=np.zeros((4, 4), np.float32))
    lost = run(tmp_path / "calvin", tmp_path / "lerobot", "lerobot")
    assert lost[-1] == "embeddings of sentences are left out, and depth_static of every frame"


def test_the_verb_converts_and_says_what_is_lost(
    calvin: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = tmp_path / "lerobot"
    main(["data", "convert", "--from", str(calvin), "--to", str(made), "--format", "lerobot", "--processes", "1"])
    said = capsys.readouterr().out.splitlines()
    assert said[0] == f"{made}: written"
    assert said[1].startswith("  images are in videos of quality 18")
    main(["data", "convert", "--from", str(made), "--to", f"{made}-back", "--format", "calvin", "--processes", "1"])
    assert open_source(Path(f"{made}-back")).kind == "calvin"
    for words, status in (
        (["--from", str(calvin), "--to", str(made), "--format", "lerobot"], 1),
        (["--from", str(calvin), "--to", str(made)], 2),
        (["--from", str(calvin), "--to", str(tmp_path / "x"), "--format", "lerobot", "--quality", "99"], 1),
    ):
        with pytest.raises(SystemExit) as stopped:
            main(["data", "convert", *words])
        assert stopped.value.code == status
    assert "settings.quality is 99" in capsys.readouterr().err
