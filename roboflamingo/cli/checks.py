"""Typed keys that would do nothing are refused before any work.

Keys that a kind of head does not use `HeadConfig` refuses itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from calvin_eval.system.errors import UserError
from roboflamingo.cli.fields import leaves

Values = Mapping[str, Any]
"""Values of a configuration by dotted key."""

NEEDED: dict[str, tuple[Callable[[Values], bool], str]] = {
    "optimizer.cycles": (lambda v: v["optimizer.schedule"] == "cosine_restarts", "optimizer.schedule cosine_restarts"),
    "policy.stride": (lambda v: "data.stride" not in v, "data.stride, from which training fills it in"),
    "min_delta": (lambda v: v["patience"] is not None, "patience"),
    "wandb.project": (lambda v: "wandb" in v["loggers"], "wandb in loggers"),
    "wandb.mode": (lambda v: "wandb" in v["loggers"], "wandb in loggers"),
} | {
    f"policy.backbone.lora.{key}": (
        lambda v: bool(v["policy.backbone.lora.language"] or v["policy.backbone.lora.vision"]),
        "policy.backbone.lora.language or policy.backbone.lora.vision above 0",
    )
    for key in ("scale", "dropout")
}
"""What a typed key needs in order to do something, and that in words."""


def check_that_keys_act(config: Any, typed: frozenset[str]) -> None:
    """Refuses keys that would do nothing.

    Args:
        config: the configuration.
        typed: keys on the command line.

    Raises:
        UserError: a key does nothing. Says what it needs.
    """
    for complaint in _complaints(dict(leaves(config)), typed):
        raise UserError(complaint)


def _complaints(values: Values, typed: frozenset[str]) -> Iterator[str]:
    for key in sorted(typed & NEEDED.keys()):
        acts, needed = NEEDED[key]
        if not acts(values):
            yield f"{key} does nothing without {needed}; leave it out, or set that too"
    if values.get("policy.backbone.fusion") == "first_only":
        first = next(iter(values["policy.cameras"]))
        for key in sorted(typed):
            if key.startswith("policy.cameras.") and not key.startswith(f"policy.cameras.{first}."):
                yield f"{key} does nothing with policy.backbone.fusion first_only, which looks through {first} alone"
