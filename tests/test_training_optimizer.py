"""The optimizer: its learning rate over a run, which weights decay, and what its settings are checked for."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import nn
from transformers import get_scheduler

from policies import small_policy
from roboflamingo.heads import HeadConfig
from roboflamingo.training.checkpoint import load_state
from roboflamingo.training.config import TrainConfig
from roboflamingo.training.config_parts import ConfigError, OptimizerConfig
from roboflamingo.training.optimizer import weight_decay_groups
from roboflamingo.training.progress import Progress
from roboflamingo.training.schedule import learning_rate
from roboflamingo.training.train import train
from runs import losses, metrics, tiny_policy, tiny_run
from synthetic import write_dataset

QUIET = Console(quiet=True)


def a_run(**optimizer: Any) -> TrainConfig:
    """A configuration; nothing of it is on disk."""
    return tiny_run(Path("run"), Path("data"), optimizer=OptimizerConfig(learning_rate=1.0, **optimizer))


# --- schedules -----------------------------------------------------------------------------------


def test_learning_rate_warms_up_and_falls_by_steps() -> None:
    config = a_run(warmup_steps=10)
    rates = [learning_rate(config, Progress(100, None, step=step)) for step in range(101)]
    assert rates[0] == pytest.approx(0.1, abs=1e-3)
    assert rates[50] == pytest.approx(0.5)
    assert rates[100] == 0
    assert rates[9] == max(rates)


@pytest.mark.parametrize("schedule", ["cosine", "linear", "cosine_restarts"])
def test_learning_rate_falls_by_minutes_where_minutes_limit_training(schedule: Any) -> None:
    config = a_run(warmup_steps=0, schedule=schedule)
    rates = [learning_rate(config, Progress(None, 2.0, step=5, elapsed_s=s)) for s in (0, 60, 120, 500)]
    assert rates == pytest.approx([1, 0.5, 0, 0])


def test_constant_schedule_stays_after_warm_up() -> None:
    config = a_run(warmup_steps=4, schedule="constant")
    assert [learning_rate(config, Progress(10, None, step=s)) for s in (0, 3, 9)] == [0.25, 1, 1]


@pytest.mark.parametrize(
    ("ours", "theirs", "options"),
    [
        ("constant", "constant", {}),
        ("linear", "linear", {}),
        ("cosine", "cosine", {}),
        ("cosine_restarts", "cosine_with_restarts", {"num_cycles": 3}),
    ],
)
def test_schedules_without_warm_up_are_those_of_transformers(ours: Any, theirs: str, options: dict[str, int]) -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs_over_time = get_scheduler(
        theirs, optimizer, num_warmup_steps=0, num_training_steps=30, scheduler_specific_kwargs=options
    )
    config = a_run(warmup_steps=0, schedule=ours, cycles=options.get("num_cycles", 1))
    for step in range(31):
        assert learning_rate(config, Progress(30, None, step=step)) == pytest.approx(
            theirs_over_time.get_last_lr()[0], abs=1e-9
        )
        optimizer.step()
        theirs_over_time.step()


def test_accumulated_batches_count_as_one_step_of_the_schedule(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path / "data", lengths=(4,))
    optimizer = OptimizerConfig(learning_rate=1.0, warmup_steps=0, schedule="linear")
    config = tiny_run(tmp_path, dataset, max_steps=4, accumulate=2, optimizer=optimizer, validation_windows=0)
    train(config, console=QUIET)
    assert [line["lr"] for line in metrics(tmp_path)] == pytest.approx([1, 0.75, 0.5, 0.25])


# --- scaling -------------------------------------------------------------------------------------


def test_the_learning_rate_is_as_given_unless_scaling_is_asked_for() -> None:
    plain = replace(a_run(), batch_size=6, accumulate=2, devices=4, nodes=2)
    assert plain.scaled_learning_rate == 1.0
    scaled = replace(plain, optimizer=OptimizerConfig(learning_rate=1.0, scale_with="batch", reference_batch=48))
    assert scaled.windows_a_step == 96
    assert scaled.scaled_learning_rate == 2.0
    assert learning_rate(scaled, Progress(10, None, step=100)) == 0
    assert learning_rate(replace(scaled, optimizer=replace(scaled.optimizer, warmup_steps=0)), Progress(10, None)) == 2


@pytest.mark.parametrize("settings", [{"scale_with": "batch"}, {"reference_batch": 48}])
def test_scaling_needs_both_its_keys(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="reference_batch"):
        OptimizerConfig(**settings)


# --- weight decay --------------------------------------------------------------------------------


def test_only_matrices_decay() -> None:
    module = nn.ModuleDict({"embedding": nn.Embedding(4, 3), "linear": nn.Linear(3, 2), "norm": nn.LayerNorm(2)})
    module.register_parameter("gate", nn.Parameter(torch.zeros(1)))
    module.register_parameter("latents", nn.Parameter(torch.zeros(5, 3)))
    module.register_parameter("frozen", nn.Parameter(torch.zeros(5, 3), requires_grad=False))
    decay, keep = weight_decay_groups(module, 0.1)
    assert [p.shape for p in decay["params"]] == [(2, 3)]
    assert len(keep["params"]) == 6
    assert (decay["weight_decay"], keep["weight_decay"]) == (0.1, 0.0)


def test_decay_can_be_confined_to_the_cross_attention() -> None:
    policy = small_policy()
    decay, keep = weight_decay_groups(policy, 0.1, ["*gated_cross_attn_layer*"])
    names = {id(p): name for name, p in policy.named_parameters()}
    decaying = {names[id(p)] for p in decay["params"]}
    block = "backbone.lang_encoder.blocks.{}.gated_cross_attn_layer.{}.weight"
    matrices = ("attn.to_q", "attn.to_kv", "attn.to_out", "ff.1", "ff.3")
    assert decaying == {block.format(layer, matrix) for layer in range(2) for matrix in matrices}
    assert len(decaying) + len(keep["params"]) == len(names)


def test_a_decay_pattern_that_fits_nothing_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"decay_only: '\*cross_attention\*' fits no trained parameter"):
        weight_decay_groups(small_policy(), 0.1, ["*gated*", "*cross_attention*"])


# --- 8-bit Adam ----------------------------------------------------------------------------------


def test_8_bit_adam_trains_with_byte_states_and_continues(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    dataset = write_dataset(tmp_path / "data", lengths=(4,))
    same: dict[str, Any] = {
        "policy": tiny_policy(head=HeadConfig(hidden=64)),  # tensors below 4096 numbers keep fp32 states
        "optimizer": OptimizerConfig(kind="adamw_8bit", warmup_steps=0, schedule="constant"),
        "validation_windows": 0,
    }
    for run, ends in (("whole", (6,)), ("parts", (3, 6))):
        for steps in ends:
            train(tiny_run(tmp_path / run, dataset, max_steps=steps, **same), console=QUIET)
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    saved = load_state(tmp_path / "whole" / "last.ckpt")
    assert saved is not None
    assert any(state.dtype == torch.uint8 for state in _tensors(saved["optimizer"]))


def test_8_bit_adam_without_its_library_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    config = tiny_run(tmp_path, tmp_path, optimizer=OptimizerConfig(kind="adamw_8bit"))
    with pytest.raises(ConfigError, match=r"pip install 'roboflamingo\[adam8bit\]'"):
        train(config, console=QUIET)


def test_8_bit_adam_cannot_be_sharded(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="adamw_8bit cannot be sharded"):
        tiny_run(tmp_path, tmp_path, optimizer=OptimizerConfig(kind="adamw_8bit"), strategy="fsdp")


def _tensors(tree: Any) -> list[torch.Tensor]:
    if isinstance(tree, dict):
        return [tensor for value in tree.values() for tensor in _tensors(value)]
    return [tree] if isinstance(tree, torch.Tensor) else []
