"""Several processes train as one would, whether each holds the whole policy (DDP) or a share of it (FSDP)."""

from __future__ import annotations

import subprocess
import sys
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

from policies import a_batch, frozen_policy
from processes import run_in_processes
from roboflamingo.backbone.filling import halve
from roboflamingo.training.checkpoint import load_state
from roboflamingo.training.config_parts import OptimizerConfig
from roboflamingo.training.layers import shard
from roboflamingo.training.train import train
from roboflamingo.weights.checkpoint import load_policy
from runs import deterministic_policy, losses, metrics, tiny_run, write_yaml
from synthetic import write_dataset

QUIET = Console(quiet=True)
SAME: dict[str, Any] = {
    "policy": deterministic_policy(),
    "max_steps": 8,
    "validate_every_steps": 2,
    "validation_windows": 5,  # two batches for one process and one for the other
    "optimizer": OptimizerConfig(warmup_steps=3, learning_rate=2e-3, schedule="constant", ema=0.9, clip=0.5),
}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory, dataset: Path) -> Path:
    """The run of one process with batches as large as two processes' together."""
    run = tmp_path_factory.mktemp("one")
    train(tiny_run(run, dataset, batch_size=4, **SAME), console=QUIET)
    return run


def assert_same_results(run: Path, one: Path) -> None:
    """Losses, held-out losses, gradients and both policies agree but for the order of sums."""
    np.testing.assert_allclose(losses(run), losses(one), rtol=1e-4)
    for key in ("val_loss", "grad_norm"):
        values = [[line[key] for line in metrics(r) if key in line] for r in (run, one)]
        assert len(values[0]) >= 2
        np.testing.assert_allclose(values[0], values[1], rtol=1e-3)
    for name in ("policy", "policy_best"):
        mine, other = (load_policy(r / name).state_dict() for r in (run, one))
        for key, value in other.items():
            torch.testing.assert_close(mine[key], value, rtol=1e-3, atol=1e-4)


def test_two_processes_train_as_one_with_the_doubled_batch(tmp_path: Path, dataset: Path, one: Path) -> None:
    run = tmp_path / "run"
    file = write_yaml(tiny_run(run, dataset, batch_size=2, devices=2, **SAME), tmp_path / "run.yaml")
    command = [sys.executable, "-m", "roboflamingo.cli.main", "train", "--config", str(file)]
    subprocess.run(command, check=True, timeout=300, capture_output=True)
    assert_same_results(run, one)
    lines = [line for line in metrics(run) if "frames_per_s" in line]
    times = [line["elapsed_s"] for line in metrics(run)]
    assert times == sorted(times)
    seconds = sum(4 * 1 / line["frames_per_s"] for line in lines)  # four windows a step, of one frame
    assert len(lines) == 8
    assert 0.2 * times[-1] < seconds < 1.05 * times[-1] + 0.1


def test_sharded_processes_train_as_one_and_continue_whatever_the_strategy_before(
    tmp_path: Path, dataset: Path, one: Path
) -> None:
    config = tiny_run(tmp_path, dataset, batch_size=2, devices=2, **SAME)
    run_in_processes(2, train, replace(config, max_steps=2, strategy="fsdp"))
    saved = load_state(tmp_path / "last.ckpt")
    assert saved is not None
    assert saved["weights"]["head.output.out.weight"].shape == (7, 16)  # whole, not a share
    run_in_processes(2, train, replace(config, max_steps=4, strategy="fsdp", checkpoint_activations=True))
    run_in_processes(2, train, replace(config, max_steps=6, strategy="ddp"))
    run_in_processes(2, train, replace(config, max_steps=8, strategy="fsdp"))
    assert_same_results(tmp_path, one)


def test_a_process_holds_half_of_the_weights_and_computes_the_same_gradients() -> None:
    run_in_processes(2, compare_sharded_with_whole)


def compare_sharded_with_whole() -> None:
    """In each of two processes, on the same batch: frozen weights in bf16, trained ones in fp32."""
    torch.distributed.init_process_group("gloo")
    policy = frozen_policy()
    halve(policy)
    batch = a_batch(policy.config)
    whole, shared = policy, deepcopy(policy)
    shard(shared, init_device_mesh("cpu", (2,)))
    losses = []
    for model in (whole, shared):
        torch.manual_seed(1)  # of the random shift
        with torch.autocast("cpu", torch.bfloat16):
            losses.append(model.loss(batch)["loss"])
        losses[-1].backward()
    assert torch.equal(losses[0], losses[1])
    theirs = dict(shared.named_parameters())
    for name, parameter in whole.named_parameters():
        share = theirs[name]
        assert isinstance(share, DTensor)
        assert share.dtype == parameter.dtype
        if parameter.grad is not None:
            assert isinstance(share.grad, DTensor)
            torch.testing.assert_close(share.grad.full_tensor(), parameter.grad, rtol=1e-3, atol=1e-6)
    held = sum(p.to_local().numel() for p in theirs.values() if isinstance(p, DTensor))
    assert held < 0.55 * sum(p.numel() for p in whole.parameters())
