"""Where metrics go, what the start of a run says, and what a run's file on disk holds it to."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from policies import frozen_policy
from roboflamingo.training.config_parts import ConfigError, OptimizerConfig, WandbConfig
from roboflamingo.training.resolved import check_same_config, write_config
from roboflamingo.training.summary import parts_of, summary
from roboflamingo.training.train import train
from runs import losses, metrics, tiny_run
from synthetic import write_dataset

QUIET = Console(quiet=True)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data"))


# --- loggers -------------------------------------------------------------------------------------


def test_metrics_jsonl_is_written_whatever_the_loggers(tmp_path: Path, dataset: Path) -> None:
    train(tiny_run(tmp_path, dataset, max_steps=2, loggers=[]), console=QUIET)
    assert len(losses(tmp_path)) == 2
    assert not (tmp_path / "tensorboard").exists()


def test_tensorboard_shows_what_metrics_jsonl_holds(tmp_path: Path, dataset: Path) -> None:
    train(tiny_run(tmp_path, dataset, max_steps=2, loggers=["tensorboard"]), console=QUIET)
    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    assert [event.step for event in board.Scalars("loss")] == [1, 2]
    assert [event.value for event in board.Scalars("loss")] == pytest.approx(losses(tmp_path))


def test_wandb_offline_keeps_the_run_and_its_later_session(
    tmp_path: Path, dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    wandb = WandbConfig(project="robots", mode="offline")
    config = tiny_run(tmp_path, dataset, max_steps=2, loggers=["wandb"], wandb=wandb)
    train(config, console=QUIET)
    train(replace(config, max_steps=3), console=QUIET)
    name = (tmp_path / "wandb_id.txt").read_text()
    files = sorted((tmp_path / "wandb").glob(f"offline-run-*-{name}/run-{name}.wandb"))
    assert len(files) == 2
    content = files[0].read_bytes()
    for word in (b"grad_norm", b"val_loss", b"robots", b"batch_size"):
        assert word in content


def test_wandb_without_its_library_says_what_to_install(
    tmp_path: Path, dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ConfigError, match=r"wandb in loggers needs wandb .*pip install 'roboflamingo\[wandb\]'"):
        train(tiny_run(tmp_path, dataset, loggers=["wandb"]), console=QUIET)


# --- the start's summary -------------------------------------------------------------------------


def test_the_summary_counts_every_parameter_once_by_part() -> None:
    policy = frozen_policy()
    parts = parts_of(policy)
    assert list(parts) == ["vision encoder", "language model", "cross-attention", "resampler", "head", "auxiliary"]
    assert sum(part.trained for part in parts.values()) == sum(
        p.numel() for p in policy.parameters() if p.requires_grad
    )
    assert sum(part.frozen_tensors for part in parts.values()) == sum(not p.requires_grad for p in policy.parameters())
    assert parts["cross-attention"].frozen == parts["vision encoder"].trained == 0
    assert parts["head"].bytes == 4 * parts["head"].trained


def test_the_summary_fits_a_terminal_and_shows_how_the_learning_rate_comes_about(tmp_path: Path) -> None:
    optimizer = OptimizerConfig(learning_rate=1e-4, scale_with="batch", reference_batch=4)
    config = tiny_run(tmp_path, tmp_path, batch_size=2, accumulate=3, devices=4, optimizer=optimizer)
    policy = frozen_policy()
    console = Console(record=True, width=80, quiet=False, file=(tmp_path / "out").open("w"))
    console.print(summary(policy, config), soft_wrap=True)
    text = console.export_text()
    trained = sum(p.numel() for p in policy.parameters() if p.requires_grad)
    assert f"{trained:,}" in text
    assert "learning rate 0.0006 = 0.0001 x 24 / 4 (scale_with)" in text
    assert "batch 2 x accumulate 3 x processes 4" in text
    assert max(len(line) for line in text.splitlines() if "windows a step" not in line) <= 80


# --- what a run is held to -----------------------------------------------------------------------


def test_keys_younger_than_a_run_count_as_their_defaults(tmp_path: Path, dataset: Path) -> None:
    config = tiny_run(tmp_path, dataset)
    path = tmp_path / "config.yaml"
    write_config(config, path)
    old: dict[str, Any] = yaml.safe_load(path.read_text())
    for key in ("frozen_precision", "checkpoint_activations", "loggers", "patience", "wandb"):
        del old[key]
    del old["optimizer"]["scale_with"], old["optimizer"]["reference_batch"]
    path.write_text(yaml.safe_dump(old, sort_keys=False))
    check_same_config(replace(config, loggers=[], patience=3, validate_every_steps=1, strategy="fsdp"), path)
    scaled = replace(config, optimizer=replace(config.optimizer, scale_with="batch", reference_batch=8))
    with pytest.raises(ConfigError, match=r"began with optimizer\.reference_batch = None, now it is 8"):
        check_same_config(scaled, path)


def test_a_run_is_continued_with_other_loggers(tmp_path: Path, dataset: Path) -> None:
    for steps, loggers in ((1, ["jsonl"]), (2, ["jsonl", "tensorboard"])):
        train(tiny_run(tmp_path, dataset, max_steps=steps, loggers=loggers), console=QUIET)
    assert [line["step"] for line in metrics(tmp_path) if "loss" in line] == [1, 2]
    assert (tmp_path / "tensorboard").is_dir()
