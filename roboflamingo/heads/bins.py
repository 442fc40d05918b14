"""Continuous numbers as classes: every number's range is divided into bins."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from calvin_eval.specs import ActionSpec
from roboflamingo.heads.actions import Prediction
from roboflamingo.heads.base import RegressionHead, register_head
from roboflamingo.heads.config import HeadConfig
from roboflamingo.heads.lstm import window_lstm
from roboflamingo.heads.output import separate_parts


@register_head("bins")
class BinsHead(RegressionHead):
    """A distribution over bins for each continuous number of each action, after an LSTM; it acts by the likeliest bin.

    As in RT-1 (Brohan et al. 2022, arXiv 2212.06817), but for binary parts, whose two commands are one logit.
    """

    binned = True

    def __init__(self, config: HeadConfig, spec: ActionSpec, features: int, chunk: int, window: int) -> None:
        super().__init__(config, spec, features, chunk, window)
        self.rnn = window_lstm(config, features)
        self.hidden = nn.Linear(config.hidden, config.hidden)
        self.parts = nn.ModuleDict(
            {name: nn.Linear(config.hidden, chunk * parameters) for name, parameters in self.actions.parameters.items()}
        )

    def forward(self, features: Tensor) -> Prediction:
        """Features (B, T, D) -> a chunk at every frame."""
        hidden = F.gelu(self.hidden(self.rnn(features)[0]))
        return separate_parts(self.parts, hidden, self.actions, self.chunk)
