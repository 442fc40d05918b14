"""The parts of an action as heads predict them: targets, loss, samples, log-probability, errors.

Four kinds of numbers occur, of a part with S numbers in an action:
    actions     (..., S) as recorded and executed; `ActionPart` says what they are.
    values      (..., S) what is to be predicted: continuous numbers normalised, the others as they are.
    codes       (..., C) values as heads that denoise have them: one number for each that is continuous, -1 or 1 for a
                binary part, and for a categorical one -1 for every choice but the one that is taken, which has 1.
    parameters  (..., P) what a head says: continuous numbers, a logit of the value 1, a logit of every choice.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import Normal

from calvin_eval.specs import ActionPart
from calvin_eval.system.errors import UserError
from roboflamingo.heads.config import HeadConfig

LARGEST_CODE = 1 - 1e-4
"""A code that is turned into a logit stays this far inside (-1, 1)."""
DEVIATIONS = 5.0
"""Numbers that are normalised by mean and standard deviation are expected this near 0."""


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


class ContinuousPart(Part):
    """Numbers, predicted with a smooth L1 loss; between their bounds by tanh, where values lie in [-1, 1].

    Values are the numbers normalised by `centre` and `scale`; where the part has none, but two bounds, these become
    -1 and 1; else the numbers as they are. As a distribution they are normal, independent, with the standard deviation
    `spread` (in values).

    Attributes:
        reach: how far values go to either side of 0; None where nobody knows.

    Raises:
        UserError: the part is to be normalised by training data, and has no centre or scale.
    """

    def __init__(self, part: ActionPart, config: HeadConfig) -> None:
        super().__init__(part)
        if part.normalise != "none" and not (part.centre and part.scale):
            raise UserError(
                f"action part {part.name} is normalised by the training data ({part.normalise}), and has no centre and "
                "scale; training fills them in"
            )
        self.parameters = self.code = part.size
        self._beta, self._spread = config.continuous_beta, config.spread
        given = bool(part.centre or part.scale)
        low, high = (-1.0, 1.0) if given or part.low is None or part.high is None else (part.low, part.high)
        self._centre = part.centre or ((low + high) / 2,) * part.size
        self._scale = part.scale or ((high - low) / 2,) * part.size
        self._as_it_is = set(self._centre) == {0.0} and set(self._scale) == {1.0}
        bounded = part.normalise == "range" if given else part.low is not None and part.high is not None
        self.reach = 1.0 if bounded else DEVIATIONS if given else None
        self._squashed = bounded
        self._units = part.units or ("",) * part.size
        self._sizes = [scale * one for scale, one in zip(self._scale, part.one or (1.0,) * part.size, strict=True)]
        self.measures = tuple(dict.fromkeys(_measure(unit) for unit in self._units))

    def needs_reach(self, why: str) -> float:
        """How far values go.

        Raises:
            UserError: nobody knows.
        """
        if self.reach is None:
            raise UserError(
                f"{why}, and the action part {self.part.name} has none: give it low and high, or normalise: range"
            )
        return self.reach

    def shaped(self, raw: Tensor) -> Tensor:
        """(..., S) -> (..., S), between -1 and 1 where values are."""
        return raw.tanh() if self._squashed else raw

    def encode(self, actions: Tensor) -> Tensor:
        """Actions -> values."""
        if self._as_it_is:
            return actions
        return (actions - actions.new_tensor(self._centre)) / actions.new_tensor(self._scale)

    def restore(self, values: Tensor) -> Tensor:
        """The inverse of `encode`, in float64 where numbers change."""
        if self._as_it_is:
            return values
        values = values.double()
        return values * values.new_tensor(self._scale) + values.new_tensor(self._centre)

    def loss(self, parameters: Tensor, values: Tensor) -> Tensor:
        """Smooth L1, mean over the numbers."""
        return F.smooth_l1_loss(parameters, values, beta=self._beta, reduction="none").mean(-1)

    def likeliest(self, parameters: Tensor) -> Tensor:
        """The middle of the distribution."""
        return parameters

    def sample(self, parameters: Tensor, generator: torch.Generator | None) -> Tensor:
        """From the normal distribution; not held between the bounds, as commands are."""
        return parameters + self._spread * _random(torch.randn, parameters, generator)

    def log_prob(self, parameters: Tensor, values: Tensor) -> Tensor:
        """Of the normal distribution, over actions."""
        return Normal(parameters, self._spread).log_prob(values).sum(-1) - self._log_scale

    @property
    def _log_scale(self) -> float:
        return sum(math.log(scale) for scale in self._scale)

    def soft(self, parameters: Tensor) -> Tensor:
        """The likeliest action."""
        return self.restore(self.likeliest(parameters))

    def to_code(self, values: Tensor) -> Tensor:
        """Nothing changes."""
        return values

    def from_code(self, code: Tensor) -> Tensor:
        """Between -1 and 1 where values are."""
        return code.clamp(-1, 1) if self._squashed else code

    def errors(self, parameters: Tensor, values: Tensor) -> dict[str, Tensor]:
        """By unit: absolute errors (..., numbers of that unit); `error` where numbers have none."""
        error = (self.likeliest(parameters) - values).abs()
        sizes = error * error.new_tensor(self._sizes)
        names = [_measure(unit) for unit in self._units]
        return {
            name: sizes[..., [place for place, other in enumerate(names) if other == name]] for name in self.measures
        }


class BinnedPart(ContinuousPart):
    """Numbers as classes: the range of each is divided into bins, and parameters are a logit of every bin.

    The distribution is constant within a bin, and zero outside the range.

    Raises:
        UserError: the range of the numbers is not known.
    """

    def __init__(self, part: ActionPart, config: HeadConfig) -> None:
        super().__init__(part, config)
        self._bins, self._reach = config.bins, self.needs_reach("policy.head.kind bins needs the range of numbers")
        self.parameters = part.size * config.bins

    def shaped(self, raw: Tensor) -> Tensor:
        """Nothing changes."""
        return raw

    def _logits(self, parameters: Tensor) -> Tensor:
        """(..., S * bins) -> (..., S, bins)."""
        return parameters.unflatten(-1, (self.part.size, self._bins))

    def _bin_of(self, values: Tensor) -> Tensor:
        """Which bin (..., S) values lie in; what is outside of the range lies in the first or last."""
        return ((values / self._reach + 1) / 2 * self._bins).long().clamp(0, self._bins - 1)

    def _places(self, bins: Tensor, within: Tensor | float, dtype: torch.dtype) -> Tensor:
        """The values at a share of the way through bins."""
        return ((2 * bins.to(dtype) + 2 * within) / self._bins - 1) * self._reach

    def loss(self, parameters: Tensor, values: Tensor) -> Tensor:
        """Cross-entropy of the bins, mean over the numbers."""
        return _cross_entropy(self._logits(parameters), self._bin_of(values)).mean(-1)

    def likeliest(self, parameters: Tensor) -> Tensor:
        """The middle of the likeliest bins."""
        return self._places(self._logits(parameters).argmax(-1), 0.5, parameters.dtype)

    def sample(self, parameters: Tensor, generator: torch.Generator | None) -> Tensor:
        """A bin by its probability, and any place within it."""
        bins = _choice(self._logits(parameters), generator)
        return self._places(bins, _random(torch.rand, bins.to(parameters.dtype), generator), parameters.dtype)

    def log_prob(self, parameters: Tensor, values: Tensor) -> Tensor:
        """Of the bins that values lie in, by their widths in actions; minus infinity outside of the range."""
        said = self._logits(parameters).log_softmax(-1).gather(-1, self._bin_of(values).unsqueeze(-1)).squeeze(-1)
        said = said.masked_fill(values.abs() > self._reach, -math.inf) - math.log(2 * self._reach / self._bins)
        return said.sum(-1) - self._log_scale


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
        return torch.where(_random(torch.rand, parameters, generator) < parameters.sigmoid(), 1.0, -1.0)

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
        return _cross_entropy(parameters, values[..., 0].long())

    def likeliest(self, parameters: Tensor) -> Tensor:
        """The choice of the greatest logit."""
        return parameters.argmax(-1, keepdim=True).float()  # bf16 would not hold every number

    def sample(self, parameters: Tensor, generator: torch.Generator | None) -> Tensor:
        """A choice by its probability."""
        return _choice(parameters, generator).unsqueeze(-1).float()

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


def part_model(part: ActionPart, config: HeadConfig, *, binned: bool = False) -> Part:
    """How a head predicts a part.

    Args:
        part: of a specification.
        config: the head's.
        binned: continuous numbers as classes.

    Raises:
        UserError: statistics are missing, or bins of a range that is not known.
    """
    if part.kind == "binary":
        return BinaryPart(part)
    if part.kind == "categorical":
        return CategoricalPart(part)
    return (BinnedPart if binned else ContinuousPart)(part, config)


def _measure(unit: str) -> str:
    """The name of an error in a unit."""
    return unit.replace("/", "_per_") if unit else "error"


def _cross_entropy(logits: Tensor, choice: Tensor) -> Tensor:
    """Logits (..., n) and whole numbers (...) -> (...)."""
    return F.cross_entropy(logits.flatten(0, -2), choice.flatten(), reduction="none").view(choice.shape)


def _logits_of(code: Tensor) -> Tensor:
    return 2 * code.clamp(-LARGEST_CODE, LARGEST_CODE).atanh()


def _choice(logits: Tensor, generator: torch.Generator | None) -> Tensor:
    """Logits (..., n) -> whole numbers (...), drawn by their probabilities (Gumbel's way)."""
    uniform = _random(torch.rand, logits, generator).double().clamp(min=1e-300)
    return (logits.double() - (-uniform.log()).log()).argmax(-1)


def _random(draw: Callable[..., Tensor], like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Random numbers of a tensor's shape, drawn where the generator is: the same on every device."""
    device = like.device if generator is None else generator.device
    return draw(like.shape, generator=generator, device=device, dtype=torch.float32).to(like.device, like.dtype)
