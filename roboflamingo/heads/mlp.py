"""Perceptrons that look at one frame, or at all frames of a window at once."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from calvin_eval.specs import ActionSpec
from roboflamingo.heads.actions import Prediction
from roboflamingo.heads.base import RegressionHead, register_head
from roboflamingo.heads.config import HeadConfig
from roboflamingo.heads.output import ChunkOutput


@register_head("mlp")
class MLPHead(RegressionHead):
    """No history: the same perceptron at every frame."""

    def __init__(self, config: HeadConfig, spec: ActionSpec, features: int, chunk: int, window: int) -> None:
        super().__init__(config, spec, features, chunk, window)
        self.layer = nn.Linear(features, config.hidden)
        self.output = ChunkOutput(config.hidden, config, self.actions, chunk)

    def forward(self, features: Tensor) -> Prediction:
        """Features (B, T, D) -> a chunk at every frame."""
        return self.output(F.gelu(self.layer(features)))


@register_head("mlp_history")
class MLPHistoryHead(RegressionHead):
    """At every frame a perceptron over it and the T - 1 frames before; before the first, the first is repeated."""

    def __init__(self, config: HeadConfig, spec: ActionSpec, features: int, chunk: int, window: int) -> None:
        super().__init__(config, spec, features, chunk, window)
        self.layer = nn.Linear(window * features, config.hidden)
        self.output = ChunkOutput(config.hidden, config, self.actions, chunk)

    def forward(self, features: Tensor) -> Prediction:
        """Features (B, T, D) -> a chunk at every frame."""
        past = features[:, :1].expand(-1, self.window - 1, -1)
        windows = torch.cat([past, features], dim=1).unfold(1, self.window, 1)  # (B, T, D, window)
        return self.output(F.gelu(self.layer(windows.transpose(-1, -2).flatten(-2))))
