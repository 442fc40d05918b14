"""What never happens to a run: weights that are no numbers, two writers, a half file, errors after the long work."""

from __future__ import annotations

import resource
import shutil
import signal
import sys
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from calvin_eval.system.errors import UserError
from calvin_eval.system.locks import folder_lock
from processes import run_in_processes
from roboflamingo.heads import HeadConfig
from roboflamingo.policy.roboflamingo import RoboFlamingo
from roboflamingo.training.beforehand import space_of
from roboflamingo.training.checkpoint import check_state, load_state, save_state
from roboflamingo.training.config import TrainConfig
from roboflamingo.training.config_parts import OptimizerConfig, TrainableConfig
from roboflamingo.training.datamodule import open_windows
from roboflamingo.training.finite import DivergenceError, stops
from roboflamingo.training.loggers import TensorBoard
from roboflamingo.training.progress import Progress, SaveTimes
from roboflamingo.training.train import TrainingStopped, fit, train
from roboflamingo.training.trainable import choose_trainable
from runs import metrics, tiny_policy, tiny_run
from synthetic import write_dataset

QUIET = Console(quiet=True)
EXPLODES = OptimizerConfig(learning_rate=1e30, warmup_steps=0, schedule="constant", clip=None)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data"))


# --- numbers that are none -----------------------------------------------------------------------


def test_a_finite_loss_stays_what_it_is_and_another_has_no_gradient() -> None:
    weight = torch.tensor([1.5, -0.3], requires_grad=True)
    loss = (weight**3).sum()
    (wanted,) = torch.autograd.grad(loss, weight, retain_graph=True)
    assert torch.equal(stops(loss), loss)
    assert torch.equal(torch.autograd.grad(stops(loss), weight)[0], wanted)
    infinite = (weight**3).sum() + float("inf")  # whose own gradient is finite
    assert torch.autograd.grad(stops(infinite), weight)[0].isnan().all()


@pytest.mark.parametrize("changed", [{}, {"accumulate": 2}, {"precision": "bf16"}])
def test_training_ends_before_a_step_whose_gradient_is_not_finite(
    tmp_path: Path, dataset: Path, changed: dict[str, Any]
) -> None:
    config = tiny_run(tmp_path, dataset, optimizer=EXPLODES, save_every_steps=1, **changed)
    with pytest.raises(
        DivergenceError, match=r"is not finite at step \d.*'please .*lower optimizer\.learning_rate"
    ) as it:
        train(config, console=QUIET)
    saved = load_state(tmp_path / "last.ckpt")
    assert saved is not None
    check_state(saved)  # all its numbers are finite
    assert saved["step"] == it.value.step - 1
    assert not (tmp_path / "policy").exists()
    assert all(np.isfinite(line["grad_norm"]) for line in metrics(tmp_path) if "grad_norm" in line)


def fit_with_a_window_of_nan(config: TrainConfig) -> None:
    """Of all windows, only those of the first segment, of 9 frames, are damaged: most batches are whole."""
    training, _ = open_windows(config)
    robot_obs = training.column("robot_obs").copy()
    robot_obs[3] = float("nan")
    training.folders[0]._maps["robot_obs"] = robot_obs
    policy = RoboFlamingo(config.policy.with_words(training.instructions))
    with pytest.raises(DivergenceError, match=r"mend the data: robot_obs of window [34] \('please open drawer 0'\)"):
        fit(policy, config, (training, None), None, QUIET)


def test_the_windows_that_are_to_blame_are_named(tmp_path: Path, dataset: Path) -> None:
    fit_with_a_window_of_nan(tiny_run(tmp_path, dataset, max_steps=30))


def test_all_processes_stop_though_only_one_has_seen_the_number(tmp_path: Path, dataset: Path) -> None:
    config = tiny_run(tmp_path, dataset, max_steps=30, batch_size=1, devices=2)
    open_windows(config)
    run_in_processes(2, fit_with_a_window_of_nan, config)


# --- files ---------------------------------------------------------------------------------------


