"""An LSTM over the window."""

from __future__ import annotations

from torch import Tensor, nn

from roboflamingo.heads.base import ChunkOutput, Head, HeadConfig, Prediction, register_head


@register_head("lstm")
class LSTMHead(Head):
    """An LSTM from the window's first frame to its last, and a chunk of actions at each."""

    def __init__(self, config: HeadConfig, features: int, chunk: int) -> None:
        super().__init__(config, features, chunk)
        self.rnn = nn.LSTM(
            features,
            config.hidden,
            config.layers,
            batch_first=True,
            dropout=config.dropout if config.layers > 1 else 0.0,
        )
        self.output = ChunkOutput(config.hidden, config.hidden, chunk)

    def forward(self, features: Tensor) -> Prediction:
        """Features (B, T, D) -> a chunk at every frame."""
        return self.output(self.rnn(features)[0])
