"""Pose numbers as classes: every number's range is divided into bins."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from roboflamingo.heads.base import (
    POSE,
    Draws,
    HeadConfig,
    Prediction,
    RegressionHead,
    gripper_loss,
    masked_mean,
    register_head,
)
from roboflamingo.heads.lstm import window_lstm


@register_head("bins")
class BinsHead(RegressionHead):
    """A distribution over bins for each pose number of each action, after an LSTM; it acts by the likeliest bin.

    As in RT-1 (Brohan et al. 2022, arXiv 2212.06817), but for the gripper, whose two commands are one logit.
    """

    def __init__(self, config: HeadConfig, features: int, chunk: int, window: int) -> None:
        super().__init__(config, features, chunk, window)
        self.rnn = window_lstm(config, features)
        self.hidden = nn.Linear(config.hidden, config.hidden)
        self.pose = nn.Linear(config.hidden, chunk * POSE * config.bins)
        self.gripper = nn.Linear(config.hidden, chunk)

    def logits(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Features (B, T, D) -> bins (B, T, K, 6, bins) and gripper (B, T, K)."""
        hidden = F.gelu(self.hidden(self.rnn(features)[0]))
        return self.pose(hidden).unflatten(-1, (self.chunk, POSE, self.config.bins)), self.gripper(hidden)

    def forward(self, features: Tensor) -> Prediction:
        """Features (B, T, D) -> the middle of the likeliest bins."""
        pose, gripper = self.logits(features)
        return Prediction((2 * pose.argmax(-1).to(pose.dtype) + 1) / self.config.bins - 1, gripper)

    def loss(self, features: Tensor, actions: Tensor, mask: Tensor, draws: Draws | None = None) -> dict[str, Tensor]:
        """Cross-entropy of the bins, and of the gripper; draws change nothing."""
        pose, gripper = self.trained(*self.logits(features))
        actions, mask = self.trained(actions, mask)
        target = ((actions[..., :POSE] + 1) / 2 * self.config.bins).long().clamp(0, self.config.bins - 1)
        error = F.cross_entropy(pose.flatten(0, -2), target.flatten(), reduction="none").view(target.shape)
        return self.weighed(masked_mean(error.mean(-1), mask), gripper_loss(gripper, actions, mask))
