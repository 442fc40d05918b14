"""Files of a data set and of its packed copy, damaged by seed: each is refused, or made again, or as good as before.

What counts as silent: no error, and other windows than from the undamaged file. CALVIN's own formats carry no checksum
for annotations, so a changed letter or bound cannot be told there; our own files do.
"""

from __future__ import annotations

import io
import shutil
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from calvin_eval.system.errors import UserError
from calvin_eval.system.files import append_line
from calvin_eval.system.sealing import sealed
from mutations import damaged
from roboflamingo.data.errors import DataError
from roboflamingo.data.sources.base import ACTIONS, Frame
from roboflamingo.data.sources.calvin.frames import VECTORS, CalvinReader
from roboflamingo.data.store.arrays import create_arrays
from roboflamingo.data.store.building import Packing
from roboflamingo.data.store.index import read_sealed
from roboflamingo.data.store.reading import PackedFolder
from roboflamingo.data.windows import Windows
from synthetic import pack_split, source_of, view, write_split

SETTINGS = view(6, 4)
COUNT = 200
QUIET = Console(quiet=True)


@pytest.fixture
def split(tmp_path: Path) -> Path:
    write_split(tmp_path / "set" / "training", lengths=[4, 3], overlap=1)
    return tmp_path / "set" / "training"


def windows_of(split: Path) -> list[Any]:
    """All windows of a split through its packed copy, as they are trained on."""
    windows = Windows([pack_split(split, split.parent / "packed", SETTINGS)], window=2, chunk=2)
    batch = windows.__getitems__(range(len(windows)))
    return [batch["instruction"], windows.tasks, *(v.tobytes() for v in batch.values() if isinstance(v, np.ndarray))]


def first_frame(split: Path) -> Frame:
    """The first frame of a split, as it is packed."""
    reader = CalvinReader(split, ("episode_0000100.npz",), np.arange(3)[None], VECTORS, "relative", "error", {})
    (frame,) = reader.frames((*SETTINGS.cameras, *SETTINGS.vectors, ACTIONS))
    if isinstance(frame, DataError):
        raise frame
    return frame


def outcomes(path: Path, use: Callable[[], Any], count: int = COUNT) -> dict[str, int]:
    """How often the use of damaged copies of a file is refused, the same as before, or silently another."""
    original, before = path.read_bytes(), use()
    counts = {"refused": 0, "same": 0, "silent": 0}
    for content in damaged(original, count):
        path.write_bytes(content)
        try:
            counts["same" if use() == before else "silent"] += 1
        except (UserError, OSError) as error:
            assert str(error)
            counts["refused"] += 1
        path.write_bytes(original)
    assert use() == before
    return counts


@pytest.mark.parametrize("name", ["index.json", "actions.npy", "rgb_static.npy", "digests.npy"])
def test_a_damaged_packed_folder_is_packed_again(split: Path, name: str) -> None:
    before = windows_of(split)
    packing = Packing(source_of(split), split.parent / "packed", SETTINGS, QUIET)
    path = packing.target / name
    original, index = path.read_bytes(), read_sealed(packing.target / "index.json")
    for number, content in enumerate(damaged(original, COUNT)):
        path.write_bytes(content)
        same = name == "index.json" and read_sealed(path) == index  # a blank more or less is no damage
        assert packing.find() == (packing.target if same else None)
        if number % 25 == 0:
            assert windows_of(split) == before
    assert windows_of(split) == before


@pytest.mark.parametrize("name", ["index.json", "places.npy", "images-000000000.bin"])
def test_damaged_compressed_images_are_refused_or_packed_again(split: Path, name: str) -> None:
    settings = replace(SETTINGS, images="compressed")
    folder = pack_split(split, split.parent / "packed", settings)
    packing = Packing(source_of(split), split.parent / "packed", settings, QUIET)
    path, before = folder / name, [value.tobytes() for value in pictures_of(folder)]
    original, index = path.read_bytes(), read_sealed(folder / "index.json")
    for content in damaged(original, COUNT):
        path.write_bytes(content)
        same = name == "index.json" and read_sealed(path) == index
        if name.endswith(".bin"):  # each image is checked when it is read, and the file's length before
            with suppress(UserError):
                assert [value.tobytes() for value in pictures_of(folder)] == before
        else:
            assert packing.find() == (folder if same else None)
    path.write_bytes(original)
    assert [value.tobytes() for value in pictures_of(folder)] == before


