"""Gives memory to backbones that were made without (see `Flamingo`)."""

from __future__ import annotations

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from roboflamingo.backbone.flamingo import Flamingo

MULTIPLYING = (nn.Linear, nn.Conv2d, nn.MultiheadAttention, Conv1D)
"""Modules whose matrices autocast brings to bf16 anyway. Embeddings are none: their rows start the residual stream."""


def halve(module: nn.Module, *, also_trained: bool = False) -> None:
    """Stores the matrices of linear, convolutional and attention layers that do not train as bf16.

    Nearly all weights are in them. Vectors and tables stay fp32: they are added to the residual stream, which would
    become bf16 with them.
    """
    for part in module.modules():
        if isinstance(part, MULTIPLYING):
            for parameter in part.parameters(recurse=False):
                if parameter.ndim > 1 and (also_trained or not parameter.requires_grad):
                    parameter.data = parameter.data.to(torch.bfloat16)


def allocate(backbone: Flamingo) -> None:
    """Gives memory with whatever stands in it to what has none, and low-rank updates to what should have them."""
    for part in backbone.modules():
        for name, parameter in part.named_parameters(recurse=False):
            if parameter.is_meta:
                empty = torch.empty_like(parameter, device="cpu")
                part.register_parameter(name, nn.Parameter(empty, requires_grad=parameter.requires_grad))
    complete(backbone)


def randomise(backbone: Flamingo) -> None:
    """Gives random weights to what has none: as their papers begin, and the rest of `allocate`."""
    for part in (backbone.vision_encoder, backbone.lang_encoder):
        for module in part.modules():
            for name, parameter in module.named_parameters(recurse=False):
                if parameter.is_meta:
                    module.register_parameter(name, nn.Parameter(_random(module, name, parameter)))
    complete(backbone)


def _random(module: nn.Module, name: str, like: nn.Parameter) -> torch.Tensor:
    """Vectors: ones for a norm's weight, else zeros; the rest normal, narrower the more numbers are added up."""
    empty = torch.empty_like(like, device="cpu")
    if like.ndim == 1 and "embedding" not in name:
        return empty.fill_(float(name == "weight"))
    scale = 0.02 if isinstance(module, nn.Embedding | nn.Linear) else like[0].numel() ** -0.5
    return empty.normal_(std=scale)


def complete(backbone: Flamingo) -> None:
    """What remains when all weights have memory: buffers that no file holds, and low-rank updates."""
    rotary = getattr(backbone.lang_encoder, "rotary_emb", None)
    if rotary is not None:
        backbone.lang_encoder.rotary_emb = type(rotary)(config=backbone.lang_encoder.config)
    backbone.add_low_rank_updates()
