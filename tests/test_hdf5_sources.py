"""HDF5 files in robomimic's and in the reference's real-robot layout are read exactly; what is wrong is named."""

from __future__ import annotations

import io
import json
import pickle
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from rich.console import Console
from scipy.spatial.transform import Rotation

from roboflamingo.data.converting.convert import convert
from roboflamingo.data.errors import DataError
from roboflamingo.data.lerobot.files import WriteSettings
from roboflamingo.data.sources import kind_of, open_source
from roboflamingo.data.sources.base import Frame, SourceOptions
from roboflamingo.data.sources.columns import Columns, PartColumns
from roboflamingo.data.sources.real_robot import actions_between, gripper_states

LENGTHS = {"demo_0": 4, "demo_2": 3, "demo_10": 5}


def write_robomimic(path: Path, *, masks: bool = True, **env_kwargs: Any) -> Path:
    """A file of three demonstrations with pictures, three vectors and a number."""
    random = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["env_args"] = json.dumps({"env_name": "NutAssemblySquare", "env_kwargs": env_kwargs})
        for name, length in LENGTHS.items():
            demonstration = data.create_group(name)
            demonstration.attrs["num_samples"] = length
            demonstration["actions"] = random.uniform(-1, 1, (length, 7))
            demonstration["states"] = random.normal(size=(length, 45))
            obs = demonstration.create_group("obs")
            images = random.integers(0, 256, (length, 8, 12, 3), np.uint8)
            obs.create_dataset("agentview_image", data=images, compression="gzip")
            obs["robot0_eef_pos"] = random.normal(size=(length, 3))
            obs["robot0_gripper_qpos"] = random.normal(size=(length, 2))
            obs["time"] = random.normal(size=length)
            obs["object"] = random.normal(size=(length, 10))
            obs["agentview_depth"] = random.normal(size=(length, 8, 12, 1))
        if masks:
            file["mask/train"] = np.array([b"demo_10", b"demo_0"])
            file["mask/valid"] = np.array([b"demo_2"])
    return path


def read(source: Any, names: tuple[str, ...]) -> list[Any]:
    return list(pickle.loads(pickle.dumps(source.reader(np.arange(len(source))))).frames(names))


@pytest.fixture(scope="module")
def robomimic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_robomimic(tmp_path_factory.mktemp("sets") / "square.hdf5", control_freq=20)


def test_robomimic_frames_are_those_of_the_split_in_order(robomimic: Path) -> None:
    source = open_source(robomimic)
    assert source.kind == "robomimic"
    assert source.episodes.tolist() == [[0, 4], [4, 9]]
    frames = read(source, ("agentview_image", "robot0_eef_pos", "time", "object", "actions"))
    with h5py.File(robomimic) as file:
        for name, first in (("demo_0", 0), ("demo_10", 4)):
            group = file[f"data/{name}"]
            for step in range(LENGTHS[name]):
                arrays = frames[first + step].arrays
                assert (arrays["agentview_image"] == group["obs/agentview_image"][step]).all()
                assert (arrays["robot0_eef_pos"] == group["obs/robot0_eef_pos"][step].astype(np.float32)).all()
                assert arrays["time"] == group["obs/time"][step].astype(np.float32)
                assert (arrays["object"] == group["obs/object"][step].astype(np.float32)).all()
                assert (arrays["actions"] == group["actions"][step].astype(np.float32)).all()
    held_out = open_source(robomimic, "validation")
    assert (len(held_out), held_out.name(1)) == (3, f"{robomimic}: data/demo_2, step 1")


def test_robomimic_says_what_it_gives(robomimic: Path) -> None:
    spec = open_source(robomimic).spec
    assert dict(spec.cameras) == {"agentview_image": (8, 12)}
    assert dict(spec.state) == {"robot0_eef_pos": 3, "robot0_gripper_qpos": 2, "time": 1}
    assert dict(spec.privileged) == {"object": 10}
    assert (spec.actions.size, spec.rate_hz) == (7, 20)
    assert {s.instruction for s in open_source(robomimic).samples} == {"nut assembly square"}


def test_robomimic_sentences_of_the_file_go_before_its_name_and_a_demonstrations_before_these(tmp_path: Path) -> None:
    path = write_robomimic(tmp_path / "set.hdf5", masks=False)
    with h5py.File(path, "r+") as file:
        file["data"].attrs["problem_info"] = json.dumps({"language_instruction": "open the drawer"})
        file["data/demo_2"].attrs["ep_meta"] = json.dumps({"lang": "close it"})
    source = open_source(path)
    assert [s.instruction for s in source.samples] == ["open the drawer", "close it", "open the drawer"]
    assert type(source).splits(path) == ("training",)
    assert source.spec.rate_hz == 20


