"""The optimizer and which weights it decays."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

from torch import nn
from torch.optim import AdamW, Optimizer

from roboflamingo.training.config import TrainConfig
from roboflamingo.training.config_parts import ConfigError


def make_optimizer(module: nn.Module, config: TrainConfig) -> Optimizer:
    """AdamW over the parameters that require gradients.

    Raises:
        ConfigError: a pattern of `optimizer.decay_only` fits no parameter.
    """
    settings = config.optimizer
    groups = weight_decay_groups(module, settings.weight_decay, settings.decay_only)
    betas = (settings.beta1, settings.beta2)
    if settings.kind == "adamw_8bit":
        from bitsandbytes.optim import AdamW8bit  # an extra, see extras.py

        return AdamW8bit(groups, lr=config.scaled_learning_rate, betas=betas)
    return AdamW(groups, lr=config.scaled_learning_rate, betas=betas, fused=True)  # one kernel instead of a hundred


def weight_decay_groups(
    module: nn.Module, weight_decay: float, only: Sequence[str] | None = None
) -> list[dict[str, Any]]:
    """The trained parameters in two groups: matrices, which decay, and the rest, which must not.

    Biases, norms and gates are vectors or scalars; embeddings and latents are tables of vectors, which a
    batch may leave without gradient and decay would shrink all the same.

    Args:
        module: what is trained.
        weight_decay: of the first group.
        only: patterns of names; matrices whose name fits none do not decay either.

    Raises:
        ConfigError: a pattern fits no trained parameter's name.
    """
    trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
    for pattern in only or ():
        if not any(fnmatchcase(name, pattern) for name in trained):
            example = next(iter(trained), "none at all")
            raise ConfigError(f"optimizer.decay_only: {pattern!r} fits no trained parameter ({example}, for example)")
    tables = {id(m.weight) for m in module.modules() if isinstance(m, nn.Embedding)}
    decay: list[nn.Parameter] = []
    keep: list[nn.Parameter] = []
    for name, parameter in trained.items():
        is_table = id(parameter) in tables or any(word in name for word in ("embed", "latents"))
        is_wanted = only is None or any(fnmatchcase(name, pattern) for pattern in only)
        (decay if is_wanted and parameter.ndim > 1 and not is_table else keep).append(parameter)
    return [{"params": decay, "weight_decay": weight_decay}, {"params": keep, "weight_decay": 0.0}]
