"""Training: what a run leaves, and that it learns."""

from __future__ import annotations

import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import nn

from roboflamingo.heads import HeadConfig
from roboflamingo.policy.config import calvin_cameras
from roboflamingo.training.checkpoint import load_state, save_state
from roboflamingo.training.config_parts import ConfigError, DataConfig, OptimizerConfig
from roboflamingo.training.datamodule import open_windows
from roboflamingo.training.ema import WeightAverage
from roboflamingo.training.metrics import MetricsLog
from roboflamingo.training.progress import Progress
from roboflamingo.training.train import train
from roboflamingo.weights.checkpoint import load_policy
from runs import deterministic_policy, losses, metrics, tiny_policy, tiny_run
from synthetic import write_dataset

QUIET = Console(quiet=True)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data"))


def test_due_every_so_many_steps_or_minutes() -> None:
    progress = Progress(None, 10)
    by_steps, by_minutes = [], []
    for second in range(10, 250, 20):
        progress.advance(second)
        by_steps.append(progress.due(5, None))
        by_minutes.append(progress.due(None, 1.0))
    assert [i + 1 for i, due in enumerate(by_steps) if due] == [5, 10]
    assert [10 + 20 * i for i, due in enumerate(by_minutes) if due] == [70, 130, 190]
    assert not progress.due(None, None)


# --- parts ---------------------------------------------------------------------------------------


def test_weight_average_follows_its_formula_and_leaves_the_weights() -> None:
    layer = nn.Linear(1, 1, bias=False)
    average = WeightAverage(layer, decay=0.5)
    expected = layer.weight.item()
    for step in range(1, 20):
        layer.weight.data.fill_(step)
        average.update(step)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * step
    with average.applied():
        assert layer.weight.item() == pytest.approx(expected)
    assert layer.weight.item() == 19


