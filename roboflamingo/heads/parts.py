"""The parts of an action as heads predict them: targets, loss, samples, log-probability, errors.

Four kinds of numbers occur, of a part with S numbers in an action:
    actions     (..., S) as recorded and executed; `ActionPart` says what they are.
    values      (..., S) what is to be predicted: continuous numbers normalised, the others as they are.
    codes       (..., C) values as heads that denoise have them: one number for each that is continuous, -1 or 1 for a
                binary part, and for a categorical one -1 for every choice but the one that is taken, which has 1.
    parameters  (..., P) what a head says: continuous numbers, a logit of the value 1, a logit of every choice.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from calvin_eval.specs import ActionPart

LARGEST_CODE = 1 - 1e-4
"""A code that is turned into a logit stays this far inside (-1, 1)."""


class Part(ABC):
    """One part of an action.

    Attributes:
        part: what the specification says of it.
        parameters: P.
        code: C.
        measures: names of the errors that it is measured by.
    """

    parameters = 1
    code = 1
    measures: tuple[str, ...] = ("accuracy",)

    def __init__(self, part: ActionPart) -> None:
        self.part = part

    def shaped(self, raw: Tensor) -> Tensor:
        """What a last layer gives (..., P) -> parameters (..., P)."""
        return raw

    def encode(self, actions: Tensor) -> Tensor:
        """Actions -> values."""
        return actions

    def restore(self, values: Tensor) -> Tensor:
        """The inverse of `encode`."""
        return values

    @abstractmethod
    def loss(self, parameters: Tensor, values: Tensor) -> Tensor:
        """What to minimise, (...)."""

    @abstractmethod
    def likeliest(self, parameters: Tensor) -> Tensor:
        """The values of the greatest probability."""

    @abstractmethod
    def sample(self, parameters: Tensor, generator: torch.Generator | None) -> Tensor:
        """Values drawn from the distribution that parameters describe."""

    @abstractmethod
    def log_prob(self, parameters: Tensor, values: Tensor) -> Tensor:
        """The logarithm (...) of their probability; of continuous parts of its density over actions, not values."""

    @abstractmethod
    def soft(self, parameters: Tensor) -> Tensor:
        """Actions (..., C) that can be averaged: a number between -1 and 1, a probability of every choice."""

    @abstractmethod
    def to_code(self, values: Tensor) -> Tensor:
        """Values -> codes."""

    @abstractmethod
    def from_code(self, code: Tensor) -> Tensor:
        """Codes, as a head made them, -> parameters."""

    def errors(self, parameters: Tensor, values: Tensor) -> dict[str, Tensor]:
        """By names of `measures`: whether the likeliest value is the right one, (..., 1)."""
        return {"accuracy": self.likeliest(parameters) == values}


class BinaryPart(Part):
    """-1 or 1: the parameter is the logit of 1."""

    def loss(self, parameters: Tensor, values: Tensor) -> Tensor:
        """Cross-entropy."""
        return F.binary_cross_entropy_with_logits(parameters[..., 0], (values[..., 0] + 1) / 2, reduction="none")

    def likeliest(self, parameters: Tensor) -> Tensor:
        """1 where the logit is above 0."""
        return torch.where(parameters > 0, 1.0, -1.0)

    def sample(self, parameters: Tensor, generator: torch.Generator | None) -> Tensor:
        """-1 or 1."""
        return torch.where(random_like(torch.rand, parameters, generator) < parameters.sigmoid(), 1.0, -1.0)

    def log_prob(self, parameters: Tensor, values: Tensor) -> Tensor:
        """Of -1 or 1."""
        return F.logsigmoid(parameters * values).squeeze(-1)

    def soft(self, parameters: Tensor) -> Tensor:
        """The mean, in [-1, 1]."""
        return parameters.sigmoid().mul(2).sub(1)

    def to_code(self, values: Tensor) -> Tensor:
        """Nothing changes."""
        return values

    def from_code(self, code: Tensor) -> Tensor:
        """The logit whose mean is the code."""
        return _logits_of(code)


class CategoricalPart(Part):
    """A whole number from 0 to `choices` - 1: the parameters are a logit of each."""

    def __init__(self, part: ActionPart) -> None:
        super().__init__(part)
        self.parameters = self.code = part.choices

    def loss(self, parameters: Tensor, values: Tensor) -> Tensor:
        """Cross-entropy."""
        return cross_entropy(parameters, values[..., 0].long())

    def likeliest(self, parameters: Tensor) -> Tensor:
        """The choice of the greatest logit."""
        return parameters.argmax(-1, keepdim=True).float()  # bf16 would not hold every number

    def sample(self, parameters: Tensor, generator: torch.Generator | None) -> Tensor:
        """A choice by its probability."""
        return draw_choice(parameters, generator).unsqueeze(-1).float()

    def log_prob(self, parameters: Tensor, values: Tensor) -> Tensor:
        """Of a choice."""
        return parameters.log_softmax(-1).gather(-1, values.long()).squeeze(-1)

    def soft(self, parameters: Tensor) -> Tensor:
        """The probability of every choice."""
        return parameters.softmax(-1)

    def to_code(self, values: Tensor) -> Tensor:
        """-1 for every choice, 1 for the one that is taken."""
        return 2 * F.one_hot(values[..., 0].long(), self.part.choices).to(values.dtype) - 1

    def from_code(self, code: Tensor) -> Tensor:
        """Logits in the order of the codes."""
        return _logits_of(code)


def cross_entropy(logits: Tensor, choice: Tensor) -> Tensor:
    """Logits (..., n) and whole numbers (...) -> (...)."""
    return F.cross_entropy(logits.flatten(0, -2), choice.flatten(), reduction="none").view(choice.shape)


def _logits_of(code: Tensor) -> Tensor:
    return 2 * code.clamp(-LARGEST_CODE, LARGEST_CODE).atanh()


def draw_choice(logits: Tensor, generator: torch.Generator | None) -> Tensor:
    """Logits (..., n) -> whole numbers (...), drawn by their probabilities (Gumbel's way)."""
    uniform = random_like(torch.rand, logits, generator).double().clamp(min=1e-300)
    return (logits.double() - (-uniform.log()).log()).argmax(-1)


def random_like(draw: Callable[..., Tensor], like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Random numbers of a tensor's shape, drawn where the generator is: the same on every device."""
    device = like.device if generator is None else generator.device
    return draw(like.shape, generator=generator, device=device, dtype=torch.float32).to(like.device, like.dtype)
