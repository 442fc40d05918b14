"""Kept vision tokens after kills and damage are whole or made again; old ones give way."""

from __future__ import annotations

import io
import json
import multiprocessing
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from token_sets import CAMERAS, SHAPE, Linear, folder_of, small_packed, tokens_of

from calvin_eval.system.files import append_line, read_lines
from calvin_eval.system.sealing import sealed
from mutations import damaged
from roboflamingo.data.errors import DataError
from roboflamingo.data.tokens.making import BLOCK, DONE, TokenFolder
from roboflamingo.data.tokens.reading import INDEX, FrameTokens
from synthetic import pack_split, view, write_split


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    return small_packed(tmp_path)


# --- kills and damage ----------------------------------------------------------------------------


class Killed(Exception):  # noqa: N818 (it stands for a signal)
    pass


@dataclass
class Mortal(Linear):
    """Dies after some calls."""

    calls: int = 0

    def __call__(self, images: np.ndarray) -> np.ndarray:
        if len(self.seen) == self.calls:
            raise Killed
        return super().__call__(images)


@pytest.fixture
def long(tmp_path: Path) -> Path:
    """A packed split of several blocks."""
    write_split(tmp_path / "long" / "training", lengths=[2 * BLOCK + 40])
    return pack_split(tmp_path / "long" / "training", tmp_path / "packed", view(6, 4))


def test_a_killed_process_is_continued_block_by_block(long: Path) -> None:
    with pytest.raises(Killed):
        folder_of(long, Mortal(calls=2)).make()
    folder = folder_of(long, Linear())
    assert folder.problem() == ""  # nothing that could be used
    lines = read_lines(folder.building / DONE)
    assert [line.get("first") for line in lines] == [None, 0, BLOCK]
    rest = Linear()
    folder_of(long, rest).make()
    assert rest.seen == [40]
    assert not folder.building.exists()

    unbroken = folder_of(long, Linear())
    kept = {path.name: path.read_bytes() for path in sorted(folder.target.iterdir()) if path.name != "verified.json"}
    unbroken.make()
    assert kept == {name: (unbroken.target / name).read_bytes() for name in kept}


def test_a_process_that_was_killed_leaves_whole_blocks(long: Path) -> None:
    class Slow(Linear):
        def __call__(self, images: np.ndarray) -> np.ndarray:
            time.sleep(0.02)
            return super().__call__(images)

    for kills in range(1, 4):
        victim = multiprocessing.get_context("fork").Process(target=folder_of(long, Slow()).make)
        victim.start()
        time.sleep(0.01 * kills)
        victim.kill()
        victim.join()
    folder = folder_of(long, Linear())
    folder.make()
    assert folder.problem() is None
    rows = np.arange(folder.packed.frames)
    found = FrameTokens({"rgb_static": [folder.target]}).take("rgb_static", rows)
    np.testing.assert_allclose(found, Linear()(folder.packed.take("rgb_static", rows)), rtol=1e-3, atol=1e-3)


def test_a_block_that_a_kill_left_damaged_is_computed_again(long: Path) -> None:
    with pytest.raises(Killed):
        folder_of(long, Mortal(calls=2)).make()
    folder = folder_of(long, Linear())
    path = folder.building / "tokens.npy"
    with path.open("r+b") as file:
        file.seek(300)
        file.write(b"\xff\x00\xff")
    with (folder.building / DONE).open("ab") as file:
        file.write(b'{"first": 512, "check')  # a line that was cut short
    rest = Linear()
    folder_of(long, rest).make()
    assert rest.seen == [BLOCK, 40]


def test_what_another_encoder_has_begun_is_not_continued(long: Path) -> None:
    folder = folder_of(long, Linear())
    folder.building.mkdir(parents=True)
    append_line(folder.building / DONE, sealed({"key": "another"}))
    append_line(folder.building / DONE, sealed({"first": 0, "crc": 1}))
    whole = Linear()
    folder_of(long, whole).make()
    assert whole.seen == [BLOCK, BLOCK, 40]


@pytest.mark.parametrize("name", [INDEX, "tokens.npy"])
def test_damaged_tokens_are_made_again(packed: Path, name: str) -> None:
    folder = folder_of(packed, Linear())
    folder.make()
    path = folder.target / name
    original = path.read_bytes()
    for content in damaged(original, 60):
        path.write_bytes(content)
        same = name == INDEX and json.loads(original) == _parsed(content)  # a blank more or less is no damage
        assert (folder.problem() is None) == same
    rows = np.arange(folder.packed.frames)
    before = original
    tokens_of(packed, Linear(), 1)
    assert path.read_bytes() == before
    assert len(FrameTokens({"rgb_static": [folder.target]}).take("rgb_static", rows)) == len(rows)


def _parsed(content: bytes) -> object:
    try:
        return json.loads(content)
    except ValueError:
        return None


def test_a_complete_cache_is_read_without_lock_or_write(packed: Path) -> None:
    tokens_of(packed, Linear())
    root = packed.parent / "tokens"
    paths = [root, *root.iterdir()]
    before = [path.stat().st_mtime_ns for path in paths]
    tokens_of(packed, Linear())
    assert [path.stat().st_mtime_ns for path in paths] == before


def test_a_folder_that_cannot_be_written_to_names_the_keys(packed: Path) -> None:
    (packed.parent / "tokens").write_text("a file")
    with pytest.raises(DataError, match=r"set data\.cache to a folder .*, or data\.vision_tokens to never"):
        tokens_of(packed, Linear())


# --- room ----------------------------------------------------------------------------------------


def test_older_tokens_that_no_process_reads_give_way(packed: Path) -> None:
    size = sum(folder_of(packed, Linear()).size for _ in CAMERAS)
    in_use = tokens_of(packed, Linear(1.0), 1)
    gone = tokens_of(packed, Linear(2.0), 1)
    folders = {folder for shifts in gone.folders.values() for folder in shifts}
    del gone
    begun = folder_of(packed, Linear(3.0))
    with pytest.raises(Killed):
        TokenFolder(begun.packed, "rgb_static", (0, 0), SHAPE, Mortal(3.0, calls=0), begun.root).make()
    said = io.StringIO()
    latest = tokens_of(packed, Linear(4.0), 1, Console(file=said, width=300), most=2.5 * size)
    assert f"GB of older vision tokens are removed from {begun.root}" in said.getvalue()
    assert not any(folder.exists() for folder in folders) and not begun.building.exists()
    rows = np.arange(3)
    assert in_use.take("rgb_static", rows).any() and latest.take("rgb_static", rows).any()
    again = Linear(1.0)
    tokens_of(packed, again, 1)
    assert max(again.seen) == 2  # they are there


def test_tokens_stay_where_there_is_room(packed: Path) -> None:
    for scale in (1.0, 2.0, 3.0):
        tokens_of(packed, Linear(scale), 1)
    again = Linear(1.0)
    tokens_of(packed, again, 1)
    assert max(again.seen) == 2
