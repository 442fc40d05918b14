"""Recordings are CALVIN folders that CALVIN's loaders and converters read; neither kill nor order leaves a trace."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from recordings import FIRST, SECOND, Episodes, cut, record, three_episodes, tree

from calvin_eval.benchmark.tasks import TASKS
from calvin_eval.demonstrations.frames import absolute_action
from calvin_eval.demonstrations.recording import FIRST_FRAME, Recorder
from calvin_eval.demonstrations.scene_config import merged_config
from calvin_eval.system.errors import UserError
from roboflamingo.data.sources.calvin.annotations import read_segments
from roboflamingo.data.sources.calvin.plain import load_plain_dict

FRAMES = 57
"""Recorded of `three_episodes`."""


@pytest.fixture(scope="module")
def episodes() -> Episodes:
    return three_episodes()


@pytest.fixture(scope="module")
def split(episodes: Episodes, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("task_D_D") / "training"
    record(folder, episodes).finish()
    return folder


def frame(split: Path, number: int) -> dict[str, np.ndarray]:
    with np.load(split / f"episode_{number:07d}.npz") as arrays:
        return dict(arrays)


def relative_by_calvin(actions: np.ndarray, robot_obs: np.ndarray) -> np.ndarray:
    """CALVIN's relative action from the absolute one and the measured pose (CALVIN SPEC 1.4)."""
    away = actions[:6] - robot_obs[:6]
    away[3:] = (away[3:] + np.pi) % (2 * np.pi) - np.pi
    step = np.array([0.02] * 3 + [0.05] * 3)
    return np.append(np.clip(away, -step, step) / step, actions[6])


def test_frames_read_back_to_the_bit_with_calvin_s_keys_and_types(split: Path, episodes: Episodes) -> None:
    segment = episodes[0][0]
    for number, (observation, label) in enumerate(zip(segment.observations, segment.labels, strict=False)):
        arrays = frame(split, FIRST_FRAME + number)
        assert {key: (str(a.dtype), a.shape) for key, a in arrays.items()} == {
            "actions": ("float64", (7,)),
            "rel_actions": ("float64", (7,)),
            "robot_obs": ("float64", (15,)),
            "scene_obs": ("float64", (24,)),
            "rgb_static": ("uint8", (200, 200, 3)),
            "rgb_gripper": ("uint8", (84, 84, 3)),
        }
        for key, value in {**observation.images, **observation.state, **observation.privileged}.items():
            np.testing.assert_array_equal(arrays[key], value)
        np.testing.assert_array_equal(arrays["rel_actions"], label)


def test_both_action_arrays_are_one_action_by_calvin_s_formula(split: Path) -> None:
    for number in range(FIRST_FRAME, FIRST_FRAME + FRAMES):
        arrays = frame(split, number)
        relative = relative_by_calvin(arrays["actions"], arrays["robot_obs"])
        np.testing.assert_allclose(arrays["rel_actions"], relative, rtol=0, atol=1e-6)
        assert (np.abs(arrays["actions"][3:6]) <= np.pi).all()


def test_absolute_angles_stay_within_a_turn() -> None:
    robot_obs, label = np.zeros(15), np.array([1.0, -1, 0.5, 1, -1, 0.2, -1])
    robot_obs[3:6] = 3.13, -3.12, 3.135
    actions = absolute_action(label, robot_obs)
    np.testing.assert_allclose(actions[3:6], [3.18 - 2 * np.pi, 2 * np.pi - 3.17, 3.145 - 2 * np.pi])
    np.testing.assert_allclose(relative_by_calvin(actions, robot_obs), label, rtol=0, atol=1e-6)


def test_an_episode_ends_with_its_final_observation_where_the_robot_stands_still(
    split: Path, episodes: Episodes
) -> None:
    for (_, last), segment in zip(
        np.load(split / "ep_start_end_ids.npy"), (episodes[0][1], episodes[1][0]), strict=True
    ):
        arrays = frame(split, last)
        np.testing.assert_array_equal(arrays["rgb_static"], segment.observations[-1].images["rgb_static"])
        np.testing.assert_array_equal(arrays["robot_obs"], segment.observations[-1].state["robot_obs"])
        np.testing.assert_array_equal(arrays["rel_actions"], [0, 0, 0, 0, 0, 0, segment.labels[-1][6]])
        np.testing.assert_allclose(arrays["actions"][:6], arrays["robot_obs"][:6], rtol=0, atol=1e-12)


def test_frames_are_compressed(split: Path) -> None:
    file = split / "episode_0000064.npz"
    assert file.stat().st_size < sum(array.nbytes for array in frame(split, FIRST_FRAME).values()) / 2


