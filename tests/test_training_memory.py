"""What saves memory or time changes no result: frozen weights in bf16, recomputed activations, compiled layers."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from torch import nn

from policies import a_batch, frozen_policy, small_config
from roboflamingo.backbone.filling import halve
from roboflamingo.heads import HeadConfig
from roboflamingo.policy.roboflamingo import RoboFlamingo
from roboflamingo.training.checkpoint import load_state
from roboflamingo.training.config import TrainConfig
from roboflamingo.training.config_parts import ConfigError, OptimizerConfig
from roboflamingo.training.datamodule import open_windows
from roboflamingo.training.layers import checkpoint_activations, compile_layers
from roboflamingo.training.train import fit
from roboflamingo.weights.checkpoint import WEIGHTS, load_policy
from runs import losses, tiny_run
from synthetic import write_dataset

QUIET = Console(quiet=True)


def loss_and_gradients(policy: RoboFlamingo, autocast: bool = False) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Of one training batch, with the same random numbers at every call."""
    policy.zero_grad()
    torch.manual_seed(1)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss = policy.loss(a_batch(policy.config))["loss"]
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in policy.named_parameters() if p.grad is not None}


def assert_same(policy: RoboFlamingo, other: RoboFlamingo, autocast: bool = False, **tolerance: float) -> None:
    """Loss and all gradients of both agree; without tolerance, to the last bit."""
    tolerance = tolerance or {"rtol": 0.0, "atol": 0.0}
    (loss, gradients), (its_loss, its_gradients) = (loss_and_gradients(p, autocast) for p in (policy, other))
    torch.testing.assert_close(its_loss, loss, **tolerance)
    assert its_gradients.keys() == gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(its_gradients[name], gradient, **tolerance)


# --- frozen weights in bf16 ----------------------------------------------------------------------


def test_only_frozen_matrices_of_multiplying_layers_are_cast() -> None:
    policy = frozen_policy()
    halve(policy)
    tables = {id(m.weight) for m in policy.modules() if isinstance(m, nn.Embedding)}
    for name, parameter in policy.named_parameters():
        if parameter.requires_grad or parameter.ndim < 2 or id(parameter) in tables:
            assert parameter.dtype == torch.float32, name
    cast = {name for name, parameter in policy.named_parameters() if parameter.dtype == torch.bfloat16}
    decoder = "backbone.lang_encoder.blocks.{}.decoder_layer.{}.weight"
    matrices = ("attn.Wqkv", "attn.out_proj", "ffn.up_proj", "ffn.down_proj")
    assert {decoder.format(layer, matrix) for layer in range(2) for matrix in matrices} <= cast


def test_frozen_bf16_weights_give_what_mixed_precision_gives_anyway() -> None:
    policy = frozen_policy()
    cast = deepcopy(policy)
    halve(cast)
    assert_same(policy, cast, autocast=True)


@pytest.mark.parametrize("tokens", ["never", "always"])
def test_a_run_with_frozen_bf16_weights_continues_and_leaves_a_policy(
    tmp_path: Path, tokens: Literal["never", "always"]
) -> None:
    dataset = write_dataset(tmp_path / "data")

    def run(name: str, max_steps: int, **changed: Any) -> Path:
        policy = frozen_policy()
        settings = {"policy": policy.config, "precision": "bf16", "optimizer": OptimizerConfig(schedule="constant")}
        config: TrainConfig = tiny_run(tmp_path / name, dataset, max_steps=max_steps, **(settings | changed))
        config = replace(config, data=replace(config.data, vision_tokens=tokens))
        Path(config.run).mkdir(exist_ok=True)
        fit(policy, config, open_windows(config), load_state(tmp_path / name / "last.ckpt"), QUIET)
        return tmp_path / name

    whole = run("whole", 4, frozen_precision="bf16")
    run("parts", 2, frozen_precision="bf16")
    assert losses(run("parts", 4, frozen_precision="bf16")) == losses(whole)
    assert losses(run("fp32", 4)) == losses(whole)
    saved = load_file(whole / "policy" / WEIGHTS)
    before = frozen_policy().state_dict()
    frozen = "backbone.lang_encoder.blocks.0.decoder_layer.ffn.up_proj.weight"
    assert saved[frozen].dtype == torch.bfloat16
    assert torch.equal(saved[frozen], before[frozen].bfloat16())
    assert not torch.equal(saved["head.output.out.weight"], before["head.output.out.weight"])
    assert load_policy(whole / "policy").state_dict()[frozen].dtype == torch.float32


def test_frozen_bf16_weights_need_bf16_computation(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="frozen_precision bf16 needs precision bf16"):
        tiny_run(tmp_path, tmp_path, frozen_precision="bf16", precision="fp32")


# --- recomputed activations ----------------------------------------------------------------------


def saved_bytes(policy: RoboFlamingo) -> int:
    """What the forward pass of a batch keeps for its backward pass."""
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = policy.loss(a_batch(policy.config))["loss"]
        total = sum(kept.values())
    del loss
    return total


@pytest.mark.parametrize("autocast", [False, True])
def test_recomputed_activations_change_neither_loss_nor_gradients(autocast: bool) -> None:
    policy = frozen_policy(head=HeadConfig(hidden=16, layers=2, dropout=0.5))
    recomputing = deepcopy(policy)
    checkpoint_activations(recomputing)
    assert_same(policy, recomputing, autocast=autocast)


def test_recomputed_activations_are_not_kept() -> None:
    policy = frozen_policy()
    recomputing = deepcopy(policy)
    checkpoint_activations(recomputing)
    assert saved_bytes(recomputing) < 0.7 * saved_bytes(policy)
    assert recomputing.state_dict().keys() == policy.state_dict().keys()


# --- compiled layers -----------------------------------------------------------------------------


def test_compiled_layers_change_neither_names_nor_results() -> None:
    backbone = small_config().backbone
    policy = frozen_policy(backbone=replace(backbone, language=replace(backbone.language, layers=1)))
    compiled = deepcopy(policy)
    compile_layers(compiled)
    assert compiled.state_dict().keys() == policy.state_dict().keys()
    assert_same(policy, compiled, rtol=1e-4, atol=1e-6)
