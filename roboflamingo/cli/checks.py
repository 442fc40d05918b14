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

BACKBONE = "policy.backbone"
OF_FILES = (
    *(f"vision.{key}" for key in ("image_size", "patch_size", "width", "layers", "stem")),
    *(f"language.{key}" for key in ("kind", "width", "layers", "heads", "vocabulary", "settings", "words")),
)
"""Keys below it that published weights answer."""


def _is_random(values: Values) -> bool:
    return bool(values[f"{BACKBONE}.weights"] == "random")


def _trains_some(values: Values) -> bool:
    """Whether a run trains what it names, and not everything; so is the rule of `TrainConfig.trains_everything`."""
    everything = values["trainable.everything"]
    return not (_is_random(values) if everything is None else everything)


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
} | {
    f"{BACKBONE}.vision.{key}": (
        lambda v: v[f"{BACKBONE}.vision.kind"] != "vit" or v[f"{BACKBONE}.vision.layers"] > 0,
        f"{BACKBONE}.vision.layers above 0",
    )
    for key in ("heads", "activation")
} | {
    f"{BACKBONE}.{key}": (_is_random, f"{BACKBONE}.weights random: published ones bring their own")
    for key in OF_FILES
} | {
    f"{BACKBONE}.{key}": (lambda v: not _is_random(v), f"{BACKBONE}.weights published")
    for key in ("vision.source", "checkpoint")
} | {
    f"{BACKBONE}.resampler.separate": (
        lambda v: v[f"{BACKBONE}.fusion"] not in ("pre", "first_only") and len(v["policy.cameras"]) > 1,
        "several cameras that are resampled one by one (policy.cameras, policy.backbone.fusion)",
    ),
    "policy.statistics": (
        lambda v: set(v["policy.statistics"]) <= {*v["policy.vectors"], "actions"},
        "policy.vectors that name all of them",
    ),
} | {
    f"trainable.{key}": (_trains_some, "trainable.everything false: everything trains")
    for key in ("resampler", "cross_attention", "token_embedding", "vision", "language")
}  # fmt: skip
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
        if key in values and not acts(values):
            yield f"{key} does nothing without {needed}; leave it out, or set that too"
    if values.get("policy.backbone.fusion") == "first_only":
        first = next(iter(values["policy.cameras"]))
        for key in sorted(typed):
            if key.startswith("policy.cameras.") and key.rpartition(".")[0] != f"policy.cameras.{first}":
                yield f"{key} does nothing with policy.backbone.fusion first_only, which looks through {first} alone"
