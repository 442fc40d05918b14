"""Files of LeRobot sets and HDF5 files, damaged by seed: each is refused by name, or as good as before.

What counts as silent: no error, and something else is read. JSON carries no checksum, so a changed letter or digit of
`meta/info.json` cannot always be told; of what we write, tables and videos do.
"""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_hdf5_sources import write_real_robot, write_robomimic

from calvin_eval.system.errors import UserError
from mutations import damaged
from roboflamingo.data.sources import open_source
from roboflamingo.data.sources.base import Frame
from robots import Robot, write_robot

COUNT = 60


def all_of(path: Path) -> list[Any]:
    """Everything that a data set gives."""
    source = open_source(path)
    names = (*source.spec.cameras, *source.spec.state, *source.spec.privileged, "actions")
    frames = list(source.reader(np.arange(len(source))).frames(names))
    found: list[Any] = [source.spec, source.samples, source.episodes.tolist()]
    for frame in frames:
        if not isinstance(frame, Frame):
            raise frame
        found += [{name: value.tobytes() for name, value in frame.arrays.items()}]
    return found


def outcomes(data: Path, file: Path, whole: list[Any], count: int = COUNT) -> Counter[str]:
    """What becomes of damaged copies of a file of a data set."""
    content, found = file.read_bytes(), Counter[str]()
    for copy in damaged(content, count):
        file.write_bytes(copy)
        try:
            found["as before" if all_of(data) == whole else "silent"] += 1
        except UserError:
            found["refused"] += 1
    file.write_bytes(content)
    return found


@pytest.mark.parametrize("images", ["video", "image"])
def test_no_damage_to_a_lerobot_set_of_ours_is_silent(images: str, tmp_path: Path) -> None:
    write_robot(tmp_path / "set", Robot(lengths=(3, 2), images=images), validation=0)
    whole = all_of(tmp_path / "set")
    for file in sorted(p for p in (tmp_path / "set").rglob("*") if p.is_file() and p.suffix != ".json"):
        found = outcomes(tmp_path / "set", file, whole)
        assert found["silent"] == 0, (file, found)
        assert found["refused"] > COUNT / 3, (file, found)


@pytest.mark.parametrize("name", ["info.json", "checksums.json", "roboflamingo.json"])
def test_damage_to_what_describes_a_lerobot_set_has_no_traceback(name: str, tmp_path: Path) -> None:
    write_robot(tmp_path / "set", Robot(lengths=(3, 2)), validation=0)
    file = tmp_path / "set/meta" / name
    if not file.exists():
        part = '{"columns": [0, 1, 2, 3, 4, 5, 6, 7], "kind": "continuous"}'
        file.write_text('{"states": {"state": "joints"}, "actions": {"arm": ' + part + "}}")
    found = outcomes(tmp_path / "set", file, all_of(tmp_path / "set"))
    assert found["refused"] > COUNT / 3, found


def test_damage_to_hdf5_files_has_no_traceback(tmp_path: Path) -> None:
    """HDF5 carries no checksums of its own either, so changed numbers are read as they stand."""
    path = write_robomimic(tmp_path / "set.hdf5")
    assert outcomes(path, path, all_of(path), 40)["refused"] > 10
    real = write_real_robot(tmp_path / "real", (6, 6), size=(4, 6))
    whole = all_of(real)
    assert outcomes(real, real / "train/meta.json", whole, 40)["refused"] > 10
    assert outcomes(real, real / "train/data.hdf5", whole, 40)["refused"] > 5
    shutil.rmtree(real)
