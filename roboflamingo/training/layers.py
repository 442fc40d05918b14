"""What is done to a policy's layers before it trains: storing, recomputing, compiling and sharding them.

None of it changes a parameter's name, so that checkpoints fit whatever was chosen.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.utils.checkpoint import checkpoint
from transformers.pytorch_utils import Conv1D

from roboflamingo.backbone.flamingo import FlamingoLayer
from roboflamingo.policy import RoboFlamingo

MULTIPLYING = (nn.Linear, nn.Conv2d, nn.MultiheadAttention, Conv1D)
"""Modules whose matrices autocast brings to bf16 anyway. Embeddings are none: their rows start the residual stream."""


def language_layers(policy: RoboFlamingo) -> Iterator[nn.Module]:
    """The decoder layers of the language model and the cross-attention between them.

    They are given one by one, as a `FlamingoLayer` reads its visual tokens from an attribute that is empty
    again by the time of the backward pass.
    """
    for module in policy.modules():
        if isinstance(module, FlamingoLayer):
            yield from module.children()


def repeated_layers(policy: RoboFlamingo) -> Iterator[nn.Module]:
    """All layers that stand in lists, those of vision encoder, resampler, language model and head."""
    yield from language_layers(policy)
    for module in policy.modules():
        if isinstance(module, nn.ModuleList):
            yield from (layer for layer in module if not isinstance(layer, FlamingoLayer | nn.ModuleList))


def cast_frozen(policy: RoboFlamingo) -> None:
    """Stores the matrices that do not train as bf16.

    Those of linear, convolutional and attention layers, in which nearly all weights are. Vectors and tables stay
    fp32: they are added to the residual stream, which would become bf16 with them.
    """
    for module in policy.modules():
        if isinstance(module, MULTIPLYING):
            for parameter in module.parameters(recurse=False):
                if parameter.ndim > 1 and not parameter.requires_grad:
                    parameter.data = parameter.data.to(torch.bfloat16)


def checkpoint_activations(policy: RoboFlamingo) -> None:
    """Makes decoder and cross-attention layers keep nothing but their inputs for the backward pass."""
    for layer in language_layers(policy):
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)


def compile_layers(policy: RoboFlamingo) -> None:
    """Compiles decoder and cross-attention layers, in place; equal ones share the result."""
    for layer in language_layers(policy):
        layer.compile()


def shard(policy: RoboFlamingo, mesh: DeviceMesh) -> None:
    """Gives every process of a mesh its share of all weights (FSDP2), gathered for a layer while it computes.

    The root gathers its own again in the backward pass, too: between two passes no process then holds anything
    but its share, and the average of the weights can be put in their place.
    """
    for layer in repeated_layers(policy):
        fully_shard(layer, mesh=mesh)
    fully_shard(policy, mesh=mesh, reshard_after_forward=True)
    for method in ("loss", "predict"):
        register_fsdp_forward_method(policy, method)