def test_robomimic_columns_make_parts(robomimic: Path) -> None:
    columns = Columns(
        actions={"arm": PartColumns(tuple(range(6)), low=-1.0, high=1.0), "gripper": PartColumns((6,), "binary")},
        states={"hand": ["robot0_gripper_qpos.*", "robot0_eef_pos.2"]},
    )
    source = open_source(robomimic, options=SourceOptions(columns=columns))
    assert dict(source.spec.state) == {"hand": 3}
    frames = read(source, ("hand", "actions"))
    assert {float(frame.arrays["actions"][6]) for frame in frames} <= {-1.0, 1.0}


def test_robomimic_becomes_a_lerobot_set_that_gives_the_same(robomimic: Path, tmp_path: Path) -> None:
    settings = WriteSettings(images="png")
    convert(robomimic, tmp_path / "set", "lerobot", settings, processes=1, console=Console(file=io.StringIO()))
    for split in ("training", "validation"):
        here, there = open_source(robomimic, split), open_source(tmp_path / "set", split)
        assert there.spec == here.spec
        assert [s.instruction for s in there.samples] == [s.instruction for s in here.samples]
        names = (*here.spec.cameras, *here.spec.state, *here.spec.privileged, "actions")
        for a, b in zip(read(here, names), read(there, names), strict=True):
            for name in names:
                assert (a.arrays[name] == b.arrays[name]).all(), name


def test_hdf5_digests_belong_to_content(robomimic: Path, tmp_path: Path) -> None:
    source = open_source(robomimic)
    digests = [frame.digest.tobytes() for frame in read(source, ("time",))]
    assert digests == [digest.tobytes() for digest in source.reader(np.arange(len(source))).digests()]
    assert len(set(digests)) == len(digests)
    copy = tmp_path / "copy.hdf5"
    copy.write_bytes(robomimic.read_bytes())
    with h5py.File(copy, "r+") as file:
        file["data/demo_0/obs/time"][2] += 1
    changed = [frame.digest.tobytes() for frame in read(open_source(copy), ("actions",))]
    assert [a == b for a, b in zip(digests, changed, strict=True)] == [True, True, False] + [True] * 6


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda file: file.pop("data"), "has no group data"),
        (lambda file: file["data/demo_10"].pop("actions"), "data/demo_10/actions is missing"),
        (lambda file: file["data/demo_0"].pop("obs"), "demo_0 has no obs"),
        (lambda file: file["data"].pop("demo_10"), "mask/train names demo_10, which is not in data"),
        (lambda file: file["data"].attrs.__setitem__("env_args", "{"), "env_args is no JSON"),
    ],
)
def test_a_robomimic_file_that_is_not_whole_is_named(robomimic: Path, tmp_path: Path, change: Any, words: str) -> None:
    path = tmp_path / "set.hdf5"
    path.write_bytes(robomimic.read_bytes())
    with h5py.File(path, "r+") as file:
        change(file)
    with pytest.raises(DataError, match=words) as error:
        open_source(path)
    assert str(path) in str(error.value)


def test_a_demonstration_that_differs_is_named_and_the_others_are_read(robomimic: Path, tmp_path: Path) -> None:
    path = tmp_path / "set.hdf5"
    path.write_bytes(robomimic.read_bytes())
    with h5py.File(path, "r+") as file:
        del file["data/demo_10/obs/time"]
    frames = read(open_source(path), ("actions",))
    assert [isinstance(frame, Frame) for frame in frames] == [True] * 4 + [False] * 5
    assert "data/demo_10/obs/time is missing" in str(frames[4]) or "obs/time is missing" in str(frames[4])


def test_a_damaged_file_is_named(robomimic: Path, tmp_path: Path) -> None:
    path = tmp_path / "set.hdf5"
    content = robomimic.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=r"set\.hdf5 cannot be read"):
        open_source(path)


def test_files_that_lead_to_other_files_are_not_followed(robomimic: Path, tmp_path: Path) -> None:
    path = tmp_path / "set.hdf5"
    path.write_bytes(robomimic.read_bytes())
    with h5py.File(path, "r+") as file:
        del file["data/demo_0/actions"]
        file["data/demo_0/actions"] = h5py.ExternalLink(str(robomimic), "/data/demo_0/actions")
    with pytest.raises(DataError, match="lies in another file"):
        open_source(path)


# --- the reference's real-robot data ---------------------------------------------------------------


