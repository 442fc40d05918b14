"""An LSTM over the window."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from calvin_eval.specs import ActionSpec
from roboflamingo.heads.actions import Prediction
from roboflamingo.heads.base import RegressionHead, register_head
from roboflamingo.heads.config import HeadConfig
from roboflamingo.heads.output import ChunkOutput


class WindowLSTM(nn.LSTM):
    """An LSTM that computes in fp32 where autocast asks for a type in which this device has none.

    oneDNN's LSTM needs AVX-512 for bf16; the other layers compute in bf16 on any processor.
    """

    def forward(self, features: Tensor) -> tuple[Tensor, Any]:  # type: ignore[override]
        """Features (B, T, D) -> hidden states (B, T, H), and the last states of all layers."""
        device = features.device.type
        if torch.is_autocast_enabled(device) and not lstm_computes_in(torch.get_autocast_dtype(device), device):
            with torch.autocast(device, enabled=False):
                return super().forward(features.float())
        return super().forward(features)


@lru_cache
def lstm_computes_in(dtype: torch.dtype, device: str) -> bool:
    """Whether torch's LSTM computes in a type on a device, forward and backward: a small one is tried."""
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast(device, dtype):
        lstm = nn.LSTM(8, 8, batch_first=True, device="meta").to_empty(device=device)  # draws no random numbers
        try:
            lstm(torch.zeros(1, 2, 8, device=device))[0].sum().backward()
        except RuntimeError:  # how torch says that it has no such kernel
            return False
    return True


def window_lstm(config: HeadConfig, features: int) -> WindowLSTM:
    """The LSTM (B, T, D) -> (B, T, H) with which heads read a window."""
    dropout = config.dropout if config.layers > 1 else 0.0
    return WindowLSTM(features, config.hidden, config.layers, batch_first=True, dropout=dropout)


@register_head("lstm")
class LSTMHead(RegressionHead):
    """An LSTM from the window's first frame to its last, and a chunk of actions at each.

    With `layers: 4, hidden: 1024, dropout: 0.1, perceptrons: [1024, 512, 256]` it is RoboFlamingo's.
    """

    def __init__(self, config: HeadConfig, spec: ActionSpec, features: int, chunk: int, window: int) -> None:
        super().__init__(config, spec, features, chunk, window)
        self.rnn = window_lstm(config, features)
        self.output = ChunkOutput(config.hidden, config, self.actions, chunk)

    def forward(self, features: Tensor) -> Prediction:
        """Features (B, T, D) -> a chunk at every frame."""
        return self.output(self.rnn(features)[0])
