"""Kept vision tokens: known by content, made once, and read by window and shift."""

from __future__ import annotations

import io
import pickle
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from token_sets import CAMERAS, SHAPE, Linear, folder_of, small_packed, tokens_of

from roboflamingo.data.errors import DataError
from roboflamingo.data.store.reading import PackedFolder
from roboflamingo.data.tokens.making import TokenFolder
from roboflamingo.data.tokens.reading import FrameTokens
from roboflamingo.data.tokens.shifts import shifted, shifts_of
from roboflamingo.data.windows import Windows
from roboflamingo.policy.inputs import random_shift
from synthetic import pack_split, view, write_split


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    return small_packed(tmp_path)


# --- shifts --------------------------------------------------------------------------------------


@given(st.integers(0, 4), st.integers(1, 90), st.integers(1, 90))
def test_fewer_shifts_are_the_first_of_more_and_no_shift_is_the_first(largest: int, few: int, many: int) -> None:
    one, other = shifts_of(largest, min(few, many)), shifts_of(largest, max(few, many))
    assert other[: len(one)] == one
    assert one[0] == (0, 0)
    assert len(set(other)) == len(other) == min(max(few, many), (2 * largest + 1) ** 2)
    assert max(abs(pixels) for shift in other for pixels in shift) <= largest


def test_shifts_are_those_of_training_on_images() -> None:
    image = np.random.default_rng(0).integers(0, 256, (1, 7, 5, 3), np.uint8)
    known = {shifted(image, shift).tobytes(): shift for shift in shifts_of(2, 25)}
    drawn = random_shift(torch.from_numpy(image).expand(300, 1, 7, 5, 3), 2).numpy()
    assert {known[each.tobytes()] for each in drawn} == set(shifts_of(2, 25))


# --- the store -----------------------------------------------------------------------------------


def test_tokens_are_the_encoders_of_every_row_and_shift(packed: Path) -> None:
    tokens, folder, encode = tokens_of(packed, Linear()), PackedFolder(packed, CAMERAS), Linear()
    rows = np.arange(folder.frames)
    for camera in CAMERAS:
        for number, shift in enumerate(shifts_of(1, 3)):
            wanted = encode(shifted(folder.take(camera, rows), shift))
            found = tokens.take(camera, rows, np.full(len(rows), number))
            assert found.dtype == np.float16
            np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-3)


def test_rows_of_a_window_come_at_the_windows_shift(packed: Path) -> None:
    tokens = tokens_of(packed, Linear())
    rows, moved = np.array([[0, 1], [5, 6], [2, 2]]), np.array([2, 0, 1])
    found = tokens.take("rgb_static", rows, moved)
    for place in np.ndindex(rows.shape):
        alone = tokens.take("rgb_static", rows[place].reshape(1), moved[place[:1]].reshape(1))[0]
        np.testing.assert_array_equal(found[place], alone)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(tokens)).take("rgb_static", rows, moved), found)


def test_tokens_are_made_once_and_shared_by_runs_with_fewer_shifts(packed: Path) -> None:
    first, second, third = Linear(), Linear(), Linear()
    tokens_of(packed, first, 2)
    tokens_of(packed, second, 1)
    tokens_of(packed, third, 3)
    rows = PackedFolder(packed).frames
    cameras = len(CAMERAS)
    assert sum(first.seen) == 2 * cameras * rows
    assert sum(second.seen) == 2 * cameras  # two images of each folder are compared
    assert sum(third.seen) == cameras * (rows + 2 * 2)


def test_another_encoder_data_set_or_size_has_other_tokens(packed: Path, tmp_path: Path) -> None:
    folder = folder_of(packed, Linear())
    others = [folder_of(packed, Linear(2.0))]
    write_split(tmp_path / "other" / "training", lengths=[4, 3, 6], overlap=1, seed=5)
    others.append(folder_of(pack_split(tmp_path / "other" / "training", tmp_path / "packed", view(6, 4)), Linear()))
    small = PackedFolder(pack_split(tmp_path / "set" / "training", tmp_path / "packed", view(5, 4)))
    others.append(TokenFolder(small, "rgb_static", (0, 0), SHAPE, Linear(), folder.root))
    assert len({each.target for each in [folder, *others]}) == 4


def test_a_moved_data_set_keeps_its_tokens(packed: Path, tmp_path: Path) -> None:
    tokens_of(packed, Linear())
    tmp_path.joinpath("packed").rename(tmp_path / "moved")
    again = Linear()
    tokens_of(tmp_path / "moved" / packed.name, again)
    assert max(again.seen) == 2


def test_an_encoder_of_equal_weights_that_computes_otherwise_is_noticed(packed: Path) -> None:
    tokens_of(packed, Linear())

    class Changed(Linear):
        def __call__(self, images: np.ndarray) -> np.ndarray:
            return super().__call__(images[:, ::-1])

    said = io.StringIO()
    tokens = tokens_of(packed, Changed(), console=Console(file=said, width=300))
    assert "vision tokens are made again: the encoder makes other tokens of rgb_static now" in said.getvalue()
    rows = np.arange(4)
    wanted = Changed()(PackedFolder(packed).take("rgb_static", rows))
    np.testing.assert_allclose(tokens.take("rgb_static", rows), wanted, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e5])
