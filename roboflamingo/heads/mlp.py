"""A perceptron that looks at one frame."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from roboflamingo.heads.base import ChunkOutput, Head, HeadConfig, Prediction, register_head


@register_head("mlp")
class MLPHead(Head):
    """No history: the same perceptron at every frame."""

    def __init__(self, config: HeadConfig, features: int, chunk: int) -> None:
        super().__init__(config, features, chunk)
        self.layer = nn.Linear(features, config.hidden)
        self.output = ChunkOutput(config.hidden, config.hidden, chunk)

    def forward(self, features: Tensor) -> Prediction:
        """Features (B, T, D) -> a chunk at every frame."""
        return self.output(F.gelu(self.layer(features)))
