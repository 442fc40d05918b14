"""Keys that would do nothing are refused before any work."""

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
    "policy.gripper_size": (lambda v: v["policy.backbone.fusion"] != "static_only", "a fusion with gripper camera"),
    "policy.gripper_shift": (lambda v: v["policy.backbone.fusion"] != "static_only", "a fusion with gripper camera"),
} | {
    f"policy.backbone.lora.{key}": (
        lambda v: bool(v["policy.backbone.lora.language"] or v["policy.backbone.lora.vision"]),
        "policy.backbone.lora.language or policy.backbone.lora.vision above 0",
    )
    for key in ("scale", "dropout")
}
"""What a typed key needs in order to do something, and that in words."""


def check_that_keys_act(config: Any, typed: frozenset[str], changed: frozenset[str]) -> None:
    """Refuses keys that would do nothing.

    Args:
        config: the configuration.
        typed: keys on the command line.
        changed: those, and the ones that a file gives another value than the default.

    Raises:
        UserError: a key does nothing. Says what it needs.
    """
    for complaint in _complaints(dict(leaves(config)), typed, changed):
        raise UserError(complaint)


def _complaints(values: Values, typed: frozenset[str], changed: frozenset[str]) -> Iterator[str]:
    for key in sorted(typed & NEEDED.keys()):
        acts, needed = NEEDED[key]
        if not acts(values):
            yield f"{key} does nothing without {needed}; leave it out, or set that too"
    if "policy.head.kind" in values:
        yield from _complaints_about_the_head(values, changed)


def _complaints_about_the_head(values: Values, changed: frozenset[str]) -> Iterator[str]:
    """Keys that the head does not use; heads that others have registered are not asked."""
    from roboflamingo.heads.base import USED_BY

    kind, built_in = values["policy.head.kind"], {kind for kinds in USED_BY.values() for kind in kinds}
    for name, kinds in USED_BY.items():
        if f"policy.head.{name}" in changed and kind in built_in and kind not in kinds:
            yield f"policy.head.{name} does nothing with policy.head.kind {kind}; it is of {', '.join(kinds)}"
    between = kind in USED_BY["layers"] and kind != "gpt" and values["policy.head.layers"] == 1
    if "policy.head.dropout" in changed and values["policy.head.dropout"] > 0 and between:
        yield f"policy.head.dropout acts between the layers of {kind}; it needs policy.head.layers above 1"