def test_tokens_that_fp16_cannot_hold_are_an_error_that_names_the_frame(packed: Path, value: float) -> None:
    class Broken(Linear):
        def __call__(self, images: np.ndarray) -> np.ndarray:
            tokens = super().__call__(images)
            tokens[5:, 1] = value
            return tokens

    with pytest.raises(DataError, match=rf"{packed}, row 5: the vision encoder's tokens of rgb_static are not finite"):
        folder_of(packed, Broken()).make()


def test_rows_that_could_not_be_read_are_left_out(tmp_path: Path) -> None:
    split = tmp_path / "set" / "training"
    write_split(split, lengths=[4, 3], overlap=1)
    (split / "episode_0000102.npz").write_bytes(b"no frame")
    settings = replace(view(6, 4), damaged="leave_out")
    encode = Linear()
    folder = folder_of(pack_split(split, tmp_path / "packed", settings), encode)
    assert folder.packed.damaged.tolist() == [2]
    folder.make()
    tokens = FrameTokens({"rgb_static": [folder.target]})
    assert sum(encode.seen) == folder.packed.frames - 1
    assert not tokens.take("rgb_static", np.array([2])).any()


# --- windows -------------------------------------------------------------------------------------


def batches(windows: Windows, numbers: Sequence[int]) -> dict[str, np.ndarray]:
    return windows.__getitems__(numbers)


def test_windows_hold_tokens_in_the_place_of_images_and_all_else_as_before(packed: Path) -> None:
    plain = Windows([packed], window=3, chunk=2, cameras=CAMERAS)
    windows = plain.with_tokens([tokens_of(packed, Linear())])
    numbers = list(range(len(plain)))
    before, now = batches(plain, numbers), batches(windows, numbers)
    assert before.keys() == now.keys()
    for name, value in before.items():
        if name in CAMERAS:
            assert (now[name].dtype, now[name].shape) == (np.float16, (*value.shape[:2], *SHAPE))
            np.testing.assert_allclose(
                now[name].reshape(-1, *SHAPE), Linear()(value.reshape(-1, *value.shape[2:])), rtol=1e-3, atol=1e-3
            )
        else:
            np.testing.assert_array_equal(now[name], value)
    assert batches(plain, [0])["rgb_static"].dtype == np.uint8  # which were not changed


def test_the_shift_of_a_window_is_a_function_of_seed_and_place(packed: Path) -> None:
    tokens = tokens_of(packed, Linear())
    windows = Windows([packed], window=2, chunk=2, cameras=CAMERAS).with_tokens([tokens], seed=3)
    count = len(windows)
    places = [place * count + 4 for place in range(40)]  # one window at many places in the stream
    together = batches(windows, places)
    kinds = {camera: {each.tobytes() for each in together[camera]} for camera in CAMERAS}
    assert {camera: len(found) for camera, found in kinds.items()} == dict.fromkeys(CAMERAS, 3)
    assert len({(a.tobytes(), b.tobytes()) for a, b in zip(*map(together.get, CAMERAS), strict=True)}) > 3  # type: ignore[arg-type]
    alone = np.concatenate([batches(windows, [place])["rgb_static"] for place in places])
    np.testing.assert_array_equal(alone, together["rgb_static"])
    other = Windows([packed], window=2, chunk=2, cameras=CAMERAS).with_tokens([tokens], seed=4)
    assert (batches(other, places)["rgb_static"] != together["rgb_static"]).any()
    still = Windows([packed], window=2, chunk=2, cameras=CAMERAS).with_tokens([tokens])
    assert len({each.tobytes() for each in batches(still, [4] * 9)["rgb_static"]}) == 1


def test_windows_of_several_folders_find_the_tokens_of_each(packed: Path, tmp_path: Path) -> None:
    write_split(tmp_path / "more" / "training", lengths=[5, 2], seed=8)
    more = pack_split(tmp_path / "more" / "training", tmp_path / "packed", view(6, 4, "robot_obs"))
    tokens = [tokens_of(folder, Linear()) for folder in (packed, more)]
    plain = Windows([packed, more], window=2, chunk=2, cameras=CAMERAS)
    numbers = list(range(len(plain)))
    images = batches(plain, numbers)["rgb_gripper"]
    moved = [shifted(images.reshape(-1, *images.shape[2:]), shift) for shift in shifts_of(1, 3)]
    found = batches(plain.with_tokens(tokens, seed=0), numbers)["rgb_gripper"]
    wanted = np.stack([Linear()(each).reshape(found.shape) for each in moved])  # (shifts, B, T, V, D)
    near = np.isclose(found, wanted, rtol=1e-3, atol=1e-3).all(axis=(2, 3, 4))
    assert (near.sum(0) == 1).all() and near.any(1).all()  # every window at one shift, and each shift somewhere


def test_goals_are_tokens_at_the_shift_of_their_window(packed: Path) -> None:
    plain = Windows([packed], window=2, chunk=2, cameras=CAMERAS, kind="goal")
    numbers = list(range(len(plain)))
    images, found = (batches(each, numbers) for each in (plain, plain.with_tokens([tokens_of(packed, Linear(), 1)])))
    for camera in CAMERAS:
        wanted = Linear()(images[f"goal_{camera}"])
        np.testing.assert_allclose(found[f"goal_{camera}"], wanted, rtol=1e-3, atol=1e-3)
