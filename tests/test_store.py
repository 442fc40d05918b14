"""The packed store: images compressed at their recorded size, rows that cannot be read, folders that stand alone."""

from __future__ import annotations

import io
import pickle
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw
from rich.console import Console
from torch.utils.data import DataLoader

from calvin_eval.system.errors import UserError
from calvin_eval.system.files import append_line
from calvin_eval.system.sealing import sealed
from roboflamingo.data.images import resize_image
from roboflamingo.data.places import pack_or_find, splits_at
from roboflamingo.data.samples import sample_table
from roboflamingo.data.sources import open_source
from roboflamingo.data.store import building, packing
from roboflamingo.data.store.arrays import create_arrays
from roboflamingo.data.store.images import QUALITY, decode, encode
from roboflamingo.data.store.index import read_index
from roboflamingo.data.store.making import runs_of
from roboflamingo.data.store.packing import pack_all
from roboflamingo.data.store.reading import PackedFolder
from roboflamingo.data.windows import Windows, to_tensors
from synthetic import QUIET, pack_split, source_of, view, write_dataset, write_frame, write_split

SIZES = {"rgb_static": 20, "rgb_gripper": 12}
DECODED = view(20, 12)
COMPRESSED = replace(DECODED, images="compressed")


def picture(seed: int, edge: int = 40) -> np.ndarray:
    """A smooth image, as cameras see; noise is what no codec keeps."""
    random = np.random.default_rng(seed)
    image = Image.new("RGB", (edge, edge), tuple(random.integers(0, 256, 3).tolist()))
    ImageDraw.Draw(image).ellipse((5, 8, edge - 9, edge - 6), tuple(random.integers(0, 256, 3).tolist()))
    return np.asarray(image)


@pytest.fixture
def split(tmp_path: Path) -> Path:
    split = tmp_path / "set" / "training"
    write_split(split, lengths=[6, 5])
    for number, path in enumerate(sorted(split.glob("episode_*.npz"))):
        images = {"rgb_static": picture(number), "rgb_gripper": picture(number + 99, 24)}
        write_frame(path, np.random.default_rng(number), **images)
    return split


def windows_of(folder: Path, **settings: object) -> Windows:
    return Windows([folder], **({"window": 2, "chunk": 2} | settings))  # type: ignore[arg-type]


# --- compressed images -----------------------------------------------------------------------------------


def test_compressed_images_are_the_recorded_ones_but_for_jpeg(split: Path, tmp_path: Path) -> None:
    folder = PackedFolder(pack_split(split, tmp_path / "cache", COMPRESSED))
    assert folder.spec.cameras == {"rgb_static": (40, 40), "rgb_gripper": (24, 24)}
    for row, path in enumerate(sorted(split.glob("episode_*.npz"))[:6]):
        with np.load(path) as file:
            for name in SIZES:
                taken = folder.take(name, np.array([row]))[0]
                np.testing.assert_array_equal(taken, decode(encode(file[name])))
                assert np.abs(taken.astype(float) - file[name]).mean() < 6
    assert QUALITY == 90


def test_windows_of_both_kinds_differ_in_pixels_alone(split: Path, tmp_path: Path) -> None:
    decoded, compressed = (
        windows_of(pack_split(split, tmp_path, settings), cameras=SIZES).__getitems__(range(11))
        for settings in (DECODED, COMPRESSED)
    )
    for name, value in decoded.items():
        if name in SIZES:
            assert value.shape == compressed[name].shape
            assert np.abs(value.astype(float) - compressed[name]).mean() < 6
        else:
            np.testing.assert_array_equal(value, compressed[name])


def test_one_compressed_copy_serves_every_size(split: Path, tmp_path: Path) -> None:
    folder = pack_split(split, tmp_path, COMPRESSED)
    assert pack_split(split, tmp_path, replace(view(7, 5, "robot_obs"), images="compressed")) == folder
    whole = windows_of(folder).__getitems__([4])["rgb_static"][0, 1]
    small = windows_of(folder, cameras={"rgb_static": 8}, vectors=["robot_obs"]).__getitems__([4])
    np.testing.assert_array_equal(small["rgb_static"][0, 1], resize_image(whole, 8))
    assert "rgb_gripper" not in small and "scene_obs" not in small


def test_processes_fill_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_split(tmp_path / "set" / "training", lengths=[1500])
    alone = pack_split(tmp_path / "set" / "training", tmp_path / "alone", COMPRESSED)
    both = pack_split(tmp_path / "set" / "training", tmp_path / "both", COMPRESSED, processes=2)
    files = sorted(path.name for path in alone.iterdir() if path.suffix in (".npy", ".bin"))
    assert len([name for name in files if name.endswith(".bin")]) == 2
    for name in files:
        assert (alone / name).read_bytes() == (both / name).read_bytes()


