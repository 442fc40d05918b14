"""An exponential moving average of the trained weights, which is steadier than the weights themselves."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from roboflamingo.training.sharding import share_of


class WeightAverage:
    """Averages the parameters of a module that require gradients.

    Args:
        module: what is trained. Frozen parameters and buffers are not averaged.
        decay: memory of the average; shorter during the first steps, so that the initial weights fade fast.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self._parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
        self._average = {name: p.detach().clone() for name, p in self._parameters.items()}
        self._decay = decay

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Takes in the weights after optimizer step `step` (1, 2, ...)."""
        decay = min(self._decay, (1 + step) / (10 + step))
        current = [p.detach() for p in self._parameters.values()]
        get_ema_multi_avg_fn(decay)(list(self._average.values()), current, step)

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Puts the average into the module for the length of a `with` block."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        """Exchanges values and leaves storage alone, which cuDNN's LSTM keeps in one piece."""
        for name, parameter in self._parameters.items():
            weight = parameter.clone()
            parameter.copy_(self._average[name])
            self._average[name].copy_(weight)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The averages by parameter name."""
        return dict(self._average)

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Continues from averages that `state_dict` gave."""
        for name, average in self._average.items():
            average.copy_(share_of(state[name], average))
