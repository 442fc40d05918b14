"""An LSTM over the window."""

from __future__ import annotations

from torch import Tensor, nn

from roboflamingo.heads.base import ChunkOutput, HeadConfig, Prediction, RegressionHead, register_head


def window_lstm(config: HeadConfig, features: int) -> nn.LSTM:
    """The LSTM (B, T, D) -> (B, T, H) with which heads read a window."""
    dropout = config.dropout if config.layers > 1 else 0.0
    return nn.LSTM(features, config.hidden, config.layers, batch_first=True, dropout=dropout)


@register_head("lstm")
class LSTMHead(RegressionHead):
    """An LSTM from the window's first frame to its last, and a chunk of actions at each.

    With `layers: 4, hidden: 1024, dropout: 0.1, perceptrons: [1024, 512, 256]` it is RoboFlamingo's.
    """

    def __init__(self, config: HeadConfig, features: int, chunk: int, window: int) -> None:
        super().__init__(config, features, chunk, window)
        self.rnn = window_lstm(config, features)
        self.output = ChunkOutput(config.hidden, config, chunk)

    def forward(self, features: Tensor) -> Prediction:
        """Features (B, T, D) -> a chunk at every frame."""
        return self.output(self.rnn(features)[0])
