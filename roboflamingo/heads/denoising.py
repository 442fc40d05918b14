"""What the heads that denoise chunks share: how they read the window, and the network that denoises."""

from __future__ import annotations

import math
from abc import abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from calvin_eval.specs import ActionSpec
from roboflamingo.heads.actions import Prediction, masked_mean
from roboflamingo.heads.base import Draws, Head, frame_at
from roboflamingo.heads.config import HeadConfig
from roboflamingo.heads.lstm import window_lstm

FREQUENCIES = 32


class DenoisingHead(Head):
    """Base of the heads that turn noise (K, C) into a chunk, given what an LSTM says about the window.

    Whole actions are denoised, as codes: of a binary part -1 or 1, of a categorical one such a number for each choice.
    """

    samples = True

    def __init__(self, config: HeadConfig, spec: ActionSpec, features: int, chunk: int, window: int) -> None:
        super().__init__(config, spec, features, chunk, window)
        self.rnn = window_lstm(config, features)
        self.denoiser = ChunkDenoiser(self.actions.code_size, config.hidden, config.denoiser_layers)

    @abstractmethod
    def sample(self, context: Tensor, noise: Tensor) -> Tensor:
        """Context (N, H) and noise (N, K, C) -> chunks (N, K, C)."""

    @abstractmethod
    def errors(self, context: Tensor, chunks: Tensor, draws: Draws | None) -> Tensor:
        """Context (N, H), clean chunks (N, K, C) -> squared errors (N, K, C) at noise levels.

        Args:
            context: what is known of the window.
            chunks: codes of the actions.
            draws: noise (N, K, C) and its level (N,); drawn anew where it is None.
        """

    def predict(self, features: Tensor, noise: Tensor | None = None, *, at: Tensor | None = None) -> Prediction:
        """See `Head.predict`."""
        context = frame_at(self.rnn(features)[0], at)
        frames = context.shape[:2]
        if noise is None:
            noise = torch.randn(*frames, self.chunk, self.actions.code_size, device=context.device, dtype=context.dtype)
        chunk = self.sample(context.flatten(0, 1), noise.flatten(0, 1)).unflatten(0, frames)
        return self.actions.from_codes(chunk)

    def loss(self, features: Tensor, actions: Tensor, mask: Tensor, draws: Draws | None = None) -> dict[str, Tensor]:
        """Mean squared error of what the denoiser predicts, and of its numbers for each part."""
        context, actions, mask = self.trained(self.rnn(features)[0], actions, mask)
        mask = mask.flatten(0, 1)
        # The denoiser sees a chunk whole: what stands past the segment's end must not tell it anything.
        chunks = self.actions.codes(actions).flatten(0, 1) * mask.unsqueeze(-1)
        if draws is not None:
            draws = Draws(*(part.flatten(0, 1) for part in self.trained(*draws)))
        error = self.errors(context.flatten(0, 1), chunks, draws)
        of_parts = self.actions.code_parts(error)
        return {"loss": masked_mean(error.mean(-1), mask)} | {
            name: masked_mean(numbers.mean(-1), mask) for name, numbers in of_parts.items()
        }


class ChunkDenoiser(nn.Module):
    """Residual convolutions along a chunk, each scaled and shifted by context and noise level.

    Args:
        size: C.
        width: H.
        layers: how many.
    """

    def __init__(self, size: int, width: int, layers: int) -> None:
        super().__init__()
        self.level = nn.Sequential(nn.Linear(2 * FREQUENCIES, width), nn.GELU(), nn.Linear(width, width))
        self.input = nn.Linear(size, width)
        self.norms = nn.ModuleList(nn.LayerNorm(width, elementwise_affine=False) for _ in range(layers))
        self.modulations = nn.ModuleList(nn.Linear(width, 2 * width) for _ in range(layers))
        self.convolutions = nn.ModuleList(nn.Conv1d(width, width, 3, padding=1) for _ in range(layers))
        self.mixers = nn.ModuleList(nn.Linear(width, width) for _ in range(layers))
        self.output = nn.Linear(width, size)
        nn.init.zeros_(self.output.weight)

    def forward(self, chunks: Tensor, level: Tensor, context: Tensor) -> Tensor:
        """Noisy chunks (N, K, C), noise level (N,) in [0, 1] and context (N, H) -> (N, K, C)."""
        rates = torch.exp(torch.linspace(0.0, math.log(1000.0), FREQUENCIES, device=level.device))
        angles = level.float()[:, None] * rates
        condition = F.gelu(context + self.level(torch.cat([angles.sin(), angles.cos()], dim=-1).to(context.dtype)))
        hidden = self.input(chunks)
        for norm, modulation, convolution, mixer in zip(
            self.norms, self.modulations, self.convolutions, self.mixers, strict=True
        ):
            scale, shift = modulation(condition)[:, None].chunk(2, dim=-1)
            changed = convolution((norm(hidden) * (1 + scale) + shift).transpose(1, 2)).transpose(1, 2)
            hidden = hidden + mixer(F.gelu(changed))
        return self.output(hidden)