def test_a_damaged_image_is_named_and_never_shown(split: Path, tmp_path: Path) -> None:
    folder = pack_split(split, tmp_path, COMPRESSED)
    (shard,) = folder.glob("images-*.bin")
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    windows = windows_of(folder, window=1, chunk=1)
    with pytest.raises(UserError, match=r"images-000000000\.bin is damaged in row [45]"):
        windows.__getitems__(range(len(windows)))
    shard.write_bytes(content[:-1])
    with pytest.raises(UserError, match=r"images-000000000\.bin has \d+ bytes, and \d+ were written"):
        windows_of(folder)
    assert "is packed again" in told(split, tmp_path)
    windows_of(folder).__getitems__(range(5))


def told(split: Path, cache: Path, settings: object = COMPRESSED) -> str:
    said = io.StringIO()
    pack_split(split, cache, settings, console=Console(file=said, width=300))  # type: ignore[arg-type]
    return said.getvalue()


def test_a_packed_folder_travels_and_stands_alone(split: Path, tmp_path: Path) -> None:
    folder = pack_split(split, tmp_path / "cache", COMPRESSED)
    before = windows_of(folder).__getitems__(range(11))
    shutil.rmtree(split.parent)
    folder.rename(tmp_path / "elsewhere")
    windows = windows_of(tmp_path / "elsewhere")
    for copy in (windows, pickle.loads(pickle.dumps(windows))):
        after = copy.__getitems__(range(11))
        assert all(np.array_equal(before[name], after[name]) for name in before)


def test_processes_that_read_ahead_give_the_same_batches(split: Path, tmp_path: Path) -> None:
    windows = windows_of(pack_split(split, tmp_path, COMPRESSED), cameras=SIZES)
    batches = [[4, 5, 6, 7, 8, 9, 10, 0, 1], [3, 2]]
    windows.__getitems__(batches[0])  # a reader that is forked now must not wait for threads that it has not
    loader: DataLoader[object] = DataLoader(windows, batch_sampler=batches, collate_fn=to_tensors, num_workers=1)  # type: ignore[arg-type]
    for numbers, batch in zip(batches, loader, strict=True):
        for name, value in to_tensors(windows.__getitems__(numbers)).items():
            assert batch[name] == value if name == "instruction" else torch.equal(batch[name], value)  # type: ignore[index]


