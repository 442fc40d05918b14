"""Which parameters of a policy are trained, and which part of it a parameter belongs to."""

from __future__ import annotations

from fnmatch import fnmatchcase

from torch import nn

from roboflamingo.policy import RoboFlamingo
from roboflamingo.training.config import ConfigError, TrainConfig

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


def part_of(name: str) -> str:
    """The part that a policy's parameter of that name belongs to."""
    return next((part for part, pattern in PARTS.items() if fnmatchcase(name, pattern)), name.split(".")[0])


def choose_trainable(policy: RoboFlamingo, config: TrainConfig) -> None:
    """Lets exactly those parameters require gradients that the config names.

    Raises:
        ConfigError: more layers of cross-attention are asked for than there are.
    """
    wanted = config.trainable
    cross = {id(p) for block in _last_cross_attention(policy, wanted.cross_attention) for p in block.parameters()}
    table = {id(p) for p in policy.backbone.lang_encoder.get_input_embeddings().parameters()}
    switches = {
        "resampler": wanted.resampler,
        "vision encoder": wanted.vision,
        "language model": wanted.language,
        "residual copy": False,
    }
    for name, parameter in policy.named_parameters():
        part = part_of(name)
        trains = config.trains_everything or switches.get(part, True)
        if not config.trains_everything:
            if part == "cross-attention":
                trains = id(parameter) in cross
            elif id(parameter) in table:
                trains = wanted.token_embedding
        parameter.requires_grad = trains and part != "residual copy"


def _last_cross_attention(policy: RoboFlamingo, count: int | None) -> list[nn.Module]:
    blocks: list[nn.Module] = [
        layer.gated_cross_attn_layer for layer in policy.backbone.layers if layer.gated_cross_attn_layer is not None
    ]
    if count is None:
        return blocks
    if not 0 <= count <= len(blocks):
        raise ConfigError(f"trainable.cross_attention is {count}; this policy has {len(blocks)} such layers")
    return blocks[len(blocks) - count :]
