"""Which keys stand below `policy`: those of the kind of policy that is asked for, found out before all else is read."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from calvin_eval.system.errors import UserError
from roboflamingo.cli.fields import types_of
from roboflamingo.cli.yaml_files import parse_yaml
from roboflamingo.policy.base import DEFAULT, policy_kind
from roboflamingo.policy.base_config import BasePolicyConfig

KEY = "policy.kind"


def of_kind(config_class: type, words: Sequence[str]) -> type:
    """The class with the configuration of the kind of policy that words or files name.

    Args:
        config_class: of a verb; returned as it is where it takes no policy, or one kind only.
        words: of the command line, `--config FILE` among them.

    Raises:
        UserError: there is no such kind.
    """
    if types_of(config_class).get("policy") is not BasePolicyConfig:
        return config_class
    kind = DEFAULT
    following = [*words, ""][1:]
    given = [(word.partition("="), after) for word, after in zip(words, following, strict=True)]
    values = [(option, value if equals else after) for (option, equals, value), after in given]
    for option, value in values:
        if option == "--config":
            kind = _kind_in(Path(value).expanduser()) or kind
    for option, value in values:
        if option == f"--{KEY}":
            kind = value
    policy: Any = policy_kind(kind).config
    made: type = _with_policy(config_class, policy)
    return made


@cache
def _with_policy(config_class: type, policy: Any) -> type:
    """The same class whose field `policy` is of that type."""
    field = dataclasses.field(default_factory=policy)
    return dataclasses.make_dataclass(
        config_class.__name__,
        [("policy", policy, field)],
        bases=(config_class,),
        namespace={"__doc__": config_class.__doc__, "__module__": config_class.__module__},
    )


def _kind_in(path: Path) -> str | None:
    """What a file says of the kind; what is wrong with the file is said when all of it is read."""
    try:
        content: Any = parse_yaml(path.read_text(encoding="utf-8-sig"), Any)
    except (OSError, UnicodeDecodeError, UserError):
        return None
    if not isinstance(content, dict):
        return None
    below = content.get("policy")
    found = content.get(KEY, below.get("kind") if isinstance(below, dict) else None)
    return None if found is None else str(found)
