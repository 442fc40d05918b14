"""Diffusion over chunks, with the schedulers of diffusers (Chi et al. 2023, arXiv 2303.04137)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from calvin_eval.specs import ActionSpec
from calvin_eval.system.errors import MissingExtraError
from roboflamingo.heads.base import Draws, register_head
from roboflamingo.heads.config import HeadConfig
from roboflamingo.heads.denoising import DenoisingHead


@register_head("diffusion")
class DiffusionHead(DenoisingHead):
    """The denoiser predicts the noise; acting takes `sample_steps` deterministic steps (DDIM) from given noise.

    Raises:
        MissingExtraError: diffusers is not installed.
        UserError: nobody knows how far a continuous part's numbers go.
    """

    def __init__(self, config: HeadConfig, spec: ActionSpec, features: int, chunk: int, window: int) -> None:
        super().__init__(config, spec, features, chunk, window)
        try:
            from diffusers import DDIMScheduler
        except ImportError as error:
            raise MissingExtraError(
                "head.kind diffusion needs the diffusers package: pip install 'roboflamingo[diffusion]'"
            ) from error
        schedule: Any = DDIMScheduler(
            num_train_timesteps=config.train_steps,
            beta_schedule="squaredcos_cap_v2",
            clip_sample=True,
            clip_sample_range=self.actions.reach("policy.head.kind diffusion needs the range of numbers"),
        )
        schedule.set_timesteps(config.sample_steps)
        self._schedule = schedule

    def sample(self, context: Tensor, noise: Tensor) -> Tensor:
        """Context (N, H) and noise (N, K, C) -> chunks (N, K, C)."""
        chunk = noise
        for step in self._schedule.timesteps.tolist():
            level = context.new_full((len(context),), step / self.config.train_steps)
            chunk = self._schedule.step(self.denoiser(chunk, level, context), step, chunk).prev_sample
        return chunk

    def errors(self, context: Tensor, chunks: Tensor, draws: Draws | None) -> Tensor:
        """Squared errors (N, K, C) of the noise at noise levels."""
        if draws is None:
            noise = torch.randn_like(chunks)
            steps = torch.randint(self.config.train_steps, (len(chunks),), device=chunks.device)
        else:
            noise, steps = draws.noise, (draws.level * self.config.train_steps).long()
        noisy = self._schedule.add_noise(chunks, noise, steps)
        return (self.denoiser(noisy, steps / self.config.train_steps, context) - noise).square()
