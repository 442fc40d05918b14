"""Behaviour cloning without a language model, as another package would bring it: a policy, a head, a vision encoder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from calvin_eval.system.ranges import COUNT, Range
from roboflamingo.backbone import ImageEncoder, VisionConfig
from roboflamingo.heads import Actions, Draws, HeadConfig, Prediction, RegressionHead
from roboflamingo.heads.base import frame_at
from roboflamingo.policy.base import LearnedPolicy, PolicyKind
from roboflamingo.policy.base_config import BasePolicyConfig


@dataclass
class CloningConfig(BasePolicyConfig):
    """A convolution for each camera and an MLP.

    Attributes:
        hidden: width of the MLP.
    """

    RANGES: ClassVar[Mapping[str, Range]] = {"hidden": COUNT}

    kind: str = "cloning"
    hidden: int = 32


class Cloning(LearnedPolicy):
    """Sees the present frame alone and reads no instruction."""

    PARTS: ClassVar[Mapping[str, str]] = {"cameras": "eyes.*", "MLP": "mlp.*"}

    def __init__(self, config: CloningConfig) -> None:
        super().__init__(config)
        self._actions = Actions(self.action_space.spec, HeadConfig())
        self.eyes = nn.ModuleList(
            nn.Sequential(nn.Conv2d(3, 8, 4, stride=4), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten())
            for _ in config.seen
        )
        width = 32 * len(config.seen) + config.low_dimensional
        self.mlp = nn.Sequential(
            nn.Linear(width, config.hidden), nn.ReLU(), nn.Linear(config.hidden, config.chunk * self._actions.width)
        )

    @property
    def actions(self) -> Actions:
        return self._actions

    def look(self, batch: Mapping[str, Any], text: Any) -> Tensor:
        seen = []
        for eye, images in zip(self.eyes, self.images(batch), strict=True):
            pixels = images.flatten(0, 1).permute(0, 3, 1, 2) / 255
            seen.append(eye(pixels).unflatten(0, images.shape[:2]))
        return torch.cat([*seen, self.low_dimensional(batch)], dim=-1)

    def decide(self, frames: Tensor, noise: Tensor | None = None, *, at: Tensor | None = None) -> Prediction:
        return self.actions.split(self.mlp(frame_at(frames, at)).unflatten(-1, (self.config.chunk, -1)))

    def loss(self, batch: Mapping[str, Any], draws: Draws | None = None) -> dict[str, Tensor]:
        mask = batch["action_mask"] & batch["frame_mask"].unsqueeze(-1)
        return self.actions.losses(self.predict(batch), self.targets(batch), mask)


KIND = PolicyKind(CloningConfig, Cloning)


class Linear(RegressionHead):
    """One layer."""

    def __init__(self, config: HeadConfig, spec: Any, features: int, chunk: int, window: int) -> None:
        super().__init__(config, spec, features, chunk, window)
        self.out = nn.Linear(features, chunk * self.actions.width)

    def forward(self, features: Tensor) -> Prediction:
        return self.actions.split(self.out(features).unflatten(-1, (self.chunk, -1)))


class Pixels(ImageEncoder):
    """Every patch's mean colour, as tokens."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.pool = nn.AvgPool2d(config.settings["every"])
        self.project = nn.Linear(3, config.width)
        self.register_buffer("seen", torch.zeros(()), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        return self.project(self.pool(images.permute(0, 3, 1, 2) / 255).flatten(2).transpose(1, 2))
