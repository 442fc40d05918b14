"""A killed or stopped run, continued by the same command, is the run that was never interrupted."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from rich.console import Console

from roboflamingo.training.checkpoint import load_state
from roboflamingo.training.config import TrainConfig
from roboflamingo.training.config_parts import OptimizerConfig
from roboflamingo.training.train import TrainingStopped, train
from runs import metrics, tiny_run, without_clocks, write_yaml
from synthetic import write_dataset

QUIET = Console(quiet=True)
STEPS = 150


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data"))


def long_run(run: Path, dataset: Path) -> TrainConfig:
    """Long enough to be interrupted; with all state that a run can have."""
    return tiny_run(
        run,
        dataset,
        max_steps=STEPS,
        accumulate=2,
        optimizer=OptimizerConfig(warmup_steps=20, ema=0.95),
        log_every_steps=3,
        validate_every_steps=40,
        save_every_steps=20,
    )


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory, dataset: Path) -> Path:
    run = tmp_path_factory.mktemp("uninterrupted")
    train(long_run(run, dataset), console=QUIET)
    return run


def interrupt(run: Path, dataset: Path, number: signal.Signals, after_step: int) -> subprocess.Popen[str]:
    """Starts the run in another process and sends it a signal when its log has passed a step."""
    config = write_yaml(long_run(run, dataset), run / "start.yaml")
    log = run / "metrics.jsonl"
    earlier = log.stat().st_ino if log.is_file() else None
    command = [sys.executable, "-m", "roboflamingo.cli.main", "train", "--config", str(config)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    # the log of an earlier session is replaced when training continues; only then its steps count
    while not log.is_file() or log.stat().st_ino == earlier or log.read_text().count('"loss"') * 3 < after_step:
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.001)
    process.send_signal(number)
    process.wait(timeout=120)
    return process


def assert_same_run(run: Path, uninterrupted: Path) -> None:
    """Logs and states are equal to the last bit, clocks aside."""
    assert without_clocks(metrics(run)) == without_clocks(metrics(uninterrupted))
    mine, other = load_state(run / "last.ckpt"), load_state(uninterrupted / "last.ckpt")
    assert mine is not None
    assert other is not None
    for part in ("weights", "average"):
        for name, value in mine[part].items():
            assert torch.equal(value, other[part][name]), name
    assert mine["best"] == other["best"]


def test_a_run_killed_then_terminated_then_finished_equals_the_uninterrupted_one(
    tmp_path: Path, dataset: Path, uninterrupted: Path
) -> None:
    killed = interrupt(tmp_path, dataset, signal.SIGKILL, after_step=40)
    assert killed.returncode == -signal.SIGKILL
    saved = load_state(tmp_path / "last.ckpt")
    assert saved is not None
    assert 0 < saved["step"] < STEPS

    terminated = interrupt(tmp_path, dataset, signal.SIGTERM, after_step=saved["step"] + 12)
    assert terminated.returncode == 128 + signal.SIGTERM
    assert terminated.stderr is not None
    message = terminated.stderr.read()
    assert "the same command continues it" in message
    assert "Traceback" not in message
    saved = load_state(tmp_path / "last.ckpt")
    assert saved is not None
    assert saved["step"] >= metrics(tmp_path)[-1]["step"]

    train(long_run(tmp_path, dataset), console=QUIET)
    assert_same_run(tmp_path, uninterrupted)


def test_sigint_stops_a_run_within_its_caller(tmp_path: Path, dataset: Path) -> None:
    config = tiny_run(tmp_path, dataset, max_steps=None, max_minutes=5.0, validation_windows=0)

    def press(number: int, frame: object) -> None:
        signal.raise_signal(signal.SIGINT)

    signal.signal(signal.SIGALRM, press)
    signal.setitimer(signal.ITIMER_REAL, 2.0)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(TrainingStopped, match="SIGINT"):
        train(config, console=QUIET)
    assert signal.getsignal(signal.SIGINT) is before
    assert (tmp_path / "last.ckpt").is_file()


def test_the_minutes_of_earlier_sessions_count(tmp_path: Path, dataset: Path) -> None:
    config = tiny_run(tmp_path, dataset, max_steps=None, max_minutes=1 / 60, validation_windows=0)
    train(config, console=QUIET)
    config.max_minutes = 1.5 / 60
    began = time.monotonic()
    train(config, console=QUIET)
    assert time.monotonic() - began < 1.4  # half a second more of training, not one and a half
    elapsed = [line["elapsed_s"] for line in metrics(tmp_path)]
    assert elapsed == sorted(elapsed)
    assert elapsed[-1] == pytest.approx(1.5, abs=0.3)
