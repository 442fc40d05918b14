"""Flow matching: a straight way from noise to a chunk (Lipman et al. 2022, arXiv 2210.02747)."""

from __future__ import annotations

import torch
from torch import Tensor

from roboflamingo.heads.base import Draws, register_head
from roboflamingo.heads.denoising import DenoisingHead


@register_head("flow")
class FlowHead(DenoisingHead):
    """The denoiser predicts the velocity chunk - noise; acting integrates it in `sample_steps` Euler steps."""

    def sample(self, context: Tensor, noise: Tensor) -> Tensor:
        """Context (N, H) and noise (N, K, C) -> chunks (N, K, C)."""
        steps, chunk = self.config.sample_steps, noise
        for step in range(steps):
            level = context.new_full((len(context),), step / steps)
            chunk = chunk + self.denoiser(chunk, level, context) / steps
        return chunk

    def errors(self, context: Tensor, chunks: Tensor, draws: Draws | None) -> Tensor:
        """Squared errors (N, K, C) of the velocity at points of the way."""
        if draws is None:
            noise = torch.randn_like(chunks)
            level = torch.rand(len(chunks), device=chunks.device, dtype=chunks.dtype)
        else:
            noise, level = draws
        way = level[:, None, None]
        return (self.denoiser((1 - way) * noise + way * chunks, level, context) - (chunks - noise)).square()
