"""A run continues with the data that it began with, wherever that lies now, and needs only what its policy reads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from calvin_eval.calvin import calvin_observation
from calvin_eval.system.errors import UserError
from roboflamingo.backbone.config import BackboneConfig
from roboflamingo.data.errors import DataError
from roboflamingo.policy.control import PolicyController
from roboflamingo.training.config import TrainConfig
from roboflamingo.training.config_parts import ConfigError, DataConfig
from roboflamingo.training.train import train
from roboflamingo.weights.checkpoint import load_policy
from runs import deterministic_policy, metrics, tiny_run
from synthetic import write_dataset, write_frame

QUIET = Console(quiet=True)


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    return write_dataset(tmp_path / "set")


def begun(tmp_path: Path, dataset: Path, steps: int = 1) -> TrainConfig:
    return tiny_run(
        tmp_path / "run",
        dataset,
        policy=deterministic_policy(),
        max_steps=steps,
        loggers=["jsonl"],
        validation_windows=4,
    )


def test_a_run_continues_where_its_data_set_has_moved(
    tmp_path: Path, dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(begun(tmp_path, dataset), console=QUIET)
    dataset.rename(tmp_path / "moved")
    monkeypatch.chdir(tmp_path)
    train(begun(tmp_path, Path("moved/"), steps=2), console=QUIET)
    assert [line["step"] for line in metrics(tmp_path / "run") if "loss" in line] == [1, 2]


@pytest.mark.parametrize("split", ["training", "validation"])
def test_a_run_does_not_continue_with_other_frames(tmp_path: Path, dataset: Path, split: str) -> None:
    train(begun(tmp_path, dataset), console=QUIET)
    frame = sorted((dataset / split).glob("episode_*.npz"))[1]
    write_frame(frame, np.random.default_rng(9))
    with pytest.raises(ConfigError, match=rf"run began with other data: {split}/ of {dataset} is not what"):
        train(begun(tmp_path, dataset, steps=2), console=QUIET)


def test_a_run_does_not_continue_with_other_annotations(tmp_path: Path, dataset: Path) -> None:
    train(begun(tmp_path, dataset), console=QUIET)
    path = dataset / "training" / "lang_annotations" / "auto_lang_ann.npy"
    path.write_bytes(path.read_bytes().replace(b"please open drawer 0", b"please open drawer 1"))
    with pytest.raises(ConfigError, match="run began with other data"):
        train(begun(tmp_path, dataset, steps=2), console=QUIET)


def test_a_run_older_than_its_note_continues_with_the_folders_of_its_config(tmp_path: Path, dataset: Path) -> None:
    train(begun(tmp_path, dataset), console=QUIET)
    (tmp_path / "run" / "data.json").unlink()
    train(begun(tmp_path, dataset / ".." / "set", steps=2), console=QUIET)
    (tmp_path / "run" / "data.json").unlink()
    dataset.rename(tmp_path / "moved")
    with pytest.raises(ConfigError, match=r"run began with data\.folders .*, now they are .*/moved"):
        train(begun(tmp_path, tmp_path / "moved", steps=3), console=QUIET)


def test_weights_belong_to_places_and_a_folder_is_named_once(tmp_path: Path, dataset: Path) -> None:
    other = write_dataset(tmp_path / "other", seed=5)
    config = begun(tmp_path, dataset)
    config.data = DataConfig(folders={str(dataset): 1.0, str(other): 2.0}, pack_processes=1)
    train(config, console=QUIET)
    config = begun(tmp_path, dataset, steps=2)
    config.data = DataConfig(folders={str(dataset): 1.0, str(other): 3.0}, pack_processes=1)
    with pytest.raises(ConfigError, match=r"data\.folders = \[1\.0, 2\.0\], now it is \[1\.0, 3\.0\]"):
        train(config, console=QUIET)
    config.data = DataConfig(folders={str(dataset): 1.0, f"{dataset}/": 2.0}, pack_processes=1)
    with pytest.raises(DataError, match=r"names .*set twice"):
        train(config, console=QUIET)


def test_frames_without_gripper_camera_and_scene_do_for_a_policy_that_reads_neither(
    tmp_path: Path, dataset: Path
) -> None:
    for path in dataset.glob("*/episode_*.npz"):
        with np.load(path) as file:
            frame = {key: file[key] for key in ("rgb_static", "robot_obs", "rel_actions")}
        np.savez_compressed(path, **frame)  # type: ignore[arg-type]
    config = begun(tmp_path, dataset)
    with pytest.raises(UserError, match=r"looks through rgb_gripper, and .* has rgb_static"):
        train(config, console=QUIET)
    config.policy.auxiliary_weight = 0.0
    config.policy.backbone = BackboneConfig(**(vars(config.policy.backbone) | {"fusion": "first_only"}))
    controller = PolicyController(load_policy(train(config, console=QUIET)))
    observation = calvin_observation(np.zeros((24, 24, 3), np.uint8), np.zeros((0, 0, 3), np.uint8), np.zeros(15))
    actions, _ = controller.act([observation], [controller.start("please open drawer 0")])
    assert actions.shape == (1, 1, 7)


def test_states_are_read_as_vectors_too_and_recorded_actions_are_not(tmp_path: Path, dataset: Path) -> None:
    config = begun(tmp_path, dataset)
    config.policy.vectors, config.policy.auxiliary_weight = ("scene_obs",), 0.0
    train(config, console=QUIET)
    assert len(load_policy(tmp_path / "run" / "policy").config.statistics["scene_obs"].centre) == 24
    config = begun(tmp_path, dataset)
    config.policy.vectors = ("rel_actions",)
    with pytest.raises(DataError, match=r"policy\.vectors names rel_actions"):
        train(config, console=QUIET)
