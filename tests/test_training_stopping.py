"""Early stopping: when training ends because it brings nothing any more, and that it does so once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from roboflamingo.training.config_parts import ConfigError, OptimizerConfig
from roboflamingo.training.stopping import Patience
from roboflamingo.training.train import train
from runs import metrics, tiny_run
from synthetic import write_dataset

QUIET = Console(quiet=True)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data"))


def follow(patience: Patience, losses: list[float]) -> list[tuple[bool, bool]]:
    """Whether each loss is the best, and whether training is to end after it."""
    return [(patience.is_best(loss), patience.exhausted()) for loss in losses]


def test_training_ends_after_as_many_validations_without_gain() -> None:
    assert follow(Patience(2, 0.0), [3.0, 2.0, 2.5, 1.9, 1.9, 2.0]) == [
        (True, False), (True, False), (False, False), (True, False), (False, False), (False, True),
    ]  # fmt: skip


def test_a_gain_below_the_smallest_is_the_best_policy_but_no_gain() -> None:
    assert follow(Patience(2, 0.1), [3.0, 2.95, 2.92, 2.85]) == [
        (True, False), (True, False), (True, True), (True, False),
    ]  # fmt: skip


def test_without_patience_training_never_ends_early() -> None:
    assert not any(end for _, end in follow(Patience(None, 0.0), [1.0] * 50))


def test_a_loss_that_is_no_number_is_no_gain() -> None:
    nan = float("nan")
    assert follow(Patience(2, 0.0), [nan, 1.0, nan, nan]) == [
        (False, False), (True, False), (False, False), (False, True),
    ]  # fmt: skip


def test_patience_continues_where_it_was_saved() -> None:
    losses = [3.0, 2.5, 2.6, 2.45, 2.7, 2.8]
    whole = follow(Patience(3, 0.1), losses)
    for cut in range(len(losses)):
        first, second = Patience(3, 0.1), Patience(3, 0.1)
        before = follow(first, losses[:cut])
        second.load_state_dict(first.state_dict())
        assert before + follow(second, losses[cut:]) == whole


def test_a_run_that_stopped_early_is_complete_until_it_is_given_more_patience(tmp_path: Path, dataset: Path) -> None:
    still = OptimizerConfig(learning_rate=0.0)  # nothing is ever gained after the first validation
    config = tiny_run(tmp_path, dataset, max_steps=40, optimizer=still, validate_every_steps=2, patience=3)
    train(config, console=QUIET)
    assert (tmp_path / "policy").is_dir()
    assert [line["step"] for line in metrics(tmp_path) if "val_loss" in line] == [2, 4, 6, 8]
    before = (tmp_path / "last.ckpt").stat().st_mtime_ns
    train(config, console=QUIET)
    assert (tmp_path / "last.ckpt").stat().st_mtime_ns == before
    train(replace(config, patience=5), console=QUIET)
    assert [line["step"] for line in metrics(tmp_path) if "val_loss" in line] == [2, 4, 6, 8, 10, 12]


@pytest.mark.parametrize("settings", [{}, {"validate_every_steps": 2, "validation_windows": 0}])
def test_patience_needs_validations(tmp_path: Path, settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="patience 3 counts validations"):
        tiny_run(tmp_path, tmp_path, patience=3, **settings)
