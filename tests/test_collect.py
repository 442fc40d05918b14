"""Collecting: the same data whoever records it, in CALVIN's layout, after any kill."""

from __future__ import annotations

import json

import numpy as np
import pytest

from calvin_eval.demonstrations.collect import CollectSettings, collect
from calvin_eval.demonstrations.episodes import EpisodeSettings
from roboflamingo.data.sources.calvin.annotations import read_segments
from roboflamingo.data.sources.calvin.plain import load_plain_dict

SETTINGS = CollectSettings(episodes=3, validation_episodes=1, seed=3, episode=EpisodeSettings(tasks=2, max_steps=150))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return collect(tmp_path_factory.mktemp("data"), SETTINGS, workers=1)


def test_the_folder_has_calvins_name_and_files(data):
    assert data.name == "task_D_D"
    for split in ("training", "validation"):
        for name in (
            "ep_start_end_ids.npy",
            "ep_lens.npy",
            "statistics.yaml",
            ".hydra/merged_config.yaml",
        ):
            assert (data / split / name).is_file(), name
        assert not (data / split / ".pieces").exists()


def test_every_annotated_frame_is_there_and_labels_are_the_experts(data):
    from calvin_eval.calvin import calvin_observation
    from calvin_eval.demonstrations.experts import demonstrate

    segments = read_segments(data / "training")
    assert segments
    for segment in segments:
        for frame in range(segment.start, segment.stop):
            with np.load(data / "training" / f"episode_{frame:07d}.npz") as file:
                seen = calvin_observation(None, None, file["robot_obs"], file["scene_obs"])
                np.testing.assert_array_equal(file["rel_actions"], demonstrate(segment.task, seen, "D"))
                assert file["rgb_static"].shape == (200, 200, 3) and file["rgb_gripper"].shape == (84, 84, 3)


def test_every_segment_ends_at_a_frame_that_is_there_and_every_episode_at_its_final_observation(data):
    for split in ("training", "validation"):
        folder = data / split
        ends = {segment.stop for segment in read_segments(folder)}
        for _, last in np.load(folder / "ep_start_end_ids.npy"):
            assert last in ends  # an episode ends with a demonstration
            with np.load(folder / f"episode_{last:07d}.npz") as file:
                assert not file["rel_actions"][:6].any()
        assert all((folder / f"episode_{end:07d}.npz").is_file() for end in ends)


def test_the_number_of_workers_does_not_change_the_data(data, tmp_path):
    again = collect(tmp_path, SETTINGS, workers=2)
    ours, theirs = (sorted((folder / "training").glob("episode_*.npz")) for folder in (data, again))
    assert [file.name for file in ours] == [file.name for file in theirs]
    for one, two in zip(ours[::20], theirs[::20], strict=True):
        with np.load(one) as a, np.load(two) as b:
            for key in a.files:
                np.testing.assert_array_equal(a[key], b[key])


def test_a_finished_collection_is_left_alone_and_other_settings_are_refused(data):
    before = (data / "training" / "statistics.yaml").stat().st_mtime_ns
    collect(data.parent, SETTINGS, workers=1)
    assert (data / "training" / "statistics.yaml").stat().st_mtime_ns == before
    with pytest.raises(ValueError, match=r"other settings \(seed 3, now 4\)"):
        collect(data.parent, CollectSettings(episodes=3, validation_episodes=1, seed=4, episode=SETTINGS.episode))


def test_disk_and_time_per_1000_frames_are_reported(data):
    report = json.loads((data / "collection.json").read_text())
    assert report["per_1000_frames"]["seconds"] > 0 and report["per_1000_frames"]["megabytes"] > 0
    assert report["made_with"]["git"]


def test_scene_info_names_the_scene_of_every_frame(data):
    info = load_plain_dict(data / "training" / "scene_info.npy")
    spans = np.load(data / "training" / "ep_start_end_ids.npy")
    assert {name: list(span) for name, span in info.items()} == {"calvin_scene_D": [spans[0][0], spans[-1][1]]}


@pytest.mark.parametrize("wrong", [{"scenes": "E"}, {"episodes": 0}])
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(ValueError, match=r"scene|episodes"):
        CollectSettings(**wrong)
