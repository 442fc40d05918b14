"""Typed keys that change a part of a mapping of dataclasses, as `--policy.cameras.front.size 48` does.

A mapping as a whole, typed or in a file, says which entries there are; a part changes one entry of whatever holds
otherwise, be it a default, a preset or a file.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from jsonargparse import Namespace

from calvin_eval.system.errors import UserError
from roboflamingo.cli.fields import described, mappings_of
from roboflamingo.cli.yaml_files import as_yaml, parse_yaml


class Part(NamedTuple):
    """A typed change of a part of a mapping, such as a camera's size.

    Attributes:
        key: of the mapping.
        name: of its entry.
        field: of the entry.
        value: what it becomes.
    """

    key: str
    name: str
    field: str
    value: Any


def parts_apart(config_class: type, words: Sequence[str]) -> tuple[list[str], dict[str, Part]]:
    """All words but those that change a part of a mapping, as `--policy.cameras.front.size 48`; and these, by key.

    Raises:
        UserError: there is no such part, or nothing stands after it.
    """
    others: list[str] = []
    parts: dict[str, Part] = {}
    rest = iter(words)
    for word in rest:
        option, equals, value = word.partition("=")
        found = [(key, fields) for key, fields in mappings_of(config_class) if option.startswith(f"--{key}.")]
        if not found:
            others.append(word)
            continue
        key, fields = found[0]
        name, _, field = option.removeprefix(f"--{key}.").rpartition(".")
        if not name or field not in fields:
            known = " and ".join(f"--{key}.{name or field}.{each}" for each in fields)
            raise UserError(f"{option} is no key; there are {known}, and --{key} for all of it")
        text = value if equals else next(rest, "")
        if not text or (not equals and text.startswith("--")):
            raise UserError(f"{option} takes {described(fields[field])}")
        parts[option.removeprefix("--")] = Part(key, name, field, parse_yaml(text, fields[field]))
    return others, parts


def with_parts(values: Namespace, parts: Mapping[str, Part]) -> list[str]:
    """Words that give the mappings of the values, with their parts changed.

    Raises:
        UserError: a mapping has no such entry. Names those that it has.
    """
    mappings: dict[str, dict[str, dict[str, Any]]] = {}
    for option, part in parts.items():
        held = values.get(part.key)
        mapping = mappings.setdefault(part.key, {name: _as_dict(entry) for name, entry in (held or {}).items()})
        if part.name not in mapping:
            there = ", ".join(mapping) or "none"
            raise UserError(f"--{option}: {part.key} has {there}, not {part.name}; --{part.key} gives all of them")
        mapping[part.name][part.field] = part.value
    return [f"--{key}={as_yaml(mapping)}" for key, mapping in mappings.items()]


def _as_dict(entry: Any) -> dict[str, Any]:
    return dataclasses.asdict(entry) if dataclasses.is_dataclass(entry) else dict(vars(entry))  # type: ignore[arg-type]
