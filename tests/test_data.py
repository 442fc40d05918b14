"""Data: what is read from CALVIN folders, how it is packed, and which windows it gives."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from calvin_eval.system.files import append_line, read_lines
from calvin_eval.system.sealing import opened, sealed
from roboflamingo.data.errors import DataError
from roboflamingo.data.images import resize_image
from roboflamingo.data.sources.calvin.annotations import read_segments
from roboflamingo.data.sources.calvin.plain import load_plain_dict
from roboflamingo.data.store.settings import PackSettings
from roboflamingo.data.windows import Windows, last_frames, to_tensors
from synthetic import TASKS, pack_split, source_of, view, write_frame, write_split

SETTINGS = view(20, 12)


def packed(split: Path, cache: Path, settings: PackSettings = SETTINGS) -> Path:
    return pack_split(split, cache, settings)


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "training"
    write_split(folder)
    return folder


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


# --- annotations -----------------------------------------------------------------------------------------


def test_segments_come_with_task_and_instruction(split: Path) -> None:
    first = read_segments(split)[0]
    assert (first.start, first.stop) == (100, 109)
    assert first.task == TASKS[0]
    assert first.instruction == "please open drawer 0"


class Hostile:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch /tmp/this-must-not-exist",)


def test_annotations_that_ask_for_code_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "hostile.npy"
    np.save(path, {"language": Hostile()}, allow_pickle=True)  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"hostile\.npy.*posix\.system"):
        load_plain_dict(path)


@pytest.mark.parametrize(
    "value",
    [
        {"a": [1, 2.5, "three", None, True], "b": (4, {"c": np.arange(3.0)})},
        {
            "strings": np.array(["open", "close"]),
            "number": np.float32(2),
            "objects": np.array([[1, "x"]], object),
        },
    ],
)
def test_plain_dictionaries_are_read_as_numpy_wrote_them(tmp_path: Path, value: dict[str, object]) -> None:
    np.save(tmp_path / "plain.npy", value, allow_pickle=True)  # type: ignore[arg-type]
    assert pickle.dumps(load_plain_dict(tmp_path / "plain.npy")) == pickle.dumps(value)


@pytest.mark.parametrize("content", [b"", b"not numpy", b"\x93NUMPY\x01\x00"])
def test_broken_annotation_files_are_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "broken.npy").write_bytes(content)
    with pytest.raises(DataError, match=r"broken\.npy"):
        load_plain_dict(tmp_path / "broken.npy")


def test_other_language_folders_are_used_and_suggested(tmp_path: Path) -> None:
    write_split(tmp_path / "training", lengths=[4], language="lang_clip_ViTB32")
    with pytest.raises(DataError, match=r"set data\.language to one of lang_clip_ViTB32"):
        read_segments(tmp_path / "training")
    assert len(read_segments(tmp_path / "training", "lang_clip_ViTB32")) == 1


# --- packing ---------------------------------------------------------------------------------------------


def test_only_frames_of_segments_are_packed_and_each_once(tmp_path: Path) -> None:
    write_split(tmp_path / "training", lengths=[6, 6], overlap=2)
    assert len(np.load(packed(tmp_path / "training", tmp_path) / "robot_obs.npy")) == 10


def test_blocks_are_packed_in_one_order_whatever_the_scene(tmp_path: Path) -> None:
    pink_blue_red = ("block_pink", "block_blue", "block_red")
    write_split(tmp_path / "training", lengths=[3], block_order=pink_blue_red)
    recorded = np.load(tmp_path / "training" / "episode_0000100.npz")["scene_obs"]
    scene_obs = np.load(packed(tmp_path / "training", tmp_path) / "scene_obs.npy")[0]
    np.testing.assert_array_equal(scene_obs[:6], recorded[:6].astype(np.float32))
    np.testing.assert_array_equal(scene_obs[6:12], recorded[18:24].astype(np.float32))  # red was last
    np.testing.assert_array_equal(scene_obs[18:24], recorded[6:12].astype(np.float32))  # pink was first


def test_scene_info_decides_the_block_order_where_scenes_are_mixed(tmp_path: Path) -> None:
    write_split(tmp_path / "training", lengths=[3, 3])  # frames 100-102 and 105-107
    scenes = {"calvin_scene_A": [100, 103], "calvin_scene_C": [104, 110]}
    np.save(tmp_path / "training" / "scene_info.npy", scenes, allow_pickle=True)  # type: ignore[arg-type]
    source = source_of(tmp_path / "training")
    order = source.block_order(np.searchsorted(source.ids, [100, 101, 102, 105, 106, 107]))
    assert order.tolist() == [[2, 1, 0]] * 3 + [[1, 0, 2]] * 3


def test_packing_with_processes_equals_packing_without(tmp_path: Path) -> None:
    write_split(tmp_path / "training", lengths=[150, 150, 300])
    alone = packed(tmp_path / "training", tmp_path / "alone")
    together = pack_split(tmp_path / "training", tmp_path / "together", SETTINGS, processes=2)
    for array in alone.glob("*.npy"):
        assert array.read_bytes() == (together / array.name).read_bytes()


def test_packing_twice_does_nothing_the_second_time(split: Path, cache: Path) -> None:
    first = packed(split, cache)
    written = (first / "index.json").stat().st_mtime_ns
    assert packed(split, cache) == first
    assert (first / "index.json").stat().st_mtime_ns == written


def test_a_changed_frame_is_packed_again(tmp_path: Path) -> None:
    write_split(tmp_path / "training", lengths=[3])
    folder = packed(tmp_path / "training", tmp_path)
    before = np.load(folder / "robot_obs.npy")
    write_frame(tmp_path / "training" / "episode_0000101.npz", np.random.default_rng(7))
    after = np.load(packed(tmp_path / "training", tmp_path) / "robot_obs.npy")
    assert (before != after).any(axis=1).tolist() == [False, True, False]


def test_changed_annotations_are_packed_again(tmp_path: Path) -> None:
    write_split(tmp_path / "training", lengths=[3, 4])
    folder = packed(tmp_path / "training", tmp_path)
    path = tmp_path / "training" / "lang_annotations" / "auto_lang_ann.npy"
    annotations = load_plain_dict(path)
    annotations["language"]["ann"][0] = "new words"
    np.save(path, annotations, allow_pickle=True)  # type: ignore[arg-type]
    packed(tmp_path / "training", tmp_path)
    assert json.loads((folder / "index.json").read_text())["samples"][0]["instruction"] == "new words"


def test_other_settings_live_beside_each_other(split: Path, cache: Path) -> None:
    small, large = packed(split, cache), packed(split, cache, view(24, 12))
    assert small != large
    assert small.is_dir()
    assert large.is_dir()


def test_a_killed_packing_is_continued(tmp_path: Path) -> None:
    write_split(tmp_path / "training", lengths=[1200])
    code = (
        "import sys; sys.path.insert(0, sys.argv[3]); from pathlib import Path; from synthetic import pack_split, view;"
        "pack_split(Path(sys.argv[1]), Path(sys.argv[2]), view(20, 12))"
    )
    cache = tmp_path / "cache"
    process = subprocess.Popen([sys.executable, "-c", code, tmp_path / "training", cache, Path(__file__).parent])
    while not (notes := list(cache.glob("*.building/done.jsonl"))) or len(read_lines(notes[0])) < 2:
        assert process.poll() is None, "packing ended before it could be killed"
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = [opened(line, "done") for line in read_lines(notes[0])]
    robot_obs = np.load(notes[0].parent / "robot_obs.npy", mmap_mode="r+")
    robot_obs[0] = 123  # a mark that a second packing of the same frame would overwrite
    done[1]["checksums"]["robot_obs"] = zlib.crc32(robot_obs[:256].tobytes())
    notes[0].unlink()
    for line in done:
        append_line(notes[0], sealed(line))
    del robot_obs

    result = np.load(packed(tmp_path / "training", cache) / "robot_obs.npy")
    assert done[1]["first"] == 0
    assert (result[0] == 123).all()
    expected = packed(tmp_path / "training", tmp_path / "fresh")
    np.testing.assert_array_equal(result[1:], np.load(expected / "robot_obs.npy")[1:])
    assert not list(cache.glob("*.building"))


@pytest.mark.parametrize(
    ("replaced", "message"),
    [
        ({"robot_obs": np.zeros(14)}, r"episode_0000101\.npz: robot_obs of shape \(14,\)"),
        ({"scene_obs": np.full(24, np.nan)}, r"episode_0000101\.npz: scene_obs .* finite"),
        ({"rgb_static": np.zeros((40, 40, 3), np.float32)}, r"episode_0000101\.npz: rgb_static is float32"),
        ({"rel_actions": np.full(7, 0.5)}, r"episode_0000101\.npz: rel_actions\[6\] is 0\.5"),
        ({"rgb_gripper": np.array({"an": "object"})}, r"episode_0000101\.npz: rgb_gripper cannot be read"),
    ],
)
def test_a_frame_that_is_not_calvins_names_file_and_key(
    tmp_path: Path, replaced: dict[str, np.ndarray], message: str
) -> None:
    write_split(tmp_path / "training", lengths=[3])
    write_frame(tmp_path / "training" / "episode_0000101.npz", np.random.default_rng(0), **replaced)
    with pytest.raises(DataError, match=message):
        packed(tmp_path / "training", tmp_path)


def test_a_cut_off_frame_names_the_file_also_from_another_process(tmp_path: Path) -> None:
    write_split(tmp_path / "training", lengths=[300])
    path = tmp_path / "training" / "episode_0000390.npz"
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(DataError, match=r"episode_0000390\.npz: the archive cannot be read"):
        pack_split(tmp_path / "training", tmp_path, SETTINGS, processes=2)


def test_a_missing_frame_names_file_and_segment(tmp_path: Path) -> None:
    write_split(tmp_path / "training", lengths=[3, 4])
    (tmp_path / "training" / "episode_0000106.npz").unlink()
    with pytest.raises(DataError, match=r"episode_0000106\.npz is missing, but segment 1 .*close_drawer"):
        packed(tmp_path / "training", tmp_path)


def test_shrinking_averages_the_area_of_each_pixel() -> None:
    image = np.random.default_rng(0).integers(0, 256, (6, 6, 3), np.uint8)
    blocks = image.reshape(3, 2, 3, 2, 3).mean((1, 3))
    assert np.abs(resize_image(image, 3) - blocks).max() <= 1
    assert resize_image(image, 6) is image


# --- windows ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("grows", [False, True])
@pytest.mark.parametrize(("window", "chunk", "stride"), [(1, 1, 1), (4, 3, 1), (3, 5, 2), (5, 12, 4)])
def test_windows_equal_a_plain_reading_of_the_files(
    split: Path, cache: Path, window: int, chunk: int, stride: int, grows: bool
) -> None:
    windows = Windows([packed(split, cache)], window=window, chunk=chunk, stride=stride, grows=grows)
    segments = read_segments(split)
    anchors = [(segment, t) for segment in segments for t in range(segment.start, segment.stop)]
    assert len(windows) == len(anchors)
    batch = windows.__getitems__(range(len(windows)))
    assert batch["rgb_static"].dtype == np.uint8
    assert batch["actions"].shape == (len(windows), window, chunk, 7)

    def frame(number: int, key: str) -> np.ndarray:
        return np.load(split / f"episode_{number:07d}.npz")[key]

    for i, (segment, anchor) in enumerate(anchors):
        assert batch["instruction"][i] == segment.instruction
        past = [anchor - back * stride for back in range(window - 1, -1, -1)]
        real = [number for number in past if number >= segment.start]
        missing = window - len(real)
        if grows:
            numbers, mask = real + [anchor] * missing, [True] * len(real) + [False] * missing
        else:
            numbers, mask = [segment.start] * missing + real, [False] * missing + [True] * len(real)
        assert last_frames(torch.from_numpy(batch["frame_mask"]))[i] == (len(real) - 1 if grows else window - 1)
        for t, number in enumerate(numbers):
            assert batch["frame_mask"][i, t] == mask[t]
            np.testing.assert_array_equal(batch["robot_obs"][i, t], frame(number, "robot_obs").astype(np.float32))
            if i % 7 == 0:
                image = resize_image(frame(number, "rgb_static"), SETTINGS.cameras["rgb_static"])
                np.testing.assert_array_equal(batch["rgb_static"][i, t], image)
            for k in range(chunk):
                inside = number + k < segment.stop
                assert batch["action_mask"][i, t, k] == inside
                if inside:
                    action = frame(number + k, "rel_actions").astype(np.float32)
                    np.testing.assert_array_equal(batch["actions"][i, t, k], action)


def test_folders_joined_give_the_windows_of_each(tmp_path: Path) -> None:
    write_split(tmp_path / "a" / "training", lengths=[5, 3], seed=1)
    write_split(tmp_path / "b" / "training", lengths=[4], seed=2)
    folders = [packed(tmp_path / name / "training", tmp_path) for name in "ab"]
    joined = Windows(folders, window=2, chunk=2, weights=[1, 3])
    single = [Windows([folder], window=2, chunk=2) for folder in folders]
    numbers = [9, 0, 11, 7, 8]
    batch = joined.__getitems__(numbers)
    for i, number in enumerate(numbers):
        own = single[number >= 8].__getitems__([number - 8 * (number >= 8)])
        for key in (
            "rgb_static",
            "rgb_gripper",
            "robot_obs",
            "scene_obs",
            "actions",
            "action_mask",
            "frame_mask",
        ):
            np.testing.assert_array_equal(batch[key][i], own[key][0])
        assert batch["instruction"][i] == own["instruction"][0]
    np.testing.assert_array_equal(joined.draw_weights(), [1] * 8 + [3] * 4)


def test_balanced_weights_draw_every_task_equally_often(split: Path, cache: Path) -> None:
    windows = Windows([packed(split, cache)], window=1, chunk=1)
    weights = windows.draw_weights(balance_tasks=True)
    shares = [part.sum() for part in np.split(weights, [9, 14, 26])]
    np.testing.assert_allclose(shares, shares[0])


def test_windows_travel_to_worker_processes_without_their_data(split: Path, cache: Path) -> None:
    windows = Windows([packed(split, cache)], window=3, chunk=2)
    message = pickle.dumps(windows)
    assert len(message) < 5000
    copy = pickle.loads(message)
    np.testing.assert_array_equal(copy.__getitems__([4])["actions"], windows.__getitems__([4])["actions"])


def test_tensors_share_the_memory_of_the_arrays(split: Path, cache: Path) -> None:
    batch = Windows([packed(split, cache)], window=2, chunk=1).__getitems__([0, 1])
    assert to_tensors(batch)["actions"].data_ptr() == batch["actions"].ctypes.data