def write_real_robot(folder: Path, lengths: tuple[int, ...] = (8, 6), size: tuple[int, int] = (720, 1280)) -> Path:
    """Trajectories of random poses, of which the first closes the gripper and the second opens it."""
    random = np.random.default_rng(0)
    split = folder / "train"
    split.mkdir(parents=True)
    rows = sum(lengths)
    status = random.normal(size=(rows, 33))
    status[:, 13:17] = Rotation.random(rows, random_state=0).as_quat()
    control = np.full((rows, 2), 2.0)
    meta: dict[str, Any] = {"num_trajectories": len(lengths)}
    first = 0
    for number, length in enumerate(lengths):
        before, after = ((2, 3), (3, 2))[number % 2]
        control[first : first + length, 1] = [before] * 3 + [after] * (length - 3)
        status[first : first + length, 30] = [10.0] * 5 + [90.0] * (length - 5)
        meta[str(number)] = [f"do it {number}", length, "video", first, first + length]
        first += length
    with h5py.File(split / "data.hdf5", "w") as file:
        file["robot_status/robot_status_0"] = status
        file["vive_control/vive_control_0"] = control
        file["rgb/rgb_0"] = random.integers(0, 256, (rows, 6, 8, 3), np.uint8)
        file.create_dataset("rgb/rgb_1", data=random.integers(0, 256, (rows, *size, 3), np.uint8), chunks=True)
    (split / "meta.json").write_text(json.dumps(meta))
    return folder


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_real_robot(tmp_path_factory.mktemp("sets") / "real")


def test_real_robot_frames_are_the_references(real: Path) -> None:
    """Poses are turned by a quarter and moved; an action leads to the next pose, in the tool's frame."""
    source = open_source(real)
    assert source.kind == "real_robot"
    assert source.episodes.tolist() == [[0, 7], [7, 12]]
    assert [s.instruction for s in source.samples] == ["do it 0", "do it 1"]
    frames = read(source, ("rgb_static", "rgb_gripper", "robot_state", "actions"))
    with h5py.File(real / "train/data.hdf5") as file:
        status = file["robot_status/robot_status_0"][8:]
        assert (frames[8].arrays["rgb_gripper"] == file["rgb/rgb_0"][9]).all()
        assert (frames[8].arrays["rgb_static"] == file["rgb/rgb_1"][9, 190:700, 250:1050]).all()
    turn = np.array([[0, -1, 0], [1, 0, 0], [0, 0, 1]])
    poses = turn @ status[:, 10:13].T
    positions = poses.T + [0.15, -0.75, -0.9]
    rotations = turn @ Rotation.from_quat(status[:, 13:17]).as_matrix()
    state, action = frames[8].arrays["robot_state"], frames[8].arrays["actions"]
    assert state[:3] == pytest.approx(positions[1], abs=1e-5)
    assert 0 <= state[3] < 2 * np.pi
    assert Rotation.from_euler("xyz", state[3:6]).as_matrix() == pytest.approx(rotations[1], abs=1e-5)
    assert action[:3] / 50 == pytest.approx(rotations[1].T @ (positions[2] - positions[1]), abs=1e-5)
    moved = Rotation.from_euler("xyz", action[3:6] / 33).as_matrix()
    assert moved == pytest.approx(rotations[1].T @ rotations[2], abs=1e-4)


def test_real_robot_gripper_changes_where_it_moves(real: Path) -> None:
    frames = read(open_source(real), ("robot_state", "actions"))
    assert [frame.arrays["robot_state"][6] for frame in frames] == [1] * 5 + [-1] * 2 + [-1] * 5
    assert [frame.arrays["actions"][6] for frame in frames[7:]] == [-1] * 4 + [1]


@pytest.mark.parametrize(
    ("commands", "words"),
    [([2, 2, 2], "told 0 times"), ([2, 3, 2, 3], "told 3 times"), ([1, 1, 3, 3], "goes from 1 to 3")],
)
def test_a_gripper_that_does_not_change_once_is_an_error(commands: list[int], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        gripper_states(np.zeros(len(commands)), np.array(commands))


def test_actions_add_up_to_the_motion() -> None:
    random = np.random.default_rng(1)
    states = np.concatenate([random.normal(size=(6, 3)), random.uniform(-1, 1, (6, 3)), np.ones((6, 1))], 1)
    here, position = Rotation.from_euler("xyz", states[0, 3:6]), states[0, :3]
    for action in actions_between(states):
        position = position + here.apply(action[:3] / 50)
        here = here * Rotation.from_euler("xyz", action[3:6] / 33)
    assert position == pytest.approx(states[-1, :3])
    assert here.as_matrix() == pytest.approx(Rotation.from_euler("xyz", states[-1, 3:6]).as_matrix())


def test_a_real_robot_trajectory_that_is_damaged_is_named_and_the_others_are_read(real: Path, tmp_path: Path) -> None:
    folder = write_real_robot(tmp_path / "set")
    with h5py.File(folder / "train/data.hdf5", "r+") as file:
        file["vive_control/vive_control_0"][8:, 1] = 3
    frames = read(open_source(folder), ("robot_state",))
    assert [isinstance(frame, Frame) for frame in frames] == [True] * 7 + [False] * 5
    assert "trajectory 1: the gripper is told 0 times" in str(frames[-1])
    meta = json.loads((folder / "train/meta.json").read_text())
    meta["1"][4] += 1
    (folder / "train/meta.json").write_text(json.dumps(meta))
    with pytest.raises(DataError, match=r"meta\.json: trajectory 1 is missing or damaged"):
        open_source(folder)
    assert kind_of(folder).kind == "real_robot"
