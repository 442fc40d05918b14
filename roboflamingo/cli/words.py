"""Words of a command line as jsonargparse understands them: switches with their value, text in quotes."""

from __future__ import annotations

import typing
from collections.abc import Iterator, Sequence
from typing import Any

from calvin_eval.system.errors import UserError
from roboflamingo.cli.fields import is_switch, keys_of
from roboflamingo.cli.yaml_files import as_yaml, parse_yaml

CONTAINERS = (dict, list, tuple)


def with_switches(config_class: type, arguments: Sequence[str]) -> list[str]:
    """The arguments with `true` after a bare `--key` of a yes-or-no field."""
    switches = {f"--{key}" for key, kind in keys_of(config_class).items() if is_switch(kind)}
    following = [*arguments, "--"][1:]
    return [
        f"{word}=true" if word in switches and after.startswith("-") else word
        for word, after in zip(arguments, following, strict=True)
    ]


def with_text_as_text(config_class: type, words: Sequence[str]) -> Iterator[str]:
    """The words, with the texts inside of typed mappings and lists in quotes.

    Raises:
        UserError: such a value is no YAML. Names the key.
    """
    kinds = {f"--{key}": kind for key, kind in keys_of(config_class).items() if typing.get_origin(kind) in CONTAINERS}
    before = ""
    for word in words:
        option, equals, value = word.partition("=")
        key = option if equals else before
        if key in kinds and (equals or not word.startswith("--")):
            quoted = _quoted(key, value if equals else word, kinds[key])
            yield f"{option}={quoted}" if equals else quoted
        else:
            yield word
        before = word


def _quoted(key: str, text: str, kind: Any) -> str:
    try:
        return as_yaml(parse_yaml(text, kind)) if text.lstrip()[:1] in ("{", "[") else text
    except UserError as error:
        raise UserError(f"{key.removeprefix('--')} is {text}: {error}") from None
