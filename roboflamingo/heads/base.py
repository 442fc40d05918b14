"""What every policy head is, and the registry of heads.

A head reads one fused vector a frame and predicts a chunk of actions at every frame. It knows no backbone. Shapes:
B batch, T window, N frames of all windows, D features, H hidden width, K chunk.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from calvin_eval.system.errors import UserError
from calvin_eval.system.ranges import AMOUNT, BELOW_ONE, COUNT, Range, check_ranges

POSE = 6
ACTION = POSE + 1


class Draws(NamedTuple):
    """What heads that sample draw to compute a loss, given where it must be the same every time.

    Attributes:
        noise: (B, T, K, 7), standard normal.
        level: (B, T) in [0, 1), how much of it.
    """

    noise: Tensor
    level: Tensor


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
        kind: its name in the registry: lstm, gpt, mlp, mlp_history, diffusion, flow, bins.
        hidden: width of its layers.
        layers: how many layers the LSTM or the transformer has.
        attention_heads: of the transformer.
        dropout: between the layers of LSTM or transformer.
        perceptrons: widths of the ReLU layers after the LSTM, one perceptron for poses and one for the gripper;
            empty for one GELU layer that both share.
        pose_beta: error (action units) below which the pose loss is quadratic (smooth L1).
        gripper_weight: of the gripper's cross-entropy in the loss.
        last_step_only: only the last frame of a window is trained.
        denoiser_layers: residual layers of the network that diffusion and flow share.
        train_steps: noise levels that diffusion trains on.
        sample_steps: denoising steps that diffusion and flow take to act.
        bins: values into which each pose number is divided.
    """

    kind: str = "lstm"
    hidden: int = 256
    layers: int = 1
    attention_heads: int = 4
    dropout: float = 0.0
    perceptrons: tuple[int, ...] = ()
    pose_beta: float = 0.1
    gripper_weight: float = 0.1
    last_step_only: bool = False
    denoiser_layers: int = 3
    train_steps: int = 100
    sample_steps: int = 10
    bins: int = 256

    def __post_init__(self) -> None:
        self.perceptrons = tuple(self.perceptrons)
        check_ranges(
            self,
            "policy.head",
            hidden=COUNT,
            layers=COUNT,
            attention_heads=COUNT,
            dropout=BELOW_ONE,
            perceptrons=COUNT,
            pose_beta=AMOUNT,
            gripper_weight=AMOUNT,
            denoiser_layers=COUNT,
            train_steps=COUNT,
            sample_steps=COUNT,
            bins=Range(2),
        )
        if self.kind == "diffusion" and self.sample_steps > self.train_steps:
            raise UserError(
                f"policy.head.sample_steps is {self.sample_steps}, more than train_steps, which is {self.train_steps}"
            )


REGRESSING = ("lstm", "gpt", "mlp", "mlp_history")
DENOISING = ("diffusion", "flow")
USED_BY: dict[str, tuple[str, ...]] = {
    "layers": ("lstm", "gpt", "bins", *DENOISING),
    "attention_heads": ("gpt",),
    "dropout": ("lstm", "gpt", "bins", *DENOISING),
    "perceptrons": REGRESSING,
    "pose_beta": REGRESSING,
    "gripper_weight": (*REGRESSING, "bins"),
    "denoiser_layers": DENOISING,
    "train_steps": ("diffusion",),
    "sample_steps": DENOISING,
    "bins": ("bins",),
}
"""Which kinds of head use a key of `HeadConfig`; one that is not here is used by all of them."""


