"""How a policy head is configured, and which kinds of head use which key."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

from calvin_eval.system.errors import UserError
from calvin_eval.system.ranges import ABOVE_ZERO, AMOUNT, BELOW_ONE, COUNT, Range, check_ranges

REGRESSING = ("lstm", "gpt", "mlp", "mlp_history")
DENOISING = ("diffusion", "flow")
USED_BY: dict[str, tuple[str, ...]] = {
    "layers": ("lstm", "gpt", "bins", *DENOISING),
    "attention_heads": ("gpt",),
    "dropout": ("lstm", "gpt", "bins", *DENOISING),
    "perceptrons": REGRESSING,
    "continuous_beta": REGRESSING,
    "discrete_weight": (*REGRESSING, "bins"),
    "spread": (*REGRESSING, *DENOISING),
    "denoiser_layers": DENOISING,
    "train_steps": ("diffusion",),
    "sample_steps": DENOISING,
    "bins": ("bins",),
}
"""Which kinds of head use a key of `HeadConfig`; one that is not here is used by all of them."""
BUILT_IN = frozenset(kind for kinds in USED_BY.values() for kind in kinds)
"""The kinds of which this is known; heads of other packages may use any key."""


@dataclass
class HeadConfig:
    """The policy head.

    A key that the kind does not use must have its default.

    Attributes:
        kind: its name in the registry: lstm, gpt, mlp, mlp_history, diffusion, flow, bins.
        hidden: width of its layers.
        layers: how many layers the LSTM or the transformer has.
        attention_heads: of the transformer.
        dropout: between the layers of LSTM or transformer.
        perceptrons: widths of the ReLU layers after the LSTM, one perceptron for each part of an action; empty for one
            GELU layer that all parts share.
        continuous_beta: error, in the numbers that are predicted, below which the loss of the continuous parts of an
            action is quadratic (smooth L1).
        discrete_weight: of the cross-entropy of binary and categorical parts in the loss, where there are continuous
            parts beside them.
        spread: standard deviation, in the numbers that are predicted, of the normal distribution around a predicted
            continuous number; for samples and log-probabilities, not for training.
        last_step_only: only the last frame of a window is trained.
        denoiser_layers: residual layers of the network that diffusion and flow share.
        train_steps: noise levels that diffusion trains on.
        sample_steps: denoising steps that diffusion and flow take to act.
        bins: values into which the range of each continuous number is divided.
    """

    kind: str = "lstm"
    hidden: int = 256
    layers: int = 1
    attention_heads: int = 4
    dropout: float = 0.0
    perceptrons: tuple[int, ...] = ()
    continuous_beta: float = 0.1
    discrete_weight: float = 0.1
    spread: float = 0.1
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
            continuous_beta=AMOUNT,
            discrete_weight=AMOUNT,
            spread=ABOVE_ZERO,
            denoiser_layers=COUNT,
            train_steps=COUNT,
            sample_steps=COUNT,
            bins=Range(2),
        )
        self._check_that_keys_act()
        if self.kind == "diffusion" and self.sample_steps > self.train_steps:
            raise UserError(
                f"policy.head.sample_steps is {self.sample_steps}, more than train_steps, which is {self.train_steps}"
            )

    def _check_that_keys_act(self) -> None:
        """Refuses a value that would do nothing."""
        for name, default in unused(self.kind).items():
            if (value := getattr(self, name)) != default:
                raise UserError(
                    f"policy.head.{name} does nothing with policy.head.kind {self.kind}; it is of "
                    f"{', '.join(USED_BY[name])}: leave it out (it is {value})"
                )
        if self.dropout > 0 and self.layers == 1 and self.kind != "gpt" and self.kind in BUILT_IN:
            raise UserError(
                f"policy.head.dropout acts between the layers of {self.kind}; it needs policy.head.layers above 1"
            )

    def as_kind(self, kind: str) -> HeadConfig:
        """The same head of another kind; keys that that kind does not use get their defaults."""
        changed = unused(kind)
        if kind != "gpt" and kind in BUILT_IN and self.layers == 1:
            changed["dropout"] = 0.0
        return replace(self, kind=kind, **changed)


def unused(kind: str) -> dict[str, Any]:
    """The defaults of the keys that a kind of head does not use, by name; none for kinds that are not built in."""
    if kind not in BUILT_IN:
        return {}
    return {field.name: field.default for field in fields(HeadConfig) if kind not in USED_BY.get(field.name, (kind,))}