def test_only_what_the_oracle_called_solved_is_kept(split: Path) -> None:
    assert len(list(split.glob("episode_*.npz"))) == FRAMES == 20 + 18 + 1 + 17 + 1
    assert [(s.start, s.stop, s.task, s.instruction) for s in read_segments(split)] == [
        (64, 84, FIRST, f"please {FIRST}"),
        (84, 102, SECOND, f"please {SECOND}"),
        (103, 120, FIRST, f"please {FIRST}"),
    ]


def test_segments_and_episodes_are_what_calvin_s_loaders_and_converters_need(split: Path) -> None:
    shortest_window, longest_window = 16, 64  # of CALVIN's configurations
    ids = {int(file.stem.removeprefix("episode_")) for file in split.glob("episode_*.npz")}
    spans = np.load(split / "ep_start_end_ids.npy")
    assert ids == {number for first, last in spans for number in range(first, last + 1)}
    for _, last in spans:
        assert last > longest_window  # the disk loader asserts this
    for start, end in load_plain_dict(split / "lang_annotations" / "auto_lang_ann.npy")["info"]["indx"]:
        assert end >= longest_window  # likewise
        assert set(range(start, end + 1)) <= ids  # converters take the end to be included
        ((first, last),) = [span for span in spans if span[0] <= start <= span[1]]
        assert end <= last  # shared memory holds an episode's frames but for the last
        assert start in range(first, last + 1 - shortest_window)  # where the shared-memory loader looks it up
        assert end - start >= shortest_window


@pytest.mark.parametrize(
    ("frames", "segments", "recorded", "short"),
    [
        ((16, 18), [(64, 80), (80, 98)], 35, 0),
        ((15, 18), [(64, 82)], 19, 1),  # too short at the start: left out
        ((20, 15), [(64, 84)], 21, 1),  # too short at the end: likewise
        ((20, 15, 16), [(64, 84), (99, 115)], 52, 1),  # between others: kept without annotation
        ((15, 3), [], 0, 2),
    ],
)
def test_a_task_that_is_too_short_to_be_a_demonstration_is_not_annotated(
    tmp_path: Path,
    episodes: Episodes,
    frames: tuple[int, ...],
    segments: list[tuple[int, int]],
    recorded: int,
    short: int,
) -> None:
    recorder = Recorder(tmp_path / "training", "D")
    recorder.write(0, "D", [cut(episodes[0][number % 2], length) for number, length in enumerate(frames)])
    if not segments:
        with pytest.raises(UserError, match="no solved demonstration of 16 frames or more"):
            recorder.finish()
        recorder.write(1, "D", [episodes[1][0]])
        segments, recorded = [(64, 81)], 18
    counts = recorder.finish()
    assert [(s.start, s.stop) for s in read_segments(recorder.folder)] == segments
    assert (counts["frames"], counts["short"]) == (recorded, short)


def test_annotations_have_calvin_s_layout(split: Path) -> None:
    content = load_plain_dict(split / "lang_annotations" / "auto_lang_ann.npy")
    assert content["info"]["indx"] == [(64, 84), (84, 102), (103, 120)]
    assert content["info"]["episodes"] == []
    assert content["language"]["emb"].shape == (3, 1, 384)
    embeddings = load_plain_dict(split / "lang_annotations" / "embeddings.npy")
    assert list(embeddings) == list(TASKS)
    assert embeddings["open_drawer"]["emb"][0].shape == (1, 384)
    assert len(embeddings["open_drawer"]["ann"]) == 1


def test_episodes_are_indexed_inclusively(split: Path) -> None:
    assert np.load(split / "ep_start_end_ids.npy").tolist() == [[64, 102], [103, 120]]
    assert np.load(split / "ep_lens.npy").tolist() == [39, 18]


def test_only_training_says_which_frames_show_which_scene(tmp_path: Path, episodes: Episodes) -> None:
    for name in ("training", "validation"):
        recorder = Recorder(tmp_path / name, "BA")
        recorder.write(0, "B", episodes[0])
        recorder.write(1, "A", episodes[1])
        recorder.finish()
    scenes = load_plain_dict(tmp_path / "training" / "scene_info.npy")
    assert scenes == {"calvin_scene_B": [64, 102], "calvin_scene_A": [103, 120]}
    assert not (tmp_path / "validation" / "scene_info.npy").exists()


def test_statistics_are_those_of_the_frames(split: Path) -> None:
    statistics = yaml.safe_load((split / "statistics.yaml").read_text())
    frames = [frame(split, number) for number in range(FIRST_FRAME, FIRST_FRAME + FRAMES)]
    for key in ("robot_obs", "scene_obs"):
        (entry,) = statistics[key]
        values = np.array([arrays[key] for arrays in frames])
        assert entry["_target_"] == "calvin_agent.utils.transforms.NormalizeVector"
        np.testing.assert_allclose(entry["mean"], values.mean(0), atol=1e-12)
        spread = values.std(0)
        np.testing.assert_allclose(entry["std"], np.where(spread > 1e-6, spread, 1.0), rtol=1e-5)
    actions = np.array([arrays["actions"] for arrays in frames])
    np.testing.assert_array_equal(statistics["act_min_bound"], actions.min(0))
    np.testing.assert_array_equal(statistics["act_max_bound"], actions.max(0))


