"""A whole action as heads predict it: everything that follows from an `ActionSpec`, part by part.

A head emits a `Prediction`: the parameters of every part. See `parts.py` for actions, values, codes and parameters.
Shapes: ... any, A numbers in an action, C in a code.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from calvin_eval.specs import ActionPart, ActionSpec
from calvin_eval.system.errors import UserError
from roboflamingo.heads.config import HeadConfig
from roboflamingo.heads.continuous import BinnedPart, ContinuousPart
from roboflamingo.heads.parts import BinaryPart, CategoricalPart, Part

Prediction: TypeAlias = dict[str, Tensor]
"""The parameters of every part of an action by its name, (B, T, K, P) for a chunk at every frame of a window."""

RESERVED = ("auxiliary", "elapsed_s", "epoch", "frames_per_s", "grad_norm", "loss", "lr", "step")
"""What logs and losses call other things than parts."""


class Actions:
    """An action specification on the side of heads.

    Args:
        spec: what an action is.
        config: how losses are weighed, and how wide distributions are.
        binned: continuous numbers are classes (see `BinnedPart`).

    Attributes:
        spec: likewise.
        parts: how each is predicted, by name.
        parameters: how many numbers a head emits for each part.
        width: of all parts together.
        code_size: C, numbers of an action as heads that denoise have it.

    Raises:
        UserError: a part has a name that cannot be, lacks statistics, or bins have no range.
    """

    def __init__(self, spec: ActionSpec, config: HeadConfig, *, binned: bool = False) -> None:
        self.spec = spec
        self.parts: dict[str, Part] = {part.name: part_model(part, config, binned=binned) for part in spec.parts}
        self.parameters = {name: part.parameters for name, part in self.parts.items()}
        self.width = sum(self.parameters.values())
        self.code_size = sum(part.code for part in self.parts.values())
        self._places = spec.slices()
        kinds = {part.name: part.kind for part in spec.parts}
        discrete = config.discrete_weight if "continuous" in kinds.values() else 1.0
        self._weights = {name: 1.0 if kind == "continuous" else discrete for name, kind in kinds.items()}
        self._check_names()

    def _check_names(self) -> None:
        for name in self.parts:
            if not name.isidentifier() or name in RESERVED:
                raise UserError(
                    f"action part {name!r}: choose another name, of letters, digits and _, that no log uses "
                    f"({', '.join(RESERVED)})"
                )
        measures = [f"{name}_{measure}" for name, part in self.parts.items() for measure in part.measures]
        if twice := {name for name in measures if measures.count(name) > 1 or name in self.parts}:
            raise UserError(f"action parts {', '.join(self.parts)}: two things would be called {', '.join(twice)}")

    def reach(self, why: str) -> float:
        """How far codes go to either side of 0.

        Args:
            why: what needs it, for the message.

        Raises:
            UserError: nobody knows of a continuous part.
        """
        parts = [part for part in self.parts.values() if isinstance(part, ContinuousPart)]
        return max([1.0, *(part.needs_reach(why) for part in parts)])

    def split(self, raw: Tensor) -> Prediction:
        """What a last layer gives for all parts in a row (..., `width`) -> their parameters."""
        pieces = raw.split(list(self.parameters.values()), dim=-1)
        return {name: part.shaped(piece) for (name, part), piece in zip(self.parts.items(), pieces, strict=True)}

    def values(self, actions: Tensor) -> Prediction:
        """What is to be predicted (..., S) of each part of actions (..., A)."""
        return {name: part.encode(actions[..., self._places[name]]) for name, part in self.parts.items()}

    def losses(self, prediction: Prediction, actions: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """The weighted sum ("loss") of all parts' losses, and each, as means over the steps of the mask.

        Args:
            prediction: parameters (..., P).
            actions: (..., A).
            mask: (...); steps where it is False do not count.
        """
        values = self.values(actions)
        return self.weighed(
            {name: masked_mean(part.loss(prediction[name], values[name]), mask) for name, part in self.parts.items()}
        )

    def weighed(self, losses: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Losses of the parts, with their weighted sum before them: continuous parts weigh 1."""
        terms = [losses[name] * weight if weight != 1 else losses[name] for name, weight in self._weights.items()]
        return {"loss": sum(terms[1:], start=terms[0]), **losses}

    def likeliest(self, prediction: Prediction) -> Tensor:
        """The actions (..., A) of the greatest probability."""
        return self._joined(lambda name, part: part.restore(part.likeliest(prediction[name])))

    def sample(self, prediction: Prediction, generator: torch.Generator | None = None) -> Tensor:
        """Actions (..., A) drawn from what is predicted. They may exceed bounds (see `commands`).

        Args:
            prediction: parameters.
            generator: where random numbers come from; they do not depend on the device that parameters are on.
        """
        return self._joined(lambda name, part: part.restore(part.sample(prediction[name], generator)))

    def log_prob(self, prediction: Prediction, actions: Tensor) -> Tensor:
        """The logarithm (...) of the probability of actions (..., A); a density over their continuous numbers.

        Heads that denoise predict one drawn chunk: it says how likely actions are around that one.
        """
        values = self.values(actions)
        said = [part.log_prob(prediction[name], values[name]) for name, part in self.parts.items()]
        return torch.stack(said).sum(0)

    def errors(self, prediction: Prediction, actions: Tensor) -> dict[str, Tensor]:
        """How far the likeliest actions are from actions (..., A), by "part_measure".

        A continuous part has for each of its units the absolute errors (..., numbers of that unit) in it, named by the
        unit, or "error" where it has none; other parts have "accuracy", (..., 1) bool.
        """
        values = self.values(actions)
        return {
            f"{name}_{measure}": error
            for name, part in self.parts.items()
            for measure, error in part.errors(prediction[name], values[name]).items()
        }

    def soft(self, prediction: Prediction) -> Tensor:
        """What is predicted as numbers (..., C) that may be averaged; `as_commands` makes commands of them."""
        return self._joined(lambda name, part: part.soft(prediction[name]))

    def commands(self, prediction: Prediction) -> np.ndarray:
        """What is predicted as commands (..., A) float64: within bounds, -1 or 1, whole numbers."""
        return as_commands(self.spec, self.soft(prediction).detach().double().cpu().numpy())

    def codes(self, actions: Tensor) -> Tensor:
        """Actions (..., A) -> (..., C), as heads that denoise have them."""
        values = self.values(actions)
        return self._joined(lambda name, part: part.to_code(values[name]))

    def from_codes(self, codes: Tensor) -> Prediction:
        """Codes (..., C) that a head made -> parameters."""
        return {name: part.from_code(piece) for (name, part), piece in self._pieces(codes)}

    def code_parts(self, numbers: Tensor) -> Prediction:
        """Of anything that has a number for each of a code (..., C), those of each part."""
        return {name: piece for (name, _), piece in self._pieces(numbers)}

    def _pieces(self, codes: Tensor) -> list[tuple[tuple[str, Part], Tensor]]:
        sizes = [part.code for part in self.parts.values()]
        return list(zip(self.parts.items(), codes.split(sizes, dim=-1), strict=True))

    def _joined(self, of_part: Callable[[str, Part], Tensor]) -> Tensor:
        return torch.cat([of_part(name, part) for name, part in self.parts.items()], dim=-1)


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


def as_commands(spec: ActionSpec, soft: np.ndarray) -> np.ndarray:
    """Numbers of `Actions.soft` (..., C), or means of such, -> commands (..., A) float64: the likeliest choices."""
    columns, first = [], 0
    for part in spec.parts:
        size = part.choices if part.kind == "categorical" else part.size
        numbers = soft[..., first : first + size]
        columns.append(numbers.argmax(-1)[..., None] if part.kind == "categorical" else numbers)
        first += size
    return spec.as_commands(np.concatenate(columns, axis=-1))


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of the values whose mask is True; zero where there are none."""
    weight = mask.to(values.dtype)
    return (values * weight).sum() / weight.sum().clamp(min=1.0)