def test_log_drops_lines_after_the_checkpoint_and_a_cut_off_line(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 3}\n{"step": 2, "loss": 2}\n{"step": 3, "lo')
    log = MetricsLog(tmp_path, step=1)
    log.write({"step": 2, "loss": 5.0})
    log.close()
    assert metrics(tmp_path) == [{"step": 1, "loss": 3}, {"step": 2, "loss": 5.0}]


class Hostile:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("true",)


def test_a_training_state_with_code_is_refused(tmp_path: Path) -> None:
    torch.save({"format": 1, "weights": Hostile()}, tmp_path / "last.ckpt")
    with pytest.raises(ConfigError, match=r"last\.ckpt"):
        load_state(tmp_path / "last.ckpt")


def test_a_broken_training_state_is_named(tmp_path: Path) -> None:
    (tmp_path / "last.ckpt").write_bytes(b"half a fi")
    with pytest.raises(ConfigError, match=r"last\.ckpt is no training state"):
        load_state(tmp_path / "last.ckpt")


def test_saving_keeps_the_old_state_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    save_state({"step": 1}, path)
    with pytest.raises(AttributeError):
        save_state({"step": 2, "bad": lambda: None}, path)  # cannot be written
    state = load_state(path)
    assert state is not None
    assert state["step"] == 1


# --- runs ----------------------------------------------------------------------------------------


def test_a_run_leaves_its_config_log_state_and_policies(tmp_path: Path, dataset: Path) -> None:
    config = tiny_run(tmp_path, dataset, validate_every_steps=3, optimizer=OptimizerConfig(ema=0.9))
    assert train(config, console=QUIET) == tmp_path / "policy"
    for name in ("config.yaml", "last.ckpt", "metrics.jsonl", "policy", "policy_best", "tensorboard"):
        assert (tmp_path / name).exists(), name
    lines = metrics(tmp_path)
    trained = [line for line in lines if "loss" in line]
    assert [line["step"] for line in trained] == [1, 2, 3, 4, 5, 6]
    assert {"epoch", "lr", "pose", "gripper", "grad_norm", "frames_per_s", "elapsed_s"} <= trained[0].keys()
    held_out = [line for line in lines if "val_loss" in line]
    assert [line["step"] for line in held_out] == [3, 6]
    assert 0 <= held_out[0]["val_gripper_accuracy"] <= 1
    assert held_out[0]["val_pose_m"] > 0 and held_out[0]["val_pose_rad"] > 0
    saved = load_policy(tmp_path / "policy").config
    assert saved == config.policy.with_words(["please open close drawer push red block left turn on led 0 1 2 3"])


def test_a_complete_run_returns_at_once(tmp_path: Path, dataset: Path) -> None:
    config = tiny_run(tmp_path, dataset, max_steps=2)
    train(config, console=QUIET)
    before = (tmp_path / "last.ckpt").stat().st_mtime_ns
    assert train(config, console=QUIET) == tmp_path / "policy"
    assert (tmp_path / "last.ckpt").stat().st_mtime_ns == before


def test_more_steps_continue_a_complete_run_and_other_changes_are_refused(tmp_path: Path, dataset: Path) -> None:
    config = tiny_run(tmp_path, dataset, max_steps=2)
    train(config, console=QUIET)
    train(replace(config, max_steps=3), console=QUIET)
    assert [line["step"] for line in metrics(tmp_path) if "loss" in line] == [1, 2, 3]
    with pytest.raises(ConfigError, match=r"config\.yaml began with batch_size = 4, now it is 8"):
        train(replace(config, max_steps=4, batch_size=8), console=QUIET)


def test_training_fits_a_batch_that_it_sees_again_and_again(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path / "data", lengths=(4,))
    policy = tiny_policy(head=HeadConfig(hidden=64), cameras=calvin_cameras(24, 16, 0, 0), auxiliary_weight=0.0)
    optimizer = OptimizerConfig(warmup_steps=5, learning_rate=5e-3, weight_decay=0.0)
    config = tiny_run(
        tmp_path / "run", dataset, policy=policy, max_steps=100, optimizer=optimizer, validation_windows=0
    )
    train(config, console=QUIET)
    assert losses(tmp_path / "run")[-1] < 0.1 * losses(tmp_path / "run")[0]


def test_training_for_minutes_ends_in_time_with_the_learning_rate_at_zero(tmp_path: Path, dataset: Path) -> None:
    minutes = 1.5 / 60
    config = tiny_run(tmp_path, dataset, max_steps=None, max_minutes=minutes, validation_windows=0)
    train(config, console=QUIET)
    last = metrics(tmp_path)[-1]
    assert last["elapsed_s"] == pytest.approx(60 * minutes, abs=0.7)
    assert last["lr"] < 0.2 * config.optimizer.learning_rate


def test_two_small_batches_accumulated_train_as_one_large_one(tmp_path: Path, dataset: Path) -> None:
    same = {"policy": deterministic_policy(), "validation_windows": 0}
    train(tiny_run(tmp_path / "large", dataset, batch_size=8, **same), console=QUIET)
    train(tiny_run(tmp_path / "small", dataset, batch_size=4, accumulate=2, **same), console=QUIET)
    np.testing.assert_allclose(losses(tmp_path / "small"), losses(tmp_path / "large"), rtol=1e-4)


def test_bf16_trains(tmp_path: Path, dataset: Path) -> None:
    train(tiny_run(tmp_path, dataset, precision="bf16", max_steps=3), console=QUIET)
    assert all(math.isfinite(loss) for loss in losses(tmp_path))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_gpu_trains_and_continues(tmp_path: Path, dataset: Path, precision: Any) -> None:
    optimizer = OptimizerConfig(warmup_steps=3, ema=0.9, schedule="constant")
    settings: dict[str, Any] = {"accelerator": "cuda", "precision": precision, "optimizer": optimizer}
    train(tiny_run(tmp_path / "whole", dataset, max_steps=8, **settings), console=QUIET)
    for steps in (5, 8):
        train(tiny_run(tmp_path / "parts", dataset, max_steps=steps, **settings), console=QUIET)
    np.testing.assert_allclose(losses(tmp_path / "parts"), losses(tmp_path / "whole"), rtol=2e-2)


def test_worker_processes_change_nothing(tmp_path: Path, dataset: Path) -> None:
    for workers in (0, 2):
        config = tiny_run(tmp_path / str(workers), dataset, max_steps=3, validation_windows=0)
        train(replace(config, data=replace(config.data, workers=workers)), console=QUIET)
    assert losses(tmp_path / "0") == losses(tmp_path / "2")


def test_training_starts_from_another_policy(tmp_path: Path, dataset: Path) -> None:
    frozen = OptimizerConfig(learning_rate=0.0)
    first = train(tiny_run(tmp_path / "first", dataset, seed=1), console=QUIET)
    config = tiny_run(tmp_path / "second", dataset, optimizer=frozen, start_from=str(first), max_steps=1)
    second = load_policy(train(config, console=QUIET)).state_dict()
    for name, value in load_policy(first).state_dict().items():
        torch.testing.assert_close(second[name], value)


def test_folders_without_validation_are_refused_with_advice(tmp_path: Path, dataset: Path) -> None:
    only_training = tmp_path / "round_1"
    only_training.mkdir()
    (only_training / "training").symlink_to(dataset / "training")
    with pytest.raises(ValueError, match="validation_windows to 0"):
        train(tiny_run(tmp_path / "run", only_training), console=QUIET)


def test_weights_mix_folders(tmp_path: Path, dataset: Path) -> None:
    other = write_dataset(tmp_path / "other", seed=3)
    config = tiny_run(tmp_path / "run", dataset, max_steps=2)
    config.data = DataConfig(folders={str(dataset): 1.0, str(other): 2.0}, pack_processes=1)
    train(config, console=QUIET)
    assert len(losses(tmp_path / "run")) == 2


@pytest.mark.parametrize(("steps", "minutes"), [(None, None), (5, 5.0)])
def test_training_needs_exactly_one_end(tmp_path: Path, steps: int | None, minutes: float | None) -> None:
    with pytest.raises(ConfigError, match="one of max_steps, max_epochs and max_minutes"):
        tiny_run(tmp_path, tmp_path, max_steps=steps, max_minutes=minutes)


def test_epochs_are_so_many_windows(tmp_path: Path, dataset: Path) -> None:
    windows, _ = open_windows(tiny_run(tmp_path, dataset), QUIET)
    train(tiny_run(tmp_path / "run", dataset, max_steps=None, max_epochs=0.5, batch_size=7), console=QUIET)
    assert metrics(tmp_path / "run")[-1]["step"] == math.ceil(0.5 * len(windows) / 7)


def test_a_fraction_keeps_some_segments_of_every_task(tmp_path: Path) -> None:
    run = tiny_run(tmp_path, write_dataset(tmp_path / "data", lengths=[5] * 10))
    whole, _ = open_windows(run, QUIET)
    some, _ = open_windows(replace(run, data=replace(run.data, fraction=0.5)), QUIET)
    again, _ = open_windows(replace(run, data=replace(run.data, fraction=0.5)), QUIET)
    assert set(some.tasks) == set(whole.tasks) and len(some) < len(whole)
    assert some.instructions == again.instructions
    assert some.__getitems__([0, len(some) - 1])["frame_mask"].shape == (2, 2)
    with pytest.raises(ConfigError, match=r"data\.fraction is 0\.0"):
        replace(run, data=replace(run.data, fraction=0.0))
