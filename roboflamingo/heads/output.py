"""The last layers of the heads that regress."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from roboflamingo.heads.actions import Actions, Prediction
from roboflamingo.heads.config import HeadConfig


class ChunkOutput(nn.Module):
    """Perceptrons, one for each part of an action or one for all, then the parameters of K actions.

    Args:
        features: width of the input.
        config: of the head.
        actions: what the parts need.
        chunk: K.
    """

    def __init__(self, features: int, config: HeadConfig, actions: Actions, chunk: int) -> None:
        super().__init__()
        self.actions, self.chunk = actions, chunk
        self.separate = bool(config.perceptrons)
        if self.separate:
            self.parts = nn.ModuleDict(
                {
                    name: _perceptron(features, config.perceptrons, chunk * parameters)
                    for name, parameters in actions.parameters.items()
                }
            )
        else:
            self.hidden = nn.Linear(features, config.hidden)
            self.out = nn.Linear(config.hidden, chunk * actions.width)

    def forward(self, features: Tensor) -> Prediction:
        """Features (B, T, D) -> a chunk at every frame."""
        if self.separate:
            return separate_parts(self.parts, features, self.actions, self.chunk)
        return self.actions.split(self.out(F.gelu(self.hidden(features))).unflatten(-1, (self.chunk, -1)))


def separate_parts(layers: nn.ModuleDict, hidden: Tensor, actions: Actions, chunk: int) -> Prediction:
    """What layers of their own say about each part: hidden (B, T, H) -> a chunk at every frame."""
    return {
        name: actions.parts[name].shaped(layer(hidden).unflatten(-1, (chunk, -1))) for name, layer in layers.items()
    }


def _perceptron(width: int, widths: tuple[int, ...], out: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for wide in widths:
        layers += [nn.Linear(width, wide), nn.ReLU()]
        width = wide
    return nn.Sequential(*layers, nn.Linear(width, out))