class Head(nn.Module, ABC):
    """Base of all heads.

    Args:
        config: what the head is like.
        features: D.
        chunk: K.
        window: T.
    """

    samples = False
    """Whether it acts by drawing from a distribution, and so needs noise."""

    def __init__(self, config: HeadConfig, features: int, chunk: int, window: int) -> None:
        super().__init__()
        self.config, self.chunk, self.window = config, chunk, window

    @abstractmethod
    def predict(self, features: Tensor, noise: Tensor | None = None, *, at: Tensor | None = None) -> Prediction:
        """Features (B, T, D) -> a chunk at every frame, or only at one frame of each window (T = 1 in the result).

        No frame sees a later one, so windows that have just begun may be filled up with anything.

        Args:
            features: one vector a frame.
            noise: standard normal, (B, T, K, 7) or with `at` (B, 1, K, 7), for heads that sample; drawn where it
                is None.
            at: (B,) which frame; None for all.
        """

    @abstractmethod
    def loss(self, features: Tensor, actions: Tensor, mask: Tensor, draws: Draws | None = None) -> dict[str, Tensor]:
        """What to minimise ("loss") and its parts "pose" and "gripper".

        Args:
            features: (B, T, D).
            actions: (B, T, K, 7).
            mask: (B, T, K); steps where it is False do not train.
            draws: for heads that sample; drawn anew where it is None.
        """

    def trained(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """The frames (dimension 1) that the loss looks at."""
        return tuple(x[:, -1:] for x in tensors) if self.config.last_step_only else tensors


class RegressionHead(Head):
    """Base of the heads that predict one chunk, not a distribution over chunks."""

    @abstractmethod
    def forward(self, features: Tensor) -> Prediction:
        """Features (B, T, D) -> a chunk at every frame."""

    def predict(self, features: Tensor, noise: Tensor | None = None, *, at: Tensor | None = None) -> Prediction:
        """See `Head.predict`; noise changes nothing."""
        pose, gripper = self(features)
        return Prediction(frame_at(pose, at), frame_at(gripper, at))

    def loss(self, features: Tensor, actions: Tensor, mask: Tensor, draws: Draws | None = None) -> dict[str, Tensor]:
        """Smooth L1 of poses and the gripper's cross-entropy; draws change nothing."""
        prediction, actions, mask = self(features), *self.trained(actions, mask)
        pose, logits = self.trained(*prediction)
        error = F.smooth_l1_loss(pose, actions[..., :POSE], beta=self.config.pose_beta, reduction="none")
        return self.weighed(masked_mean(error.mean(-1), mask), gripper_loss(logits, actions, mask))

    def weighed(self, pose: Tensor, gripper: Tensor) -> dict[str, Tensor]:
        """The parts and their weighted sum."""
        return {"loss": pose + self.config.gripper_weight * gripper, "pose": pose, "gripper": gripper}


def frame_at(x: Tensor, at: Tensor | None) -> Tensor:
    """One frame of each window, (B, T, ...) -> (B, 1, ...); all of them where `at` is None."""
    return x if at is None else x[torch.arange(len(x), device=x.device), at].unsqueeze(1)


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of the values whose mask is True; zero where there are none."""
    weight = mask.to(values.dtype)
    return (values * weight).sum() / weight.sum().clamp(min=1.0)


def gripper_loss(logits: Tensor, actions: Tensor, mask: Tensor) -> Tensor:
    """Cross-entropy of gripper commands, -1 or 1 in the actions' last entry."""
    target = (actions[..., POSE] + 1) / 2
    return masked_mean(F.binary_cross_entropy_with_logits(logits, target, reduction="none"), mask)


class ChunkOutput(nn.Module):
    """The last layers that heads share: perceptrons, then K poses through tanh and K gripper logits.

    Args:
        features: width of the input.
        config: of the head.
        chunk: K.
    """

    def __init__(self, features: int, config: HeadConfig, chunk: int) -> None:
        super().__init__()
        self.chunk = chunk
        self.separate = bool(config.perceptrons)
        if self.separate:
            self.pose = _perceptron(features, config.perceptrons, chunk * POSE)
            self.gripper = _perceptron(features, config.perceptrons, chunk)
        else:
            self.hidden = nn.Linear(features, config.hidden)
            self.out = nn.Linear(config.hidden, chunk * ACTION)

    def forward(self, features: Tensor) -> Prediction:
        """Features (B, T, D) -> a chunk at every frame."""
        if self.separate:
            return Prediction(self.pose(features).unflatten(-1, (self.chunk, POSE)).tanh(), self.gripper(features))
        values = self.out(F.gelu(self.hidden(features))).unflatten(-1, (self.chunk, ACTION))
        return Prediction(values[..., :POSE].tanh(), values[..., POSE])


def _perceptron(width: int, widths: tuple[int, ...], out: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for wide in widths:
        layers += [nn.Linear(width, wide), nn.ReLU()]
        width = wide
    return nn.Sequential(*layers, nn.Linear(width, out))


HEADS: dict[str, Callable[[HeadConfig, int, int, int], Head]] = {}
"""Every head by name. A new head registers itself with `register_head` in a file of its own."""


def register_head(name: str) -> Callable[[type[Head]], type[Head]]:
    """Puts a head class into the registry."""

    def register(head: type[Head]) -> type[Head]:
        HEADS[name] = head
        return head

    return register