def test_the_configuration_has_the_keys_and_values_that_calvin_s_own_has(split: Path, reference: Path) -> None:
    ours = yaml.safe_load((split / ".hydra" / "merged_config.yaml").read_text())
    theirs = yaml.safe_load((reference / "merged_config_like_D.yaml").read_text())
    for key in ("cameras", "env", "scene", "robot", "seed", "use_vr", "data_path"):
        assert ours[key] == theirs[key]


@pytest.mark.parametrize("scene", "ABCD")
def test_the_configuration_lists_blocks_in_the_scene_s_own_order(scene: str) -> None:
    order = {"A": "pink blue red", "B": "red blue pink", "C": "blue red pink", "D": "red blue pink"}[scene]
    blocks = merged_config(scene)["scene"]["objects"]["movable_objects"]
    assert list(blocks) == [f"block_{colour}" for colour in order.split()]


def test_the_order_of_writing_leaves_no_trace(tmp_path: Path, split: Path, episodes: Episodes) -> None:
    record(tmp_path / "training", episodes, order=(2, 0, 1)).finish()
    assert tree(tmp_path / "training") == tree(split)


def test_several_processes_fill_one_split(tmp_path: Path, split: Path, episodes: Episodes) -> None:
    recorder = Recorder(tmp_path / "training", "D")
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        counts = list(pool.map(recorder.write, range(3), "DDD", episodes))
    assert counts == [39, 18, 0]
    recorder.finish()
    assert tree(tmp_path / "training") == tree(split)


def test_an_episode_that_was_cut_short_counts_as_missing_and_is_written_anew(
    tmp_path: Path, split: Path, episodes: Episodes
) -> None:
    recorder = record(tmp_path / "training", episodes, order=(0, 2))
    broken = replace(episodes[1][0], observations=list(episodes[1][0].observations))
    broken.observations[3] = replace(broken.observations[3], privileged={})
    with pytest.raises(ValueError, match="scene_obs"):
        recorder.write(1, "D", [broken])
    assert [recorder.has(number) for number in range(3)] == [True, False, True]
    recorder.write(1, "D", episodes[1])
    recorder.finish()
    assert tree(tmp_path / "training") == tree(split)


class Killed(BaseException):
    """Ends a call from within, as a kill would."""


@pytest.mark.parametrize("at", [1, 2])
def test_finishing_goes_on_after_a_kill(tmp_path: Path, split: Path, episodes: Episodes, at: int) -> None:
    def kill(done: int, total: int) -> None:
        if done == at:
            raise Killed

    with pytest.raises(Killed):
        record(tmp_path / "training", episodes).finish(kill)
    again = Recorder(tmp_path / "training", "D")
    assert not again.finished
    assert all(again.has(number) for number in range(3))
    assert again.finish()["frames"] == FRAMES
    assert again.finished
    assert tree(tmp_path / "training") == tree(split)


def test_counts_are_reported(tmp_path: Path, episodes: Episodes) -> None:
    counts = record(tmp_path / "training", episodes).finish()
    size = sum(file.stat().st_size for file in (tmp_path / "training").glob("*.npz"))
    per_task = {SECOND: 1, FIRST: 2}
    assert counts == {
        "episodes": 2,
        "segments": 3,
        "frames": FRAMES,
        "first": FIRST_FRAME,
        "bytes": size,
        "short": 0,
        "segments_per_task": per_task,
    }
    assert Recorder(tmp_path / "training", "D").counts() == counts


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"privileged": {}}, "needs scene_obs"),
        ({"images": {"rgb_static": np.zeros((8, 8, 3), np.uint8)}}, "needs images; choose a renderer"),
    ],
)
def test_frames_without_state_or_images_are_refused(
    tmp_path: Path, episodes: Episodes, change: dict[str, Any], message: str
) -> None:
    segment = episodes[0][0]
    blind = replace(segment, observations=[replace(o, **change) for o in segment.observations])
    with pytest.raises(ValueError, match=message):
        Recorder(tmp_path / "training", "D").write(0, "D", [blind])


def test_nothing_solved_is_nothing_to_finish(tmp_path: Path, episodes: Episodes) -> None:
    recorder = record(tmp_path / "training", [episodes[2]])
    with pytest.raises(ValueError, match="no solved demonstration"):
        recorder.finish()
