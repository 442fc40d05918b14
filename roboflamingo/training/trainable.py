"""Which parameters of a policy are trained, and which part of it a parameter belongs to."""

from __future__ import annotations

from fnmatch import fnmatchcase

from torch import nn

from roboflamingo.policy.roboflamingo import RoboFlamingo
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
    """Lets exactly those parameters require gradients that the config names and that take part in the computation.

    Raises:
        ConfigError: more layers of cross-attention are asked for than run, or nothing is left to train.
    """
    idle = idle_parameters(policy)
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
        parameter.requires_grad = trains and part != "residual copy" and id(parameter) not in idle
    if not any(parameter.requires_grad for parameter in policy.parameters()):
        raise ConfigError("trainable leaves nothing to train; set trainable.everything, or one of its other keys")


def idle_parameters(policy: RoboFlamingo) -> set[int]:
    """The ids of parameters that nothing depends on: what follows the penultimate hidden states where those are read.

    They are the last layer of the language model with all that was added to it, and what follows the layers.
    """
    backbone = policy.backbone
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


def _last_cross_attention(policy: RoboFlamingo, count: int | None) -> list[nn.Module]:
    """The last so many layers of cross-attention among those that run."""
    idle = idle_parameters(policy)
    blocks: list[nn.Module] = [
        layer.gated_cross_attn_layer
        for layer in policy.backbone.layers
        if layer.gated_cross_attn_layer is not None
        and not any(id(p) in idle for p in layer.gated_cross_attn_layer.parameters())
    ]
    if count is None:
        return blocks
    if not 0 <= count <= len(blocks):
        raise ConfigError(f"trainable.cross_attention is {count}; in this policy {len(blocks)} such layers run")
    return blocks[len(blocks) - count :]
