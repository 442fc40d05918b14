"""What every policy head is, and the registry of heads.

A head reads one fused vector a frame and predicts a chunk of actions at every frame. It knows no backbone, and of
actions what their specification says. Shapes: B batch, T window, N frames of all windows, D features, H hidden width,
K chunk, A numbers in an action, C in its code (see `parts.py`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from calvin_eval.specs import ActionSpec
from roboflamingo.heads.actions import Actions, Prediction
from roboflamingo.heads.config import HeadConfig


class Draws(NamedTuple):
    """What heads that sample draw to compute a loss, given where it must be the same every time.

    Attributes:
        noise: (B, T, K, C), standard normal.
        level: (B, T) in [0, 1), how much of it.
    """

    noise: Tensor
    level: Tensor


class Head(nn.Module, ABC):
    """Base of all heads.

    Args:
        config: what the head is like.
        spec: what an action is.
        features: D.
        chunk: K.
        window: T.

    Attributes:
        actions: everything that follows from the specification.
    """

    samples = False
    """Whether it acts by drawing from a distribution, and so needs noise."""
    binned = False
    """Whether continuous numbers are predicted as classes (see `BinnedPart`)."""

    def __init__(self, config: HeadConfig, spec: ActionSpec, features: int, chunk: int, window: int) -> None:
        super().__init__()
        self.config, self.chunk, self.window = config, chunk, window
        self.actions = Actions(spec, config, binned=self.binned)

    @abstractmethod
    def predict(self, features: Tensor, noise: Tensor | None = None, *, at: Tensor | None = None) -> Prediction:
        """Features (B, T, D) -> a chunk at every frame, or only at one frame of each window (T = 1 in the result).

        No frame sees a later one, so windows that have just begun may be filled up with anything.

        Args:
            features: one vector a frame.
            noise: standard normal, (B, T, K, C) or with `at` (B, 1, K, C), for heads that sample; drawn where it
                is None.
            at: (B,) which frame; None for all.
        """

    @abstractmethod
    def loss(self, features: Tensor, actions: Tensor, mask: Tensor, draws: Draws | None = None) -> dict[str, Tensor]:
        """What to minimise ("loss"), and what it is of each part of an action, by the part's name.

        Args:
            features: (B, T, D).
            actions: (B, T, K, A).
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
        return prediction_at(self(features), at)

    def loss(self, features: Tensor, actions: Tensor, mask: Tensor, draws: Draws | None = None) -> dict[str, Tensor]:
        """The losses of the parts and their weighted sum; draws change nothing."""
        prediction, actions, mask = self(features), *self.trained(actions, mask)
        trained = dict(zip(prediction, self.trained(*prediction.values()), strict=True))
        return self.actions.losses(trained, actions, mask)


def frame_at(x: Tensor, at: Tensor | None) -> Tensor:
    """One frame of each window, (B, T, ...) -> (B, 1, ...); all of them where `at` is None."""
    return x if at is None else x[torch.arange(len(x), device=x.device), at].unsqueeze(1)


def prediction_at(prediction: Prediction, at: Tensor | None) -> Prediction:
    """The same of what is predicted."""
    return {name: frame_at(parameters, at) for name, parameters in prediction.items()}


MakeHead: TypeAlias = Callable[[HeadConfig, ActionSpec, int, int, int], Head]
HEADS: dict[str, MakeHead] = {}
"""Every head by name. A new head registers itself with `register_head` in a file of its own."""


def register_head(name: str) -> Callable[[type[Head]], type[Head]]:
    """Puts a head class into the registry."""

    def register(head: type[Head]) -> type[Head]:
        HEADS[name] = head
        return head

    return register
