"""Continuous parts of an action as heads predict them: numbers with a normal distribution, or bins.

See `parts.py` for actions, values, codes and parameters.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import Normal

from calvin_eval.specs import ActionPart
from calvin_eval.system.errors import UserError
from roboflamingo.heads.config import HeadConfig
from roboflamingo.heads.parts import Part, cross_entropy, draw_choice, random_like

DEVIATIONS = 5.0
"""Numbers that are normalised by mean and standard deviation are expected this near 0."""


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
        return parameters + self._spread * random_like(torch.randn, parameters, generator)

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
        return cross_entropy(self._logits(parameters), self._bin_of(values)).mean(-1)

    def likeliest(self, parameters: Tensor) -> Tensor:
        """The middle of the likeliest bins."""
        return self._places(self._logits(parameters).argmax(-1), 0.5, parameters.dtype)

    def sample(self, parameters: Tensor, generator: torch.Generator | None) -> Tensor:
        """A bin by its probability, and any place within it."""
        bins = draw_choice(self._logits(parameters), generator)
        return self._places(bins, random_like(torch.rand, bins.to(parameters.dtype), generator), parameters.dtype)

    def log_prob(self, parameters: Tensor, values: Tensor) -> Tensor:
        """Of the bins that values lie in, by their widths in actions; minus infinity outside of the range."""
        said = self._logits(parameters).log_softmax(-1).gather(-1, self._bin_of(values).unsqueeze(-1)).squeeze(-1)
        said = said.masked_fill(values.abs() > self._reach, -math.inf) - math.log(2 * self._reach / self._bins)
        return said.sum(-1) - self._log_scale


def _measure(unit: str) -> str:
    """The name of an error in a unit."""
    return unit.replace("/", "_per_") if unit else "error"
