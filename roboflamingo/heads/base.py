"""What every policy head is, and the registry of heads.

A head reads one fused vector a frame and predicts a chunk of actions at every frame. It knows no backbone. Shapes:
B batch, T window, D features, K chunk.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

POSE = 6


class Prediction(NamedTuple):
    """A chunk of actions at every frame of a window.

    Attributes:
        pose: (B, T, K, 6) in [-1, 1].
        gripper_logits: (B, T, K); positive opens.
    """

    pose: Tensor
    gripper_logits: Tensor


@dataclass
class HeadConfig:
    """The policy head.

    Attributes:
        kind: its name in the registry: lstm, mlp.
        hidden: width of its layers.
        layers: how many layers the LSTM has.
        dropout: between LSTM layers.
        pose_beta: error (action units) below which the pose loss is quadratic (smooth L1).
        gripper_weight: of the gripper's cross-entropy in the loss.
        last_step_only: only the last frame of a window is trained.
    """

    kind: str = "lstm"
    hidden: int = 256
    layers: int = 1
    dropout: float = 0.0
    pose_beta: float = 0.1
    gripper_weight: float = 0.1
    last_step_only: bool = False

    def __post_init__(self) -> None:
        if self.hidden < 1 or self.layers < 1:
            raise ValueError("head.hidden and head.layers must be at least 1")
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"head.dropout is a probability below 1, not {self.dropout}")


class Head(nn.Module, ABC):
    """Base of all heads.

    Args:
        config: what the head is like. features: D. chunk: K.
    """

    def __init__(self, config: HeadConfig, features: int, chunk: int) -> None:
        super().__init__()
        self.config, self.chunk = config, chunk

    @abstractmethod
    def forward(self, features: Tensor) -> Prediction:
        """Features (B, T, D) -> a chunk at every frame."""

    def loss(self, prediction: Prediction, actions: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """Pose and gripper loss against actions (B, T, K, 7), over the steps that mask (B, T, K) admits."""
        if self.config.last_step_only:
            prediction = Prediction(prediction.pose[:, -1:], prediction.gripper_logits[:, -1:])
            actions, mask = actions[:, -1:], mask[:, -1:]
        weight = mask.to(actions.dtype)
        count = weight.sum().clamp(min=1.0)
        error = F.smooth_l1_loss(prediction.pose, actions[..., :POSE], beta=self.config.pose_beta, reduction="none")
        pose = (error.mean(-1) * weight).sum() / count
        target = (actions[..., POSE] + 1) / 2
        bits = F.binary_cross_entropy_with_logits(prediction.gripper_logits, target, reduction="none")
        gripper = (bits * weight).sum() / count
        return {"loss": pose + self.config.gripper_weight * gripper, "pose": pose, "gripper": gripper}


class ChunkOutput(nn.Module):
    """The last layers that heads share: a hidden layer, then K poses through tanh and K gripper logits."""

    def __init__(self, features: int, hidden: int, chunk: int) -> None:
        super().__init__()
        self.chunk = chunk
        self.hidden = nn.Linear(features, hidden)
        self.out = nn.Linear(hidden, chunk * (POSE + 1))

    def forward(self, features: Tensor) -> Prediction:
        """Features (B, T, D) -> a chunk at every frame."""
        values = self.out(F.gelu(self.hidden(features))).unflatten(-1, (self.chunk, POSE + 1))
        return Prediction(values[..., :POSE].tanh(), values[..., POSE])


HEADS: dict[str, Callable[[HeadConfig, int, int], Head]] = {}
"""Every head by name. A new head registers itself with `register_head` in a file of its own."""


def register_head(name: str) -> Callable[[type[Head]], type[Head]]:
    """Puts a head class into the registry."""

    def register(head: type[Head]) -> type[Head]:
        HEADS[name] = head
        return head

    return register
