"""The packed cache: it follows the content of a data set and not its path, and says what is wrong before long work."""

from __future__ import annotations

import io
import os
import resource
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from calvin_eval.system.errors import UserError
from calvin_eval.system.files import append_line
from calvin_eval.system.locks import folder_lock
from calvin_eval.system.sealing import sealed
from roboflamingo.data.errors import DataError
from roboflamingo.data.places import folder_at
from roboflamingo.data.store.arrays import create_arrays
from roboflamingo.data.store.building import Packing
from roboflamingo.data.store.index import read_index
from roboflamingo.data.store.packing import pack_all
from roboflamingo.data.store.settings import PackSettings
from roboflamingo.data.windows import Windows
from synthetic import pack_split, source_of, view, write_dataset, write_frame, write_split

SETTINGS = view(8, 6)


def packed(split: Path, cache: Path | None = None, settings: PackSettings = SETTINGS) -> Path:
    return pack_split(split, cache or split.parent / "packed", settings)


def told(split: Path, settings: PackSettings = SETTINGS) -> str:
    """What packing says."""
    file = io.StringIO()
    pack_split(split, split.parent / "packed", settings, console=Console(file=file, width=300))
    return file.getvalue()


@pytest.fixture
def split(tmp_path: Path) -> Path:
    write_split(tmp_path / "set" / "training", lengths=[4, 3])
    return tmp_path / "set" / "training"


def replace_frame(path: Path) -> None:
    """Another frame of the same size with the same time of change."""
    before = path.stat()
    write_frame(path, np.random.default_rng(7))
    content = path.read_bytes()
    if len(content) < before.st_size:  # a comment at the archive's end makes it as long
        missing = before.st_size - len(content)
        content = content[:-2] + missing.to_bytes(2, "little") + bytes(missing)
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


# --- identity --------------------------------------------------------------------------------------------


def test_a_moved_data_set_keeps_its_packed_copy(split: Path, tmp_path: Path) -> None:
    before = packed(split)
    written = (before / "index.json").stat().st_mtime_ns
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "set").rename(tmp_path / "elsewhere" / "renamed")
    after = packed(tmp_path / "elsewhere" / "renamed" / "training")
    assert after == tmp_path / "elsewhere" / "renamed" / "packed" / before.name or after.name == before.name
    assert (after / "index.json").stat().st_mtime_ns == written


def test_a_data_set_that_moved_away_from_its_cache_finds_it_again(split: Path, tmp_path: Path) -> None:
    before = packed(split, tmp_path / "cache")
    (tmp_path / "set").rename(tmp_path / "other")
    assert packed(tmp_path / "other" / "training", tmp_path / "cache") == before


def test_spelling_makes_no_other_data_set(split: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "cache"
    first = packed(split, cache)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "link").symlink_to(tmp_path / "set")
    for spelled in ("set/training/", "./set/../set/training", "~/set/training", str(tmp_path / "link" / "training")):
        assert packed(folder_at(spelled), cache) == first


def test_a_copy_is_another_folder_with_the_same_content(split: Path, tmp_path: Path) -> None:
    shutil.copytree(split, tmp_path / "copy" / "training", copy_function=shutil.copy)  # other times
    one, other = (Windows([packed(s)], window=1, chunk=1) for s in (split, tmp_path / "copy" / "training"))
    assert one.contents == other.contents
    assert one.contents == Windows([packed(split, settings=view(4, 4))], window=1, chunk=1).contents


@pytest.mark.parametrize("frame", [100, 107])
def test_a_frame_replaced_by_one_of_the_same_size_and_time_is_another(split: Path, frame: int) -> None:
    path = split / f"episode_{frame:07d}.npz"
    write_frame(path, np.random.default_rng(8))
    path.write_bytes(path.read_bytes()[:-2] + (200).to_bytes(2, "little") + bytes(200))  # room for the other
    before = read_index(packed(split))["content"]
    status = path.stat()
    replace_frame(path)
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (status.st_size, status.st_mtime_ns)
    assert f"set/training is packed again: {path} has changed" in told(split)
    assert read_index(packed(split))["content"] != before
    with np.load(path) as file:
        row = [100, 101, 102, 103, 106, 107, 108].index(frame)
        np.testing.assert_array_equal(
            np.load(packed(split) / "robot_obs.npy")[row], file["robot_obs"].astype(np.float32)
        )


def test_touched_frames_are_compared_once_and_not_packed_again(split: Path) -> None:
    folder = packed(split)
    written = (folder / "index.json").stat().st_mtime_ns
    for path in split.glob("*.npz"):
        path.touch()
    stamps = np.load(folder / "stamps.npy")
    assert "packed again" not in told(split)
    assert (folder / "index.json").stat().st_mtime_ns == written
    assert (np.load(folder / "stamps.npy") != stamps).any()


# --- locks, disks ----------------------------------------------------------------------------------------