@contextmanager
def small_disk(size: int) -> Iterator[None]:
    """No file can grow beyond so many bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_a_full_disk_is_named_and_leaves_the_last_good_state(tmp_path: Path, dataset: Path) -> None:
    config = tiny_run(tmp_path, dataset, max_steps=2, save_every_steps=1, loggers=[], validation_windows=0)
    train(config, console=QUIET)
    with small_disk(20_000), pytest.raises(OSError, match=r"last\.ckpt"):
        train(replace(config, max_steps=4), console=QUIET)
    saved = load_state(tmp_path / "last.ckpt")
    assert saved is not None
    assert saved["step"] == 2
    assert not list(tmp_path.glob(".*"))  # no half file, no lock
    train(replace(config, max_steps=4), console=QUIET)
    assert [line["step"] for line in metrics(tmp_path)] == [1, 2, 3, 4]


def test_torch_does_not_hide_what_the_disk_says(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    with small_disk(20_000), pytest.raises(OSError, match=r"last\.ckpt"):
        save_state({"weights": torch.rand(10_000)}, path)
    assert not list(tmp_path.iterdir())


def test_tensorboard_on_a_full_disk_names_its_folder_and_prints_no_traceback(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    board = TensorBoard(tmp_path, 0)
    with small_disk(2_000), pytest.raises(OSError, match="tensorboard"):
        for step in range(10_000):
            board.write({"step": step, "loss": 1.0})
            time.sleep(0.001)
    with suppress(OSError):
        board.close()
    assert "Traceback" not in capfd.readouterr().err


def test_two_runs_in_one_folder_are_refused(tmp_path: Path, dataset: Path) -> None:
    with folder_lock(tmp_path, "roboflamingo train"), pytest.raises(UserError, match="in use by roboflamingo train"):
        train(tiny_run(tmp_path, dataset), console=QUIET)


def test_a_complete_run_whose_policy_is_missing_gets_it_without_another_step(tmp_path: Path, dataset: Path) -> None:
    config = tiny_run(tmp_path, dataset, max_steps=2)
    policy = train(config, console=QUIET)
    before = (policy / "weights.safetensors").read_bytes()
    shutil.rmtree(policy)
    train(config, console=QUIET)
    assert (policy / "weights.safetensors").read_bytes() == before
    assert [line["step"] for line in metrics(tmp_path) if "loss" in line] == [1, 2]


def test_a_signal_during_a_validation_stops_the_run_with_its_state(tmp_path: Path, dataset: Path) -> None:
    class Interrupts(Console):
        def print(self, *objects: Any, **options: Any) -> None:
            if objects and "held-out loss" in str(objects[0]):
                signal.raise_signal(signal.SIGINT)

    config = tiny_run(tmp_path, dataset, max_steps=50, validate_every_steps=3)
    with pytest.raises(TrainingStopped, match="SIGINT"):
        train(config, console=Interrupts(quiet=True))
    saved = load_state(tmp_path / "last.ckpt")
    assert saved is not None
    assert (saved["validated_step"], saved["step"]) == (3, 4)


def test_nothing_of_the_saved_state_stays_in_memory(tmp_path: Path, dataset: Path) -> None:
    config = tiny_run(tmp_path, dataset, max_steps=2, optimizer=OptimizerConfig(ema=0.9))
    train(config, console=QUIET)
    saved = load_state(tmp_path / "last.ckpt")
    assert saved is not None
    kept = [weakref.ref(tensor) for part in ("weights", "average") for tensor in saved[part].values()]
    alive = []

    class Watches(Console):
        def print(self, *objects: Any, **options: Any) -> None:
            alive.append(sum(tensor() is not None for tensor in kept))

    config = replace(config, max_steps=3)
    training, held_out = open_windows(config)
    policy = RoboFlamingo(config.policy.with_words(training.instructions))
    fit(policy, config, (training, held_out), saved, Watches(quiet=True))
    assert alive[-1] == 0
    assert saved == {}


# --- when to save --------------------------------------------------------------------------------


def test_saving_takes_a_small_share_of_the_time_unless_told_otherwise() -> None:
    def saves(times: SaveTimes, cost_s: float) -> list[float]:
        progress, at = Progress(None, 1000), []
        for second in range(10, 6001, 10):
            progress.advance(second)
            if times.due(progress):
                at.append(progress.elapsed_s)
                times.cost_s = cost_s
                times.start(progress.elapsed_s)
        return at

    assert saves(SaveTimes(None, None), cost_s=0.1)[:3] == [120, 240, 360]
    assert saves(SaveTimes(None, None), cost_s=20.0) == [120, 1120, 2120, 3120, 4120, 5120]
    assert saves(SaveTimes(None, 1.0), cost_s=20.0)[:3] == [60, 120, 180]
    assert saves(SaveTimes(100, None), cost_s=20.0)[:3] == [1000, 2000, 3000]


# --- before data are packed ----------------------------------------------------------------------


def refused(run: Path, dataset: Path, match: str, **changed: Any) -> None:
    """Says so before the data set is looked at, which does not exist."""
    with pytest.raises(UserError, match=match):
        train(tiny_run(run, dataset / "missing", **changed), console=QUIET)


def test_what_cannot_work_is_said_before_data_are_packed(
    tmp_path: Path, dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused(tmp_path, dataset, "head.kind 'lstn' does not exist", policy=tiny_policy(head=HeadConfig(kind="lstn")))
    gpt = HeadConfig(kind="gpt", hidden=30)
    refused(tmp_path, dataset, "no multiple of attention_heads", policy=tiny_policy(head=gpt))
    few = TrainableConfig(everything=False, cross_attention=5)
    refused(tmp_path, dataset, "trainable.cross_attention is 5; in this policy 1", trainable=few)
    refused(tmp_path, dataset, "decay_only", optimizer=OptimizerConfig(decay_only=["nothing*"]))
    published = replace(tiny_policy().backbone, weights="published")
    refused(tmp_path, dataset, "backbone.weights is published", policy=tiny_policy(backbone=published))
    if not torch.cuda.is_available():
        refused(tmp_path, dataset, "finds no GPU here", accelerator="cuda")
    monkeypatch.setitem(sys.modules, "diffusers", None)
    diffusion = tiny_policy(head=HeadConfig(kind="diffusion"))
    refused(tmp_path, dataset, r"pip install 'roboflamingo\[diffusion\]'", policy=diffusion)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**6, 10**6, 1000))
    refused(tmp_path, dataset, "need about .* GB, and 0.0 GB are free")


def test_start_from_what_is_no_policy_is_said_before_data_are_packed(tmp_path: Path, dataset: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"start_from .* holds no policy"):
        train(tiny_run(tmp_path, dataset / "missing", start_from=str(tmp_path)), console=QUIET)


def test_the_space_that_a_run_needs_is_known_beforehand(tmp_path: Path, dataset: Path) -> None:
    policy = tiny_policy(head=HeadConfig(hidden=192, layers=2))
    config = tiny_run(tmp_path, dataset, max_steps=1, policy=policy, optimizer=OptimizerConfig(ema=0.9))
    train(config, console=QUIET)
    made = RoboFlamingo(policy.with_words(["word"]))
    choose_trainable(made, config)
    sizes = [(tmp_path / name).stat().st_size for name in ("last.ckpt", "policy/weights.safetensors")]
    assert space_of(made, config) == pytest.approx(2 * sizes[0] + 3 * sizes[1], rel=0.15)
