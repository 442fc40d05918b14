"""EfficientNet-lite0 as timm has it, and its weights by the names under which they are published."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn


def a_lite0() -> Any:
    """A random one, whose batch norms have statistics of some data."""
    torch.manual_seed(0)
    model = timm.create_model("tf_efficientnet_lite0", pretrained=False).eval()
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.normal_(part.weight, mean=1.0, std=0.2)
            nn.init.normal_(part.bias, std=0.5)
            part.running_mean.normal_(std=0.3)
            part.running_var.uniform_(0.5, 1.5)
    return model


def published_names(model: Any) -> dict[str, Tensor]:
    """Timm's state dict as efficientnet_pytorch names it."""
    state, named, number = model.state_dict(), {}, 0

    def take(theirs: str, published: str) -> None:
        named.update(
            {f"{published}.{key[len(theirs) + 1 :]}": state[key] for key in state if key.startswith(theirs + ".")}
        )

    take("conv_stem", "_conv_stem")
    take("bn1", "_bn0")
    for stage in range(7):
        for block in range(len(model.blocks[stage])):
            here, there = f"blocks.{stage}.{block}", f"_blocks.{number}"
            order = ["conv_pw", "conv_dw", "conv_pwl"] if stage else ["conv_dw", "conv_pw"]
            names = ["_expand_conv", "_depthwise_conv", "_project_conv"][-len(order) :]
            for place, (theirs, name) in enumerate(zip(order, names, strict=True)):
                take(f"{here}.{theirs}", f"{there}.{name}")
                take(f"{here}.bn{place + 1}", f"{there}._bn{place + 3 - len(order)}")
            number += 1
    take("conv_head", "_conv_head")
    take("bn2", "_bn1")
    take("classifier", "_fc")
    return named


def load_published(model: Any, tensors: dict[str, Tensor]) -> Any:
    """The same model with published weights."""
    places = {name: key for key, name in zip(model.state_dict(), published_names_in_order(model), strict=True)}
    model.load_state_dict({places[name]: tensor for name, tensor in tensors.items()}, strict=False)
    return model


def published_names_in_order(model: Any) -> list[str]:
    """The published name of every entry of timm's state dict."""
    marked = {name: tensor.data_ptr() for name, tensor in published_names(model).items()}
    by_place = {place: name for name, place in marked.items()}
    return [by_place[tensor.data_ptr()] for tensor in model.state_dict().values()]


def write_lite0(path: Path, model: Any) -> Path:
    """Its file as it is published."""
    torch.save(published_names(model), path)
    return path