def test_a_complete_cache_is_read_without_lock_or_write(split: Path) -> None:
    folder = packed(split)
    before = {path: path.stat().st_mtime_ns for path in split.parent.rglob("*")}
    with folder_lock(folder.parent, "another process"):
        assert packed(split) == folder
    before[folder.parent] = folder.parent.stat().st_mtime_ns  # the lock came and went
    assert {path: path.stat().st_mtime_ns for path in split.parent.rglob("*")} == before


def test_nothing_is_left_beside_the_packed_folder(split: Path) -> None:
    folder = packed(split)
    assert list(folder.parent.iterdir()) == [folder]
    assert sorted(path.suffix for path in folder.iterdir()) == [".json"] * 2 + [".npy"] * 7


def test_a_cache_that_cannot_be_written_to_names_the_key(split: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(
        DataError, match=r"file/cache: Not a directory; data is packed into .*: set data\.cache to a folder"
    ):
        packed(split, tmp_path / "file" / "cache")


def test_a_disk_that_is_too_small_is_an_error_that_names_file_and_key(split: Path, tmp_path: Path) -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[3]); from pathlib import Path; from synthetic import pack_split, view;"
        "pack_split(Path(sys.argv[1]), Path(sys.argv[2]), view(80, 40))"
    )

    def small() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))

    command = [sys.executable, "-c", code, split, tmp_path / "cache", Path(__file__).parent]
    done = subprocess.run(command, preexec_fn=small, capture_output=True, text=True)
    assert done.returncode == 1
    assert "DataError" in done.stderr.splitlines()[-1]
    assert "rgb_static.npy: File too large" in done.stderr
    assert "set data.cache to a folder" in done.stderr


def test_all_splits_are_looked_through_before_the_first_is_packed(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path / "set")
    splits = [source_of(folder / name) for name in ("training", "validation")]
    write_frame(splits[1].folder / "episode_0009000.npz", np.random.default_rng(0), robot_obs=np.zeros(3))
    with pytest.raises(DataError, match=r"validation/episode_0009000\.npz: robot_obs"):
        pack_all(splits, folder / "packed", SETTINGS, processes=1)
    assert not (folder / "packed").exists()
    (splits[1].folder / "lang_annotations" / "auto_lang_ann.npy").unlink()
    splits = [source_of(folder / name) for name in ("training", "validation")]
    with pytest.raises(DataError, match=r"validation/lang_annotations/auto_lang_ann\.npy is missing"):
        pack_all(splits, folder / "packed", SETTINGS, processes=1)
    assert not (folder / "packed").exists()


def test_rows_that_a_killed_packing_left_damaged_are_filled_again(split: Path) -> None:
    expected = packed(split, split.parent / "fresh")
    packing = Packing(source_of(split), split.parent / "packed", SETTINGS, Console(quiet=True))
    packing.building.mkdir(parents=True)
    create_arrays(packing.building, packing.arrays)
    (job,) = packing._jobs(set())
    for line in ({"state": packing.state}, asdict(job.run())):
        append_line(packing.building / "done.jsonl", sealed(line))
    array = np.load(packing.building / "actions.npy", mmap_mode="r+")
    array[2] = 0.5
    del array
    for path in packed(split).glob("*.npy"):
        assert path.read_bytes() == (expected / path.name).read_bytes()


def test_what_another_process_has_packed_meanwhile_is_not_packed_again(split: Path) -> None:
    folder = packed(split)
    (folder / "actions.npy").write_bytes(b"")
    mine, other = (Packing(source_of(split), folder.parent, SETTINGS, Console(quiet=True)) for _ in range(2))
    assert (mine.find(), other.find()) == (None, None)
    other.make(1)
    written = (folder / "index.json").stat()
    mine.make(1)
    assert (folder / "index.json").stat().st_ino == written.st_ino


def test_clipped_actions_are_counted_whenever_the_data_are_opened(split: Path) -> None:
    for frame, value in ((101, 50.0), (102, -2.0)):
        action = np.array([value, 0, 0, 0, 0, 0, 1])
        write_frame(split / f"episode_{frame:07d}.npz", np.random.default_rng(0), rel_actions=action)
    with pytest.raises(DataError, match=r"episode_0000101\.npz: rel_actions\[0\] is 50; .*data\.out_of_range to clip"):
        packed(split)
    clip = view(8, 6, out_of_range="clip")
    for _ in range(2):
        assert "2 of 7 frames have actions out of range (up to 50); they are clipped" in told(split, clip)
    assert np.load(packed(split, settings=clip) / "actions.npy")[1:3, 0].tolist() == [1, -1]
    with pytest.raises(DataError, match=r"episode_0000101\.npz: rel_actions\[0\] is 50"):
        packed(split)


def test_clipping_makes_no_other_copy_where_nothing_is_clipped(split: Path) -> None:
    assert packed(split, settings=view(8, 6, out_of_range="clip")) == packed(split)


def test_folders_of_different_settings_do_not_join(split: Path) -> None:
    folders = [packed(split), packed(split, settings=view(8, None))]
    with pytest.raises(UserError, match="were packed with different settings"):
        Windows(folders, window=1, chunk=1)
