"""The keys of a verb: the leaves of its nested dataclasses, by dotted name and type."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, Literal, Union


@cache
def keys_of(config_class: type, prefix: str = "") -> Mapping[str, Any]:
    """The type of every leaf, by dotted name; nested dataclasses are gone through, lists of them are leaves."""
    found: dict[str, Any] = {}
    for name, kind in types_of(config_class).items():
        if dataclasses.is_dataclass(kind):
            found |= keys_of(typing.cast(type, kind), f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = kind
    return found


@cache
def types_of(config_class: type) -> Mapping[str, Any]:
    """The type of every field of one dataclass."""
    hints = typing.get_type_hints(config_class)
    return {field.name: hints[field.name] for field in dataclasses.fields(config_class)}


def leaves(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The value of every leaf, by dotted name."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from leaves(value, f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}", value


def required_keys(config_class: type, prefix: str = "") -> Iterator[str]:
    """The leaves that have no default."""
    hints = types_of(config_class)
    for field in dataclasses.fields(config_class):
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            kind = hints[field.name]
            if dataclasses.is_dataclass(kind):
                yield from required_keys(typing.cast(type, kind), f"{prefix}{field.name}.")
            else:
                yield f"{prefix}{field.name}"


def mappings_of(config_class: type) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The leaves that hold dataclasses by name, with the types of such a dataclass's fields."""
    for key, kind in keys_of(config_class).items():
        arguments = typing.get_args(kind)
        if typing.get_origin(kind) is dict and dataclasses.is_dataclass(arguments[1]):
            yield key, types_of(typing.cast(type, arguments[1]))


def members(kind: Any) -> tuple[Any, ...]:
    """The types that a union is made of; any other type alone."""
    return typing.get_args(kind) if typing.get_origin(kind) in (Union, types.UnionType) else (kind,)


def is_switch(kind: Any) -> bool:
    """Whether a key is a yes-or-no one."""
    return bool in members(kind)


def is_text(kind: Any) -> bool:
    """Whether a key takes text, perhaps one of a few words."""
    return any(
        member is str or (typing.get_origin(member) is Literal and isinstance(typing.get_args(member)[0], str))
        for member in members(kind)
    )


def described(kind: Any) -> str:
    """A type in words."""
    words = []
    for member in members(kind):
        origin, arguments = typing.get_origin(member), typing.get_args(member)
        if origin is Literal:
            words.append(f"one of {', '.join(map(str, arguments))}")
        elif origin in (list, tuple):
            words.append(f"a list, each {described(arguments[0])}")
        elif origin is dict:
            words.append(f"a mapping {{{described(arguments[0])}: {described(arguments[1])}}}")
        elif dataclasses.is_dataclass(member):
            fields = types_of(typing.cast(type, member)).items()
            words.append(f"{{{', '.join(f'{name}: {described(each)}' for name, each in fields)}}}")
        else:
            words.append(WORDS.get(member, getattr(member, "__name__", str(member))))
    return " or ".join(words)


WORDS = {
    int: "a whole number",
    float: "a number",
    str: "text",
    bool: "true or false",
    type(None): "null",
    Any: "anything",
}
