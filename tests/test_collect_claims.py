"""What a collection is known by, who may write it, who acts in it, and how it ends early."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from recordings import tree

from acting import Stubborn
from calvin_eval.calvin import calvin_observation
from calvin_eval.demonstrations.collect import CollectSettings, collect
from calvin_eval.demonstrations.episodes import NO_NOISE, EpisodeSettings, demonstrate_task
from calvin_eval.demonstrations.experts import demonstrate
from calvin_eval.demonstrations.pieces import read_sealed
from calvin_eval.demonstrations.recording import FIRST_FRAME
from calvin_eval.protocol import Memory, Observation, Policy
from calvin_eval.system.errors import UserError
from calvin_eval.system.files import write_json
from calvin_eval.system.locks import folder_lock
from calvin_eval.system.sealing import sealed
from calvin_eval.worlds.playtable.world import PlayTable
from roboflamingo.data.sources.calvin.annotations import read_segments

SETTINGS = CollectSettings(episodes=3, validation_episodes=1, seed=3, episode=EpisodeSettings(tasks=1, max_steps=90))
ABOUT = {"policy_fingerprint": "a" * 64, "execute": 3}
PUSH = np.array([0.4, -0.3, -0.2, 0.0, 0.0, 0.5, 1.0])


class Drifting(Stubborn):
    """Acts on images only, three actions at a time. Notes what is over, and leaves a file when it is closed."""

    def __init__(self, notes: Path | None = None) -> None:
        super().__init__(3, PUSH)
        self.notes, self.ended = notes, list[Memory]()

    def end(self, memory: Memory) -> None:
        self.ended.append(memory)

    def close(self) -> None:
        if self.notes is not None:
            (self.notes / f"closed_{os.getpid()}").touch(exist_ok=False)

    def act(
        self, observations: Sequence[Observation], memories: Sequence[Memory]
    ) -> tuple[np.ndarray, Sequence[Memory]]:
        assert all(
            o.images["rgb_static"].shape == (200, 200, 3) and o.images["rgb_gripper"].shape == (84, 84, 3)
            for o in observations
        )
        return super().act(observations, memories)


def load(notes: Path) -> Policy:
    """Makes the policy and leaves a file for each time that happens."""
    notes.mkdir(parents=True, exist_ok=True)
    (notes / f"{os.getpid()}_{time.monotonic_ns()}").touch()
    return Drifting(notes)


def refuse() -> Policy:
    raise UserError("these weights are of another architecture")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("dagger")


@pytest.fixture(scope="module")
def data(home: Path) -> Path:
    """A data set in which a policy acts first, recorded by two workers."""
    return collect(home, SETTINGS, workers=2, make_policy=partial(load, home / "loads"), about=ABOUT)


def test_a_worker_loads_its_policy_once_and_closes_it(home: Path, data: Path) -> None:
    notes = [file.name.split("_") for file in (home / "loads").iterdir()]
    loads, closed = [words[0] for words in notes if words[0] != "closed"], [w[1] for w in notes if w[0] == "closed"]
    assert len(loads) == len(set(loads)) <= 2
    assert sorted(closed) == sorted(loads)


def test_where_a_policy_acts_frames_carry_the_experts_labels(data: Path) -> None:
    frames = acted = 0
    for segment in read_segments(data / "training"):
        for number in range(segment.start, segment.stop - 1):
            now, after = (np.load(data / "training" / f"episode_{n:07d}.npz") for n in (number, number + 1))
            seen = calvin_observation(None, None, now["robot_obs"], now["scene_obs"])
            np.testing.assert_array_equal(now["rel_actions"], demonstrate(segment.task, seen, "D"))
            moved = after["robot_obs"][:3] - now["robot_obs"][:3]
            frames, acted = frames + 1, acted + int(np.allclose(moved / 0.02, PUSH[:3], atol=0.1))
    assert frames > 30 and acted > 10  # the arm follows the policy's constant push there


def test_a_complete_collection_is_known_by_settings_policy_and_execution(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    again = partial(collect, data.parent, SETTINGS, workers=1)
    before = tree(data)
    again(make_policy=refuse, about=ABOUT)  # the policy is not even made
    assert capsys.readouterr().out == ""
    with pytest.raises(UserError, match=r"other settings \(policy_fingerprint a{16}\.\.\., now b{16}\.\.\.\)"):
        again(make_policy=refuse, about={**ABOUT, "policy_fingerprint": "b" * 64})
    with pytest.raises(UserError, match=r"\(execute 3, now 4\)"):
        again(make_policy=refuse, about={**ABOUT, "execute": 4})
    with pytest.raises(UserError, match=r"\(policy_fingerprint a{16}\.\.\., now none; execute 3, now none\)"):
        again()
    with pytest.raises(UserError, match="does not say which"):
        again(make_policy=refuse)
    assert tree(data) == before


def other_code(folder: Path) -> None:
    claim = json.loads((folder / "settings.json").read_text())
    (folder / "settings.json").write_text(json.dumps({**claim, "code": "f" * 16}))


def test_what_other_code_made_is_kept_and_said_and_what_it_began_is_refused(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = Path(shutil.copytree(data, tmp_path / data.name))
    other_code(copy)
    again = partial(collect, tmp_path, SETTINGS, workers=1, make_policy=refuse, about={**ABOUT, "policy_code": "p"})
    assert again() == copy
    assert "another version of this code made it (ffffffffffffffff, now " in capsys.readouterr().out
    (copy / "validation" / "lang_annotations" / "auto_lang_ann.npy").unlink()
    with pytest.raises(UserError, match=r"begun by another version of this code \(ffff"):
        again()


def as_of_layout_1(data: Path, to: Path) -> Path:
    """A copy as an earlier version would have left it: frames from 0 on, and no word of a layout."""
    copy = Path(shutil.copytree(data, to / data.name))
    claim = json.loads((copy / "settings.json").read_text())
    del claim["layout"]
    (copy / "settings.json").write_text(json.dumps({**claim, "code": "f" * 16}))
    for split in ("training", "validation"):
        for file in sorted((copy / split).glob("episode_*.npz")):
            file.rename(file.with_name(f"episode_{int(file.stem[8:]) - FIRST_FRAME:07d}.npz"))
        counts = read_sealed(copy / split / "counts.json")
        assert counts is not None
        write_json(copy / split / "counts.json", sealed({k: v for k, v in counts.items() if k != "first"}))
    return copy


def test_a_complete_collection_of_an_older_layout_is_kept_and_one_that_was_begun_is_refused(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = as_of_layout_1(data, tmp_path)
    assert collect(tmp_path, SETTINGS, make_policy=refuse, about=ABOUT) == copy
    assert "It has layout 1, now 2: training reads both" in capsys.readouterr().out
    (copy / "validation" / "lang_annotations" / "auto_lang_ann.npy").unlink()
    before = tree(copy)
    with pytest.raises(UserError, match=r"begun by another version .* another layout of folders \(layout 1, now 2\)"):
        collect(tmp_path, SETTINGS, make_policy=refuse, about=ABOUT)
    assert tree(copy) == before


def test_a_complete_collection_without_counts_is_kept(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = as_of_layout_1(data, tmp_path)
    claim = json.loads((copy / "settings.json").read_text())
    (copy / "settings.json").write_text(json.dumps({**claim["settings"]}))
    (copy / "collection.json").write_text("{}")
    for split in ("training", "validation"):
        (copy / split / "counts.json").unlink()
    assert collect(tmp_path, SETTINGS) == copy
    assert "(an older one, now " in capsys.readouterr().out


def test_a_lost_frame_of_a_complete_collection_is_named(data: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(data, tmp_path / data.name))
    (copy / "training" / "episode_0000071.npz").unlink()
    with pytest.raises(UserError, match=r"training/episode_0000071\.npz is missing, and 0 frames besides"):
        collect(tmp_path, SETTINGS, make_policy=refuse, about=ABOUT)


def test_an_account_that_is_lost_is_written_again(data: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(data, tmp_path / data.name))
    report = json.loads((copy / "collection.json").read_text())
    (copy / "collection.json").unlink()
    collect(tmp_path, SETTINGS, make_policy=refuse, about=ABOUT)
    again = json.loads((copy / "collection.json").read_text())
    for key in ("training", "validation", "settings", "about"):
        assert again[key] == report[key]


def test_a_data_set_of_another_origin_is_not_claimed(data: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(data, tmp_path / data.name))
    (copy / "settings.json").unlink()
    before = tree(copy)
    with pytest.raises(UserError, match="was not collected here"):
        collect(tmp_path, SETTINGS)
    assert tree(copy) == before


def test_a_folder_is_claimed_by_its_first_episode_and_users_errors_come_out_of_workers_as_they_are(
    tmp_path: Path,
) -> None:
    with pytest.raises(UserError, match=r"^these weights are of another architecture$"):
        collect(tmp_path, SETTINGS, workers=1, make_policy=refuse, about=ABOUT)
    assert not list((tmp_path / SETTINGS.name).iterdir())


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    with (
        folder_lock(tmp_path / SETTINGS.name, "roboflamingo collect"),
        pytest.raises(UserError, match=r"task_D_D is in use by roboflamingo collect, process \d+"),
    ):
        collect(tmp_path, SETTINGS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"workers": -1}, "workers must be at least 1, not -1"),
        ({"settings": CollectSettings(episode=EpisodeSettings(render=False))}, "recording needs images"),
    ],
)
def test_what_cannot_be_recorded_is_refused_before_anything_is_made(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        collect(tmp_path, **{"settings": SETTINGS, **change})
    assert not list(tmp_path.iterdir())


# --- stopped and continued --------------------------------------------------------------------


PROGRAM = """
import sys
from functools import partial
from pathlib import Path
from calvin_eval.demonstrations.collect import collect
from calvin_eval.system.signals import Stopped, stop_signals
from test_collect_claims import ABOUT, SETTINGS, load
if __name__ == "__main__":
    out = Path(sys.argv[1])
    try:
        with stop_signals():
            collect(out, SETTINGS, workers=2, make_policy=partial(load, out / "loads"), about=ABOUT)
    except Stopped as stopped:
        sys.exit(128 + stopped.signal)