def pictures_of(folder: Path) -> list[np.ndarray]:
    """All images of a packed folder."""
    packed = PackedFolder(folder)
    return [packed.take(name, np.arange(packed.frames)) for name in packed.spec.cameras]


def test_damaged_stamps_cost_a_comparison_and_no_packing(split: Path) -> None:
    windows_of(split)
    packing = Packing(source_of(split), split.parent / "packed", SETTINGS, QUIET)
    for content in damaged((packing.target / "stamps.npy").read_bytes(), COUNT):
        (packing.target / "stamps.npy").write_bytes(content)
        assert packing.find() == packing.target


@pytest.mark.parametrize("name", ["index.json", "robot_obs.npy"])
def test_windows_of_a_damaged_packed_folder_are_refused_without_its_source(split: Path, name: str) -> None:
    windows_of(split)
    path = next((split.parent / "packed").glob(f"*/{name}"))
    original = path.read_bytes()
    for content in damaged(original[:200] if name.endswith("npy") else original, COUNT):
        path.write_bytes(content + original[200:] if name.endswith("npy") else content)
        try:
            Windows([path.parent], window=2, chunk=2)
        except UserError as error:
            assert str(path) in str(error)


def test_a_frame_is_refused_or_read_as_it_was(split: Path) -> None:
    path = split / "episode_0000100.npz"

    def read() -> list[bytes]:
        frame = first_frame(split)
        return [value.tobytes() for value in frame.arrays.values()]

    counts = outcomes(path, read)
    assert counts["silent"] == 0
    assert counts["refused"] > COUNT / 2


@pytest.mark.parametrize(
    ("name", "most_silent"),
    [
        ("lang_annotations/auto_lang_ann.npy", 10),  # letters and bounds that are as good as the right ones
        ("scene_info.npy", 0),
        (".hydra/merged_config.yaml", 0),
    ],
)
def test_notes_on_the_frames_are_refused_or_read_and_never_a_fault_of_ours(
    split: Path, name: str, most_silent: int
) -> None:
    if name == "scene_info.npy":
        np.save(split / name, {"calvin_scene_A": [90, 103], "calvin_scene_C": [104, 300]}, allow_pickle=True)  # type: ignore[arg-type]

    def read() -> list[Any]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = source_of(split)
            return [found.samples, found.ids.tolist(), found.block_order(np.arange(len(found))).tolist()]

    assert outcomes(split / name, read)["silent"] <= most_silent


def test_a_killed_packing_with_a_damaged_note_is_packed_as_if_new(split: Path) -> None:
    expected = windows_of(split)
    packing = Packing(source_of(split), split.parent / "packed", SETTINGS, QUIET)
    shutil.rmtree(packing.target)
    packing.building.mkdir()
    create_arrays(packing.building, packing.arrays)
    (job,) = packing._jobs(set())
    note, done = packing.building / "done.jsonl", job.run()
    for line in ({"state": packing.state}, asdict(done)):
        append_line(note, sealed(line))
    assert packing._continued() == [done]
    for copy in damaged(note.read_bytes(), COUNT):
        note.write_bytes(copy)
        assert packing._continued() in (None, [], [done])  # a blank more or less between two values is no damage
    assert windows_of(split) == expected


def test_npz_members_are_read_to_their_end_where_the_checksum_is(split: Path) -> None:
    """np.load stops before it and takes a flipped bit of a stored member for data."""
    path, held = split / "episode_0000100.npz", io.BytesIO()
    with np.load(path) as frame:
        np.savez(held, **frame)
    content = bytearray(held.getvalue())
    at = content.index(b"robot_obs.npy") + 13 + 128 + 40  # within the numbers
    content[at] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"episode_0000100\.npz: robot_obs cannot be read: Bad CRC-32"):
        first_frame(split)