def test_packing_chooses_by_size_and_says_so(split: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def packed(cache: str) -> tuple[str, str]:
        said = io.StringIO()
        console = Console(file=said, width=300)
        (folder,) = pack_all([source_of(split)], tmp_path / cache, DECODED, processes=1, console=console)
        return read_index(folder)["images"], said.getvalue()

    kind, text = packed("small")
    assert kind == "decoded" and "images are packed decoded: decoded images take 0.0 GB" in text
    monkeypatch.setattr(packing, "DECODED_LIMIT", 1000)
    kind, text = packed("large")
    assert kind == "compressed" and "(data.images decides otherwise)" in text
    assert packed("large") == ("compressed", "")
    assert packed("small")[0] == "compressed"  # what lies there does not decide
    monkeypatch.undo()
    assert packed("small") == ("decoded", "")
    assert packed("large")[0] == "decoded"


def test_a_large_set_is_not_looked_at_file_by_file(
    split: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(building, "LOOKED_AT", 5)
    folder = pack_split(split, tmp_path / "cache", COMPRESSED)
    source = source_of(split)
    monkeypatch.setattr(type(source), "_listing", property(lambda self: pytest.fail("it was listed")))
    assert source.spec.cameras["rgb_static"] == (40, 40)
    assert building.Packing(source, tmp_path / "cache", COMPRESSED, QUIET).find() == folder
    monkeypatch.undo()
    monkeypatch.setattr(building, "LOOKED_AT", 5)
    (split / "episode_0000101.npz").unlink()  # the folder's time changes, so that its files are looked at
    with pytest.raises(UserError, match=r"episode_0000101\.npz is missing, but segment 0"):
        pack_split(split, tmp_path / "cache", COMPRESSED)


# --- rows that cannot be read ----------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [DECODED, COMPRESSED], ids=["decoded", "compressed"])
@pytest.mark.parametrize("grows", [False, True])
def test_windows_that_need_a_damaged_frame_are_left_out(
    split: Path, tmp_path: Path, settings: object, grows: bool
) -> None:
    shape = {"window": 3, "chunk": 2, "stride": 2, "grows": grows, "cameras": SIZES}
    whole = windows_of(pack_split(split, tmp_path / "before", settings), **shape)  # type: ignore[arg-type]
    before = whole.__getitems__(range(len(whole)))
    (split / "episode_0000102.npz").unlink()
    (split / "episode_0000109.npz").write_bytes(b"no archive")
    with pytest.raises(UserError, match=r"episode_0000102\.npz is missing, but segment 0"):
        pack_split(split, tmp_path, settings)  # type: ignore[arg-type]
    leave_out = replace(settings, damaged="leave_out")  # type: ignore[type-var]
    said = told(split, tmp_path, leave_out)
    assert "2 of 11 frames cannot be read; windows that need them are left out" in said
    assert "episode_0000102.npz is missing" in said
    windows = windows_of(pack_split(split, tmp_path, leave_out), **shape)
    after = windows.__getitems__(range(len(windows)))
    # rows 0-5 are frames 100-105, rows 6-10 are 108-112; row 2 and row 7 are gone
    needs = []
    for first, stop in ((0, 6), (6, 11)):
        for last in range(first, stop):
            shown = [max(first, last - back) if not grows else last - back for back in (0, 2, 4)]
            shown = [row for row in shown if row >= first]
            needs.append({min(row + k, stop - 1) for row in shown for k in (0, 1) if row + k < stop})
    kept = [number for number, rows in enumerate(needs) if not rows & {2, 7}]
    assert 0 < len(kept) < 11
    assert len(windows) == len(kept) == len(windows.draw_weights())
    for name, value in before.items():
        if name not in ("instruction", "actions"):
            np.testing.assert_array_equal(after[name], value[kept])
    np.testing.assert_array_equal(after["actions"][after["action_mask"]], before["actions"][kept][after["action_mask"]])
    assert after["instruction"] == [before["instruction"][number] for number in kept]
    assert len(windows.column("robot_obs")) == 9
    with pytest.raises(UserError, match=r"episode_0000102\.npz is missing"):
        pack_split(split, tmp_path, settings)  # type: ignore[arg-type]


def test_a_frame_that_was_mended_is_packed_again(split: Path, tmp_path: Path) -> None:
    path = split / "episode_0000103.npz"
    content = path.read_bytes()
    path.write_bytes(content[:100])
    leave_out = replace(COMPRESSED, damaged="leave_out")
    assert PackedFolder(pack_split(split, tmp_path, leave_out)).damaged.tolist() == [3]
    path.write_bytes(content)
    assert PackedFolder(pack_split(split, tmp_path, leave_out)).damaged.tolist() == []


def test_a_killed_packing_keeps_what_is_whole_of_its_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    split = tmp_path / "set" / "training"
    write_split(split, lengths=[1100])
    expected = pack_split(split, tmp_path / "fresh", COMPRESSED)
    packing = building.Packing(source_of(split), tmp_path / "cache", COMPRESSED, QUIET)
    packing.building.mkdir(parents=True)
    create_arrays(packing.building, packing.arrays)
    done = [job.run() for job in packing._jobs(set())]
    for line in ({"state": packing.state}, *map(asdict, done)):
        append_line(packing.building / building.DONE, sealed(line))
    assert [job.first for job in packing._continued() or []] == [0, 1024]
    shard = packing.building / "images-000001024.bin"
    shard.write_bytes(shard.read_bytes()[:-3])
    assert [job.first for job in packing._continued() or []] == [0]
    folder = pack_split(split, tmp_path / "cache", COMPRESSED)
    for path in sorted(expected.iterdir()):
        if path.suffix in (".npy", ".bin") and path.name != "stamps.npy":
            assert path.read_bytes() == (folder / path.name).read_bytes()


# --- data sets that are packed already -------------------------------------------------------------------


def test_a_packed_set_is_a_data_set(tmp_path: Path) -> None:
    write_dataset(tmp_path / "set")
    places = [(tmp_path / "set", split) for split in ("training", "validation")]
    made = pack_or_find(places, tmp_path / "cache", COMPRESSED, "compressed", processes=1, console=QUIET)
    for folder, (_, split) in zip(made, places, strict=True):
        (tmp_path / "store").mkdir(exist_ok=True)
        folder.rename(tmp_path / "store" / split)
    made_there = tmp_path / "store" / "training"
    shutil.rmtree(tmp_path / "set")
    assert splits_at(tmp_path / "store") == ("training", "validation")
    source = open_source(tmp_path / "store")
    assert (source.kind, len(source), source.spec.cameras["rgb_gripper"]) == ("packed", 33, (24, 24))
    again = pack_split(tmp_path / "store" / "training", tmp_path / "again", DECODED)
    for name in ("robot_obs", "actions"):
        np.testing.assert_array_equal(np.load(again / f"{name}.npy"), np.load(made_there / f"{name}.npy"))
    assert windows_of(again).tasks == windows_of(made_there).tasks
    (found,) = pack_or_find([(tmp_path / "store", "validation")], None, DECODED, console=QUIET)
    assert windows_of(found, cameras=SIZES).instructions == ("please open drawer 0", "please close drawer 1")
    with pytest.raises(UserError, match=r"has no images of wrist; it has those of rgb_static, rgb_gripper"):
        windows_of(found, cameras={"wrist": 8})


# --- samples of other kinds ------------------------------------------------------------------------------


def test_play_windows_are_those_of_all_frames_of_every_episode(split: Path, tmp_path: Path) -> None:
    np.save(split / "ep_start_end_ids.npy", np.array([[100, 106], [107, 114]]))  # frames 100-114 are there
    folder = pack_split(split, tmp_path, replace(COMPRESSED, rows="all"))
    packed = PackedFolder(folder)
    assert sample_table([packed], "play").bounds.tolist() == [[0, 7], [7, 15]]
    assert sample_table([packed], "language").bounds.tolist() == [[0, 6], [8, 13]]
    play = windows_of(folder, kind="play")
    batch = play.__getitems__(range(len(play)))
    assert len(play) == 15 and batch["instruction"] == [""] * 15
    with np.load(split / "episode_0000107.npz") as file:
        np.testing.assert_array_equal(batch["robot_obs"][7, 1], file["robot_obs"].astype(np.float32))
    assert batch["frame_mask"][7].tolist() == [False, True]


@given(st.sets(st.integers(0, 30), min_size=1), st.lists(st.integers(1, 8), min_size=1, max_size=5), st.integers(0, 3))
def test_runs_are_rows_of_one_episode_without_a_gap(packed: set[int], lengths: list[int], gap: int) -> None:
    rows, stop, episodes = np.array(sorted(packed)), 0, []
    for length in lengths:
        episodes.append((stop + gap, stop + gap + length))
        stop += gap + length
    runs = runs_of(rows, np.array(episodes)).tolist()
    owner = {row: number for number, (first, last) in enumerate(episodes) for row in range(first, last)}
    expected: list[list[int]] = []
    for place, row in enumerate(rows.tolist()):
        if row not in owner:
            continue
        follows = expected and expected[-1][1] == place and rows[place - 1] == row - 1 and owner[row - 1] == owner[row]
        if follows:
            expected[-1][1] = place + 1
        else:
            expected.append([place, place + 1])
    assert runs == expected


def test_play_needs_no_annotations(split: Path, tmp_path: Path) -> None:
    shutil.rmtree(split / "lang_annotations")
    folder = pack_split(split, tmp_path, replace(COMPRESSED, rows="all"))
    assert len(windows_of(folder, kind="play")) == 15
    with pytest.raises(UserError, match="holds no language samples"):
        windows_of(folder)
    with pytest.raises(UserError, match=r"auto_lang_ann\.npy is missing"):
        pack_split(split, tmp_path, COMPRESSED)


def test_goals_are_later_frames_of_the_same_episode(split: Path, tmp_path: Path) -> None:
    np.save(split / "ep_start_end_ids.npy", np.array([[100, 106], [107, 114]]))
    folder = pack_split(split, tmp_path, replace(COMPRESSED, rows="all"))
    windows = windows_of(folder, kind="goal", window=1)
    images = PackedFolder(folder).take("rgb_static", np.arange(15))
    chosen = []
    for place in range(20):
        batch = windows.__getitems__([place * 15 + 3, place * 15 + 14])
        for goal, choices in zip(batch["goal_rgb_static"], ((4, 5, 6), (14,)), strict=True):
            chosen += [row for row in choices if np.array_equal(images[row], goal)]
    assert len(chosen) == 40 and set(chosen) == {4, 5, 6, 14}
    again = windows.__getitems__([7 * 15 + 3])["goal_rgb_static"]
    np.testing.assert_array_equal(again, windows.__getitems__([7 * 15 + 3])["goal_rgb_static"])


def test_captions_are_images_with_sentences(split: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from roboflamingo.data.sources.base import Sample
    from roboflamingo.data.store.packing import pack

    source = source_of(split)
    source.__dict__["samples"] = (*source.samples, Sample(2, 4, "caption", "a block on a table"))
    folder = pack(source, tmp_path, COMPRESSED, processes=1, console=QUIET)
    batch = windows_of(folder, kind="caption", window=1, chunk=1).__getitems__([0, 1])
    assert batch["instruction"] == ["a block on a table"] * 2
    np.testing.assert_array_equal(batch["rgb_static"][:, 0], PackedFolder(folder).take("rgb_static", np.array([2, 3])))
    assert not batch["action_mask"].any()
    assert len(windows_of(folder)) == 11