"""


def alive(process: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{process}/status").read_text()
    except FileNotFoundError:
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_a_stopped_collection_leaves_no_worker_and_goes_on_to_the_same_data(
    data: Path, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    environment = {**os.environ, "PYTHONPATH": ":".join(sys.path)}
    process = subprocess.Popen([sys.executable, tmp_path / "program.py", tmp_path / "out"], env=environment)
    claim = tmp_path / "out" / SETTINGS.name / "settings.json"
    wait_for(claim.exists, 60)
    workers = [int(file.name.split("_")[0]) for file in (tmp_path / "out" / "loads").iterdir()]
    process.send_signal(number)
    assert process.wait(10) == code
    wait_for(lambda: not any(map(alive, workers)), 2)

    again = collect(tmp_path / "out", SETTINGS, workers=1, make_policy=partial(load, tmp_path / "l"), about=ABOUT)
    ours, theirs = tree(again), tree(data)
    assert ours.keys() == theirs.keys()
    assert {name for name in ours if ours[name] != theirs[name]} <= {"collection.json"}
    one, two = (json.loads((folder / "collection.json").read_text()) for folder in (again, data))
    for key in ("training", "validation"):
        assert one[key] == two[key]
    frames = sum(two[key]["frames"] for key in ("training", "validation"))
    assert one["per_1000_frames"]["seconds"] == pytest.approx(1000 * one["seconds"] / frames)


def wait_for(happened: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.05)


# --- policies that act first ------------------------------------------------------------------


@pytest.fixture(scope="module")
def world() -> PlayTable:
    return PlayTable("D")


def demonstration(world: PlayTable, actor: Policy, render: bool = False) -> Any:
    settings = EpisodeSettings(max_steps=40, noise=NO_NOISE, render=render)
    observation = world.reset(render=False)
    return demonstrate_task(world, observation, "open_drawer", "pull", settings, np.random.default_rng(1), actor)


def test_a_policy_sees_images_where_it_looks_though_none_are_recorded(world: PlayTable) -> None:
    actor = Drifting()
    segment = demonstration(world, actor)
    assert len(actor.batches) >= 3 and actor.ended == [1]
    assert all(not observation.images for observation in segment.observations)


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (np.zeros((0, 7)), r"actions of shape \(1, 0, 7\); 1 episodes need \(1, K, 7\) with K of at least 1"),
        (np.zeros((2, 6)), r"shape \(1, 2, 6\)"),
        (np.full((2, 7), np.nan), "not finite"),
    ],
)
def test_a_policy_that_gives_no_usable_actions_is_refused(world: PlayTable, action: np.ndarray, message: str) -> None:
    actor = Drifting()
    actor.chunk = action
    with pytest.raises(UserError, match=message):
        demonstration(world, actor)
    assert actor.ended == [1]


def test_a_policy_is_not_made_to_act_blindly() -> None:
    with PlayTable("D", renderer="none") as blind, pytest.raises(UserError, match=r"renders nothing \(none\)"):
        demonstration(blind, Drifting())
