"""Recordings of pictures and texts: whole shards, the same bits for a seed, resumable, never mixed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from calvin_eval.captions.gathering import GatherSettings, _Job, gather, shard_folder
from calvin_eval.captions.questions import KINDS
from calvin_eval.system.errors import UserError
from calvin_eval.worlds.playtable.looks import LOOKS
from calvin_eval.worlds.playtable.scenes import scene_geometry
from calvin_eval.worlds.playtable.variations import like_d

SMALL = GatherSettings(frames=25, shard=10, per_world=5, static=40, gripper=24, questions=6)


@pytest.fixture(scope="module")
def recording(tmp_path_factory) -> Path:
    return gather(tmp_path_factory.mktemp("recording") / "out", SMALL, workers=1)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_recording_holds_what_was_asked_for(recording):
    sizes = []
    for shard in range(3):
        folder = shard_folder(recording, shard)
        index = json.loads((folder / "index.json").read_text())
        static, gripper, states = (
            np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("static", "gripper", "states")
        )
        texts = [json.loads(line) for line in (folder / "texts.jsonl").read_text().splitlines()]
        n = index["frames"]
        assert static.shape == (n, 40, 40, 3) and gripper.shape == (n, 24, 24, 3) and static.dtype == np.uint8
        assert states.shape == (n, len(index["states"])) and states.dtype == np.float32
        assert len(texts) == n and all(len(line) == 6 for line in texts)
        assert {kind for line in texts for kind, _, _ in line} <= set(KINDS) == set(index["kinds"])
        assert set(index["scenes"]) <= set("ABC") and [world["first"] for world in index["worlds"]] == [*range(0, n, 5)]
        assert np.std(static, axis=(1, 2, 3)).min() > 5 and len({picture.tobytes() for picture in static}) == n
        sizes.append(n)
    assert sizes == [10, 10, 5]


def test_a_shard_is_the_same_bits_wherever_it_is_recorded(recording, tmp_path):
    _Job(tmp_path, SMALL)(1)
    assert contents(shard_folder(tmp_path, 1)) == contents(shard_folder(recording, 1))


def test_more_questions_leave_the_pictures_as_they_are(recording, tmp_path):
    _Job(tmp_path, replace(SMALL, questions=2))(2)
    ours, theirs = contents(shard_folder(tmp_path, 2)), contents(shard_folder(recording, 2))
    assert all(ours[f"{name}.npy"] == theirs[f"{name}.npy"] for name in ("static", "gripper", "states"))


def test_other_seeds_and_shards_are_other_pictures(recording, tmp_path):
    _Job(tmp_path, replace(SMALL, seed=1))(2)
    places = ((tmp_path, 2), (recording, 2), (recording, 1))
    static = [np.load(shard_folder(folder, n) / "static.npy") for folder, n in places]
    assert not (static[0] == static[1]).all() and not (static[1] == static[2][:5]).all()


def test_a_killed_recording_goes_on_where_it_was(recording, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "settings.json").write_bytes((recording / "settings.json").read_bytes())
    for shard in (0, 1):
        folder = shard_folder(out, shard)
        folder.mkdir()
        for path in shard_folder(recording, shard).iterdir():
            (folder / path.name).write_bytes(path.read_bytes())
    cut_short = out / ".shard_00002.part"
    cut_short.mkdir()
    (cut_short / "static.npy").write_bytes(b"half")
    before = (shard_folder(out, 0) / "static.npy").stat().st_mtime_ns
    gather(out, SMALL, workers=1)
    assert contents(shard_folder(out, 2)) == contents(shard_folder(recording, 2)) and not cut_short.exists()
    assert (shard_folder(out, 0) / "static.npy").stat().st_mtime_ns == before


def test_a_complete_recording_is_not_touched(recording):
    recording.chmod(0o500)
    try:
        assert gather(recording, SMALL) == recording
    finally:
        recording.chmod(0o700)


def test_recordings_of_other_settings_or_other_code_are_not_mixed(recording, tmp_path):
    with pytest.raises(UserError, match="seed 0, now 5"):
        gather(recording, replace(SMALL, seed=5))
    claim = json.loads((recording / "settings.json").read_text())
    (tmp_path / "settings.json").write_text(json.dumps({**claim, "code": "another"}))
    with pytest.raises(UserError, match="another version of this code"):
        gather(tmp_path, SMALL)


def test_shards_without_settings_are_refused(tmp_path):
    shard_folder(tmp_path, 0).mkdir(parents=True)
    with pytest.raises(UserError, match=r"without settings\.json"):
        gather(tmp_path, SMALL)


def test_scene_d_is_recorded_as_it_is_only_and_says_so(tmp_path):
    with pytest.raises(UserError, match="never varied"):
        replace(SMALL, scenes=("A", "D"))
    settings = replace(SMALL, scenes=("D",), varied=False, frames=5)
    _Job(tmp_path, settings)(0)
    index = json.loads((shard_folder(tmp_path, 0) / "index.json").read_text())
    geometry = scene_geometry("D")
    assert index["scenes"] == ["D"] and like_d(geometry)
    assert index["worlds"][0]["layout"]["switch"] == geometry.switch[0]


def test_training_worlds_are_plain_in_part_and_otherwise_like_no_scene(tmp_path):
    layouts, plain = [], 0
    for shard in range(7):
        for scene, world, _ in _Job(tmp_path, replace(SMALL, frames=200))._worlds(shard, 10):
            same = np.array_equal(world.geometry.button, scene_geometry(scene).button)
            plain += same
            layouts.append(world.geometry)
            assert same == (world.appearance.look.grain == LOOKS[scene].grain)
    assert len(layouts) == 14 and 1 <= plain <= 8
    assert not any(map(like_d, layouts))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"frames": 0}, "settings.frames is 0"),
        ({"plain": 1.5}, "settings.plain is 1.5"),
        ({"scenes": ()}, "settings.scenes"),
        ({"scenes": ("A", "A")}, "settings.scenes"),
        ({"scenes": ("E",)}, "settings.scenes"),
        ({"static": 4}, "settings.static is 4"),
    ],
)
def test_settings_are_checked(wrong, message):
    with pytest.raises(UserError, match=message):
        replace(SMALL, **wrong)


def test_there_must_be_a_worker(tmp_path):
    with pytest.raises(UserError, match="workers must be at least 1"):
        gather(tmp_path, SMALL, workers=0)
