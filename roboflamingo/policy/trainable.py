"""Which parameters of a RoboFlamingo take part in the computation, and which of them train."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from torch import nn

from calvin_eval.system.errors import UserError
from roboflamingo.backbone import Flamingo
from roboflamingo.policy.base import LearnedPolicy

PARTS = {
    "residual copy": "backbone.lang_encoder.*.res_layer.*",
    "cross-attention": "backbone.lang_encoder.*.gated_cross_attn_layer.*",
    "adapters": "backbone.lang_encoder.*.adapter.*",
    "low-rank updates": "backbone.*.lora_*",
    "resampler": "backbone.perceiver*",
    "vision encoder": "backbone.vision_encoder.*",
    "language model": "backbone.lang_encoder.*",
    "head": "head.*",
}
"""Parts and patterns of their parameters' names; the first that fits counts."""


class Wanted(Protocol):
    """What of a RoboFlamingo is to train (see `roboflamingo.training.config.TrainableConfig`)."""

    @property
    def resampler(self) -> bool:
        """The resamplers."""

    @property
    def cross_attention(self) -> int | None:
        """Its last so many layers."""

    @property
    def token_embedding(self) -> bool:
        """The language model's."""

    @property
    def vision(self) -> bool:
        """The vision encoder."""

    @property
    def language(self) -> bool:
        """The language model's own layers."""


def idle_parameters(backbone: Flamingo) -> set[int]:
    """The ids of parameters that nothing depends on: what follows the penultimate hidden states where those are read.

    They are the last layer of the language model with all that was added to it, and what follows the layers.
    """
    if backbone.config.language.output != "penultimate":
        return set()
    layers = backbone.layers
    inside = {id(p) for layer in layers for p in layer.parameters()}
    last = layers[-1:] if backbone.config.cross_attention.every <= len(layers) else []  # else all only read
    after = {
        id(p)
        for name, p in backbone.lang_encoder.named_parameters()
        if id(p) not in inside and any(word in name for word in ("norm", "project_out"))
    }
    return after | {id(p) for layer in last for p in layer.parameters()}


def chosen_parameters(policy: LearnedPolicy, backbone: Flamingo, wanted: Wanted) -> Iterator[nn.Parameter]:
    """The parameters that are to train.

    Raises:
        UserError: more layers of cross-attention are asked for than run.
    """
    cross = {id(p) for block in last_cross_attention(backbone, wanted.cross_attention) for p in block.parameters()}
    table = {id(p) for p in backbone.lang_encoder.get_input_embeddings().parameters()}
    switches = {
        "resampler": wanted.resampler,
        "vision encoder": wanted.vision,
        "language model": wanted.language,
    }
    for name, parameter in policy.named_parameters():
        part = policy.part_of(name)
        if part == "cross-attention":
            trains = id(parameter) in cross
        else:
            trains = wanted.token_embedding if id(parameter) in table else switches.get(part, True)
        if trains:
            yield parameter


def last_cross_attention(backbone: Flamingo, count: int | None) -> list[nn.Module]:
    """The last so many layers of cross-attention among those that run.

    Raises:
        UserError: there are not so many.
    """
    idle = idle_parameters(backbone)
    blocks: list[nn.Module] = [
        layer.gated_cross_attn_layer
        for layer in backbone.layers
        if layer.gated_cross_attn_layer is not None
        and not any(id(p) in idle for p in layer.gated_cross_attn_layer.parameters())
    ]
    if count is None:
        return blocks
    if not 0 <= count <= len(blocks):
        raise UserError(f"trainable.cross_attention is {count}; in this policy {len(blocks)} such layers run")
    return blocks[len(blocks) - count :]
