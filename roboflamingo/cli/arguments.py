"""Turns command lines and YAML files into typed configurations, the same way for every verb."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any, NoReturn, TypeVar

from jsonargparse import ActionConfigFile, ArgumentParser, DefaultHelpFormatter, Namespace

Config = TypeVar("Config")


class HelpFormatter(DefaultHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """jsonargparse's help, with the examples' line breaks kept."""


def verb_parser(verb: str, summary: str, examples: str, usage: str = "") -> ArgumentParser:
    """A parser whose help ends with examples and whose errors are exceptions.

    Args:
        verb: as typed after `roboflamingo`.
        summary: what the verb does.
        examples: lines that a user may copy.
        usage: what follows the verb in the usage line.
    """
    return ArgumentParser(
        prog=f"roboflamingo {verb}",
        usage=f"roboflamingo {verb} {usage or '[--config FILE.yaml] [--KEY VALUE ...]'}",
        description=summary,
        epilog="examples:\n" + "\n".join(f"  {line}" for line in examples.strip().splitlines()),
        formatter_class=HelpFormatter,
        exit_on_error=False,
        allow_abbrev=False,
    )


def parse(parser: ArgumentParser, arguments: Sequence[str]) -> Namespace:
    """The arguments, or an error message that names the key and, where one is at fault, the file.

    Raises:
        SystemExit: 2, after the message; 0 after help.
    """
    try:
        return parser.parse_args(list(arguments))
    except argparse.ArgumentError as error:
        culprit = _file_at_fault(parser, arguments, str(error))
        fail(parser.prog, f"{culprit}: {error}" if culprit else str(error), code=2)


def parse_config(
    config_class: type[Config], verb: str, arguments: Sequence[str], *, summary: str, examples: str
) -> Config:
    """A dataclass whose fields are the verb's arguments and, through `--config`, the keys of YAML files.

    Raises:
        SystemExit: 2, after a message, when a key is unknown, a value has the wrong type, or values
            contradict.
    """
    parser = verb_parser(verb, summary, examples)
    parser.add_argument("--config", action=ActionConfigFile, help="a YAML file with any of the keys below")
    parser.add_class_arguments(config_class)
    arguments = _with_switches(config_class, arguments)
    values = parse(parser, arguments)
    if _apply_preset(parser, values):
        values = parse(parser, arguments)
    names = [field.name for field in dataclasses.fields(config_class)]  # type: ignore[arg-type]
    try:
        built = parser.instantiate_classes(values)
        return config_class(**{name: built[name] for name in names})
    except ValueError as error:
        fail(parser.prog, str(error), code=2)


def _apply_preset(parser: ArgumentParser, values: Namespace) -> bool:
    """Makes the defaults those of the preset that the values name; False where there is nothing to change.

    Raises:
        SystemExit: 2, after a message, when there is no such preset.
    """
    name = values.get("policy.backbone.preset")
    if name in (None, "tiny"):
        return False
    from roboflamingo.presets import preset

    try:
        parser.set_defaults(dict(_leaves(preset(name), "policy.")))
    except ValueError as error:
        fail(parser.prog, str(error), code=2)
    return True


def _leaves(config: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    """Fields of nested dataclasses by dotted name."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from _leaves(value, f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}", value


def _with_switches(config_class: type, arguments: Sequence[str]) -> list[str]:
    """The arguments with `true` after a bare `--key` of a yes-or-no field."""
    switches = {f"--{field.name}" for field in dataclasses.fields(config_class) if field.type in (bool, "bool")}
    following = [*arguments[1:], "--"]
    return [
        f"{word}=true" if word in switches and after.startswith("-") else word
        for word, after in zip(arguments, following, strict=True)
    ]


@contextmanager
def shown_without_traceback(verb: str, *errors: type[Exception]) -> Iterator[None]:
    """Ends the program with the message of errors that a user can put right.

    Raises:
        SystemExit: 1 in place of any of `errors`.
    """
    try:
        yield
    except errors as error:
        fail(f"roboflamingo {verb}", str(error), code=1)


def fail(program: str, message: str, *, code: int) -> NoReturn:
    """Prints the message and ends the program."""
    print(f"{program}: error: {message}", file=sys.stderr)
    raise SystemExit(code)


def _file_at_fault(parser: ArgumentParser, arguments: Sequence[str], message: str) -> str | None:
    """The configuration file that causes the same error alone."""
    words = [word for argument in arguments for word in argument.split("=", 1)]
    for option, path in pairwise(words):
        if option == "--config":
            try:
                parser.parse_args(["--config", path])
            except argparse.ArgumentError as error:
                if str(error) == message:
                    return path
    return None
