"""A causal transformer over the window."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from calvin_eval.specs import ActionSpec
from calvin_eval.system.errors import UserError
from roboflamingo.heads.actions import Prediction
from roboflamingo.heads.base import RegressionHead, register_head
from roboflamingo.heads.config import HeadConfig
from roboflamingo.heads.output import ChunkOutput


@register_head("gpt")
class GPTHead(RegressionHead):
    """A transformer in which each frame sees itself and those before, with learned positions.

    Raises:
        UserError: `hidden` is no multiple of `attention_heads`.
    """

    def __init__(self, config: HeadConfig, spec: ActionSpec, features: int, chunk: int, window: int) -> None:
        super().__init__(config, spec, features, chunk, window)
        if config.hidden % config.attention_heads:
            raise UserError(
                f"policy.head.hidden {config.hidden} is no multiple of attention_heads {config.attention_heads}"
            )
        self.input = nn.Linear(features, config.hidden)
        self.position_embedding = nn.Parameter(0.02 * torch.randn(window, config.hidden))
        layer = nn.TransformerEncoderLayer(
            config.hidden,
            config.attention_heads,
            4 * config.hidden,
            config.dropout,
            activation="gelu",
            batch_first=True,
            norm_first=True,
        )
        self.blocks = nn.TransformerEncoder(
            layer, config.layers, norm=nn.LayerNorm(config.hidden), enable_nested_tensor=False
        )
        self.output = ChunkOutput(config.hidden, config, self.actions, chunk)

    def forward(self, features: Tensor) -> Prediction:
        """Features (B, T, D) -> a chunk at every frame."""
        length = features.shape[1]
        hidden = self.input(features) + self.position_embedding[:length]
        future = nn.Transformer.generate_square_subsequent_mask(length, device=hidden.device, dtype=hidden.dtype)
        return self.output(self.blocks(hidden, mask=future, is_causal=True))
