"""Which samples are trained on, and how they vary: subsets, wordings, window lengths, ends of segments."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

from calvin_eval.system.errors import UserError
from roboflamingo.data.errors import DataError
from roboflamingo.data.lists import read_subset, read_wordings
from roboflamingo.data.sampling import BatchNumbers, WindowStream
from roboflamingo.data.sources import open_source
from roboflamingo.data.sources.base import SourceOptions
from roboflamingo.data.sources.calvin.plain import load_plain_dict
from roboflamingo.data.variety import Variety
from roboflamingo.data.windows import Windows
from roboflamingo.training.config_parts import ConfigError, DataConfig
from roboflamingo.training.datamodule import open_windows
from roboflamingo.training.train import train
from runs import losses, tiny_policy, tiny_run
from synthetic import QUIET, pack_split, source_of, view, write_dataset, write_split

BOUNDS = [(100, 109), (111, 116), (118, 130), (132, 139)]
"""The segments of `write_split`."""


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    return write_dataset(tmp_path / "set")


def opened(tmp_path: Path, *folders: Path, **data: object) -> Windows:
    config = tiny_run(tmp_path / "run", folders[0], validation_windows=0)
    chosen: dict[str, object] = {"folders": {str(folder): 1.0 for folder in folders}, "pack_processes": 1}
    config.data = DataConfig(**(chosen | data))  # type: ignore[arg-type]
    return open_windows(config, QUIET)[0]


# --- subsets -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("pairs.json", json.dumps([[132, 139], [100, 109]])),
        ("numbers.json", "[3, 0]"),
        ("pairs.txt", "# two of them\n132 139\n\n100, 109\n"),
        ("numbers.txt", "0\n3  # the last\n"),
        ("numbers.npy", np.array([0, 3])),
        ("pairs.npy", np.array([[100, 109], [132, 139]])),
    ],
)
def test_a_list_chooses_segments_by_number_or_by_their_bounds(
    dataset: Path, tmp_path: Path, name: str, content: str | np.ndarray
) -> None:
    path = tmp_path / name
    np.save(path, content) if isinstance(content, np.ndarray) else path.write_text(content)
    windows = opened(tmp_path, dataset, subset={str(dataset): str(path)})
    assert windows.instructions == ("please open drawer 0", "please turn on led 3")
    assert len(windows) == 9 + 7


def test_a_list_is_of_one_folder_and_others_stay_whole(dataset: Path, tmp_path: Path) -> None:
    other = write_dataset(tmp_path / "other", seed=5)
    (tmp_path / "list.txt").write_text("1\n")
    windows = opened(tmp_path, dataset, other, subset={str(other): str(tmp_path / "list.txt")})
    assert windows.samples.folders.tolist() == [0, 0, 0, 0, 1]
    assert windows.tasks[-1] == "close_drawer"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[4]", r"list\.json names segment 4; the data set has 0 to 3"),
        ("[-1]", r"names segment -1"),
        ("[[100, 108]]", r"names frames \(100, 108\), which are no segment of the data"),
        ("[0, 0]", "names 0 twice"),
        ("[]", "at least one"),
        ("[1, [100, 109]]", "numbers of segments, or pairs"),
        ('["one"]', "entry 0: 'one' is no number"),
        ('{"a": 1}', "holds a dict"),
        ("[1", "cannot be read as a list of segments"),
    ],
)
def test_a_list_that_cannot_be_is_named(dataset: Path, tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "list.json").write_text(content)
    with pytest.raises(DataError, match=message):
        opened(tmp_path, dataset, subset={str(dataset): str(tmp_path / "list.json")})


def test_a_list_of_another_folder_and_a_missing_one_are_named(dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.subset names elsewhere, which is none of data\.folders"):
        DataConfig(folders={"a": 1.0}, subset={"elsewhere": "list.txt"})
    with pytest.raises(DataError, match=r"gone\.txt is missing; data\.subset names it"):
        opened(tmp_path, dataset, subset={str(dataset): str(tmp_path / "gone.txt")})


def test_the_references_list_of_a_tenth_is_such_a_list() -> None:
    path = Path(__file__).parents[1] / ".." / "shared" / "calvin" / "partial_task_data.json"
    if not path.is_file():
        pytest.skip("needs ../shared/calvin/partial_task_data.json")
    pairs = read_subset(path)
    assert len(pairs) == 2312 and pairs[0] == (1460644, 1460683)


# --- wordings ------------------------------------------------------------------------------------


def test_wordings_are_drawn_as_often_as_the_annotated_sentence(dataset: Path, tmp_path: Path) -> None:
    path = tmp_path / "wordings.yaml"
    path.write_text(yaml.safe_dump({"open_drawer": ["pull it", "slide it out"], "unknown_task": ["hm"]}))
    windows = opened(tmp_path, dataset, wordings=str(path))
    assert windows.wordings[-2:] == ["pull it", "slide it out"] and len(windows.wordings) == 6
    numbers = [place * len(windows) + 4 for place in range(300)]  # a window of open_drawer
    said = Counter(windows.__getitems__(numbers)["instruction"])
    assert set(said) == {"please open drawer 0", "pull it", "slide it out"} and min(said.values()) > 70
    assert windows.__getitems__([len(windows) * 5 + 10])["instruction"] == ["please close drawer 1"]
    assert windows.__getitems__(numbers)["instruction"] == windows.__getitems__(numbers)["instruction"]


def test_wordings_alone_stand_in_for_annotated_sentences_of_both_splits(dataset: Path, tmp_path: Path) -> None:
    path, tasks = tmp_path / "numbers.yaml", ["open_drawer", "close_drawer", "push_red_block_left", "turn_on_led"]
    path.write_text(yaml.safe_dump({task: [f"task {i}"] for i, task in enumerate(tasks)} | {tasks[0]: ["a", "b"]}))
    config = tiny_run(tmp_path / "run", dataset)
    config.data = replace(config.data, wordings=str(path), only_wordings=True)
    training, held_out = open_windows(config, QUIET)
    assert held_out is not None and held_out.instructions == ("a", "task 1")
    assert training.wordings == ["a", "task 1", "task 2", "task 3", "b"]
    said = Counter(training.__getitems__([place * len(training) + 4 for place in range(100)])["instruction"])
    assert set(said) == {"a", "b"} and min(said.values()) > 30


def test_wordings_alone_must_name_every_task_and_a_file(dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "some.yaml").write_text(yaml.safe_dump({"open_drawer": ["pull"]}))
    with pytest.raises(DataError, match=r"data\.wordings has none for close_drawer"):
        opened(tmp_path, dataset, wordings=str(tmp_path / "some.yaml"), only_wordings=True)
    with pytest.raises(ConfigError, match=r"data\.only_wordings does nothing without data\.wordings"):
        DataConfig(folders={"a": 1.0}, only_wordings=True)


def test_the_references_enriched_sentences_are_wordings() -> None:
    path = Path(__file__).parents[1] / ".." / "shared" / "calvin" / "enrich_lang_annotations.json"
    if not path.is_file():
        pytest.skip("needs ../shared/calvin/enrich_lang_annotations.json")
    assert len(read_wordings(path, ["open_drawer"])) == 34


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1]", "a mapping from tasks to sentences is needed"),
        ("{open_drawer: []}", "open_drawer needs a list of sentences, at least one"),
        ("{open_drawer: pull}", "open_drawer needs a list"),
        ("{open_drawer: [1]}", "open_drawer: 1 is no text"),
        ("{other: [pull]}", "none is a task of the data"),
        ("{a: [", "cannot be read as sentences by task"),
    ],
)
def test_wordings_that_cannot_be_are_named(dataset: Path, tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "wordings.yaml").write_text(content)
    with pytest.raises(DataError, match=message):
        opened(tmp_path, dataset, wordings=str(tmp_path / "wordings.yaml"))


# --- lengths of windows --------------------------------------------------------------------------


@pytest.mark.parametrize("grows", [False, True])
def test_windows_of_any_length_between_two_bounds(dataset: Path, tmp_path: Path, grows: bool) -> None:
    folder = pack_split(dataset / "training", tmp_path, view(8, 6))
    shape = {"window": 4, "chunk": 2, "grows": grows}
    whole = Windows([folder], **shape)  # type: ignore[arg-type]
    varied = Windows([folder], **shape, variety=Variety(seed=3, shortest=2))  # type: ignore[arg-type]
    numbers = [place * len(varied) + 8 for place in range(200)]  # the last window of the first segment
    batch, all_frames = varied.__getitems__(numbers), whole.__getitems__([8])
    lengths = batch["frame_mask"].sum(1)
    assert Counter(lengths).keys() == {2, 3, 4} and min(Counter(lengths).values()) > 40
    for i, length in enumerate(lengths.tolist()):
        shown = batch["robot_obs"][i][batch["frame_mask"][i]]
        np.testing.assert_array_equal(shown, all_frames["robot_obs"][0, 4 - length :])
        assert batch["frame_mask"][i, 0 if grows else 3] and batch["actions"][i].shape == (4, 2, 7)
    assert varied.__getitems__([0])["frame_mask"].sum() == 1  # no past is made up


def test_the_shortest_window_is_within_the_window(dataset: Path, tmp_path: Path) -> None:
    data = DataConfig(folders={str(dataset): 1.0}, shortest_window=3)
    with pytest.raises(ConfigError, match=r"data\.shortest_window is 3, and policy\.window 2"):
        tiny_run(tmp_path / "run", dataset).__class__(run="r", data=data, policy=tiny_policy(), max_steps=1)


def test_places_in_the_stream_tell_one_draw_from_the_next() -> None:
    stream = WindowStream(np.ones(7), 1)
    plain, placed = BatchNumbers(stream, 3, start=2), BatchNumbers(stream, 3, start=2, places=True)
    for batch, (numbers, both) in enumerate(zip(plain, placed, strict=True), start=2):
        assert [number % 7 for number in both] == numbers
        assert [number // 7 for number in both] == [batch * 3, batch * 3 + 1, batch * 3 + 2]
        if batch == 9:
            break


def test_a_run_with_variety_continues_as_if_never_stopped(dataset: Path, tmp_path: Path) -> None:
    path = tmp_path / "wordings.yaml"
    path.write_text(yaml.safe_dump({"open_drawer": ["pull it"]}))

    def run(name: str, steps: int) -> list[float]:
        config = tiny_run(tmp_path / name, dataset, max_steps=steps, validation_windows=0, loggers=["jsonl"])
        config.policy.window, config.optimizer.schedule = 3, "constant"
        config.data.shortest_window, config.data.wordings = 1, str(path)
        train(config, console=QUIET)
        return losses(tmp_path / name)

    whole = run("whole", 4)
    run("cut", 2)
    assert run("cut", 4) == whole
    path.write_text(yaml.safe_dump({"open_drawer": ["push it"]}))
    with pytest.raises(ConfigError, match="began with other data"):
        run("cut", 5)


# --- CALVIN's folders ----------------------------------------------------------------------------


def test_the_end_of_a_segment_is_read_in_either_way(dataset: Path) -> None:
    exclusive, inclusive = (
        open_source(dataset, options=SourceOptions(segment_ends=ends)) for ends in ("exclusive", "inclusive")
    )
    assert [s.stop - s.first for s in exclusive.samples] == [9, 5, 12, 7]
    assert [s.stop - s.first for s in inclusive.samples] == [10, 6, 13, 8]
    assert [s.bounds for s in exclusive.samples] == [s.bounds for s in inclusive.samples] == BOUNDS
    assert exclusive.notes != inclusive.notes


def test_ids_of_frames_need_not_be_contiguous(tmp_path: Path) -> None:
    write_split(tmp_path / "training", lengths=[3])
    folder = tmp_path / "training"
    for path in sorted(folder.glob("*.npz"))[::-1]:  # 100-104 become 100-101 and 502-504
        number = int(path.stem.removeprefix("episode_"))
        path.rename(path.with_name(f"episode_{number + 400 * (number > 101):07d}.npz"))
    notes = load_plain_dict(folder / "lang_annotations" / "auto_lang_ann.npy")
    notes["info"]["indx"] = [(502, 505)]
    np.save(folder / "lang_annotations" / "auto_lang_ann.npy", notes, allow_pickle=True)  # type: ignore[arg-type]
    source = source_of(folder)
    assert len(source) == 5 and source.episodes.tolist() == [[0, 2], [2, 5]]
    assert source.samples[0][:2] == (2, 5)
    np.save(folder / "ep_start_end_ids.npy", np.array([[502, 503], [100, 101]]))
    assert source.episodes.tolist() == [[0, 2], [2, 4]]
    np.save(folder / "ep_start_end_ids.npy", np.array([[100, 502], [502, 503]]))
    with pytest.raises(DataError, match="overlap"):
        _ = source.episodes


def test_a_set_tells_its_cameras_states_and_actions(dataset: Path) -> None:
    spec = open_source(dataset).spec
    assert spec.cameras == {"rgb_static": (40, 40), "rgb_gripper": (24, 24)}
    assert (spec.state, spec.privileged, spec.rate_hz) == ({"robot_obs": 15}, {"scene_obs": 24}, 30)
    assert spec.actions.parts[0].high == 1
    absolute = open_source(dataset, options=SourceOptions(actions="absolute")).spec
    assert absolute.actions.parts[0].high is None


def test_a_path_that_is_no_data_set_says_what_is_known(dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is no data set of a known kind \(packed, calvin"):
        open_source(dataset / "training" / "lang_annotations")
    with pytest.raises(UserError, match="there is no kind of data set 'other'; known are calvin, lerobot, packed"):
        open_source(dataset, kind="other")
    with pytest.raises(UserError, match="has no split test; it has training, validation"):
        open_source(dataset, "test")


THEIRS = """
from roboflamingo.data.sources.calvin.source import CalvinSource

class TheirSource(CalvinSource):
    kind = "theirs"

    @classmethod
    def recognises(cls, path):
        return (path / "theirs.txt").is_file()

    @classmethod
    def splits(cls, path):
        return ("training",)
"""


def test_another_package_brings_a_kind_of_data_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dataset: Path
) -> None:
    about = tmp_path / "site" / "their_sets-1.0.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: their-sets\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[roboflamingo.sources]\ntheirs = their_sets:TheirSource\n")
    (tmp_path / "site" / "their_sets.py").write_text(THEIRS)
    monkeypatch.syspath_prepend(tmp_path / "site")
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "theirs.txt").touch()
    with pytest.raises(DataError, match="theirs/training is not a folder"):  # theirs is asked, and misses its frames
        open_source(theirs)
    (dataset / "training").rename(theirs / "training")
    assert open_source(theirs, kind="theirs").kind == "theirs"
    assert open_source(theirs).kind == "calvin"  # our own kinds are asked first
