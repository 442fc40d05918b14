"""Turns command lines and YAML files into typed configurations, the same way for every verb.

What is typed wins over files wherever it stands, a later file over an earlier one. `~` is the home folder in every
value and file name.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Generic, NoReturn, TypeVar

from jsonargparse import ActionConfigFile, ArgumentParser, DefaultHelpFormatter, Namespace

from calvin_eval.system.errors import UserError
from roboflamingo.cli.checks import check_that_keys_act
from roboflamingo.cli.fields import described, keys_of, leaves, required_keys
from roboflamingo.cli.kinds import of_kind
from roboflamingo.cli.parts import parts_apart, with_parts
from roboflamingo.cli.words import with_switches, with_text_as_text
from roboflamingo.cli.yaml_files import as_yaml, read_yaml

Config = TypeVar("Config")


class HelpFormatter(DefaultHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """jsonargparse's help, with the examples' line breaks kept."""


@dataclasses.dataclass(frozen=True)
class Given(Generic[Config]):
    """A configuration, and which of its keys somebody gave.

    Attributes:
        config: the whole.
        typed: the dotted keys on the command line.
        keys: those, and the ones in files.
        changed: those on the command line, and the ones to which a file gives another value than the default.
    """

    config: Config
    typed: frozenset[str]
    keys: frozenset[str]
    changed: frozenset[str]


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
    """The arguments, or an error message that names the key.

    Raises:
        SystemExit: 2, after the message; 0 after help.
    """
    try:
        values = parser.parse_args(list(arguments))
    except argparse.ArgumentError as error:
        fail(parser.prog, _one_line(str(error)), code=2)
    for name, value in vars(values).items():
        setattr(values, name, at_home(value))
    return values


def parse_config(
    config_class: type[Config], verb: str, arguments: Sequence[str], *, summary: str, examples: str
) -> Config:
    """A dataclass whose fields are the verb's arguments and, through `--config`, the keys of YAML files.

    Raises:
        SystemExit: 2, after a message, when a key is unknown, a value has the wrong type or is out of range, or
            values contradict.
    """
    return parse_given(config_class, verb, arguments, summary=summary, examples=examples).config


def parse_given(
    config_class: type[Config], verb: str, arguments: Sequence[str], *, summary: str, examples: str
) -> Given[Config]:
    """The same, with the keys that were given: a default that nobody typed contradicts nothing.

    Raises:
        SystemExit: see `parse_config`.
    """
    parser = verb_parser(verb, summary, examples)
    try:
        return _parse_given(parser, config_class, arguments)
    except UserError as error:
        fail(parser.prog, str(error), code=2)


def read_given(config_class: type[Config], verb: str, arguments: Sequence[str]) -> Given[Config]:
    """The same for words that no user typed after that verb.

    Raises:
        UserError: instead of ending the program.
    """
    return _parse_given(verb_parser(verb, "", "none"), config_class, arguments)


def _parse_given(parser: ArgumentParser, config_class: type[Config], arguments: Sequence[str]) -> Given[Config]:
    """What words make; raises a `UserError` where they are wrong (see `parse_config`)."""
    parser.add_argument("--config", action=ActionConfigFile, help="a YAML file with any of the keys below")
    config_class = of_kind(config_class, arguments)
    parser.add_class_arguments(config_class)
    files, words = _files_apart(with_switches(config_class, arguments), config_class)
    words, parts = parts_apart(config_class, words)
    words = list(with_text_as_text(config_class, words))
    typed = _typed(words)
    _let_typed_limits_win(config_class, files, typed)
    texts = [word for content in files.values() for word in ("--config", as_yaml(content))]
    values = _parsed(parser, config_class, files, texts, words)
    if _apply_preset(parser, values):
        values = _parsed(parser, config_class, files, texts, words)
    if parts:
        whole = with_parts(values, parts)
        values = _parsed(parser, config_class, files, texts, [*words, *whole])
        typed |= _typed(whole)
    given = _given(parser, config_class, files, typed, values)
    check_that_keys_act(given.config, given.typed | parts.keys())
    return given


def _given(
    parser: ArgumentParser, config_class: type[Config], files: dict[str, Any], typed: dict[str, str], values: Namespace
) -> Given[Config]:
    """The configuration that the values make.

    Raises:
        UserError: values are empty, out of range or contradict.
    """
    keys = frozenset(typed) | {key for content in files.values() for key in _keys_in(content, config_class)}
    for key in sorted(keys):
        if values.get(key) == "":
            raise UserError(f"{key} is empty; give it a value, or leave it out")
    defaults = parser.get_defaults()
    changed = frozenset(key for key in keys if key in typed or values.get(key) != defaults.get(key))
    built = parser.instantiate_classes(_at_home(values, config_class))
    fields = [field.name for field in dataclasses.fields(config_class)]  # type: ignore[arg-type]
    return Given(config_class(**{name: built[name] for name in fields}), frozenset(typed), keys, changed)


def _parsed(
    parser: ArgumentParser, config_class: type, files: dict[str, Any], texts: Sequence[str], words: Sequence[str]
) -> Namespace:
    """What jsonargparse makes of files and words.

    Raises:
        UserError: a key is unknown or missing, or a value has the wrong type. Names key and file.
    """
    try:
        return parser.parse_args([*texts, *words])
    except argparse.ArgumentError as error:
        if "arguments are required" in str(error):
            raise UserError(_missing(parser, config_class, files, words)) from None
        culprit = _file_at_fault(parser, files, str(error))
        message = _readable(str(error), config_class)
        raise UserError(f"{culprit}: {message}" if culprit else message) from None


def _missing(parser: ArgumentParser, config_class: type, files: dict[str, Any], words: Sequence[str]) -> str:
    """Which required keys nobody gave, and an example that has them."""
    given = {*_typed(words), *(key for content in files.values() for key in _keys_in(content, config_class))}
    keys = [key for key in required_keys(config_class) if key not in given]
    example = (parser.epilog or "").splitlines()[1].strip()
    return f"{' and '.join(f'--{key}' for key in keys)} must be given, here or in a file, as in `{example}`"


def _files_apart(words: Sequence[str], config_class: type) -> tuple[dict[str, Any], list[str]]:
    """The contents of the files after `--config`, by name, and all other words."""
    files: dict[str, Any] = {}
    others: list[str] = []
    rest = iter(words)
    for word in rest:
        option, _, value = word.partition("=")
        if option != "--config":
            others.append(word)
            continue
        name = value or next(rest, "")
        if not name or name.startswith("--"):
            raise UserError("--config takes the name of a YAML file")
        files[name] = read_yaml(Path(at_home(name)), config_class)
    return files, others


def _let_typed_limits_win(config_class: type, files: dict[str, Any], typed: dict[str, str]) -> None:
    """Takes out of the files what a typed key stands in for (`ALTERNATIVES` of the class)."""
    for group in getattr(config_class, "ALTERNATIVES", ()):
        if any(typed.get(key, "null") != "null" for key in group):
            for content in files.values():
                for key in group:
                    content.pop(key, None)


def _typed(words: Sequence[str]) -> dict[str, str]:
    """The keys among the words of a command line, with what stands after them."""
    following = [*words, ""][1:]
    pairs = [(word[2:], after) for word, after in zip(words, following, strict=True) if word.startswith("--")]
    return {
        key.partition("=")[0].rstrip("+"): key.partition("=")[2] if "=" in key else after for key, after in pairs if key
    }


def _keys_in(content: dict[str, Any], config_class: type) -> Iterator[str]:
    """The dotted keys of a file's content."""
    for known in keys_of(config_class):
        value: Any = content
        for part in known.split("."):
            value = value.get(part, dataclasses.MISSING) if isinstance(value, dict) else dataclasses.MISSING
        if value is not dataclasses.MISSING:
            yield known


def _apply_preset(parser: ArgumentParser, values: Namespace) -> bool:
    """Makes the defaults those of the preset that the values name; False where there is nothing to change.

    Of the preset's head, keys that another kind of head does not use are left out.

    Raises:
        UserError: there is no such preset.
    """
    name = values.get("policy.backbone.preset")
    if name in (None, "scratch"):
        return False
    from roboflamingo.weights.presets import preset

    policy = preset(name)
    policy = dataclasses.replace(policy, head=policy.head.as_kind(values.get("policy.head.kind")))
    parser.set_defaults(dict(leaves(policy, "policy.")))
    return True


def at_home(value: Any) -> Any:
    """Text that begins with `~` as the path that it stands for; also in a list."""
    if isinstance(value, str) and value.startswith("~"):
        return str(Path(value).expanduser())
    return [at_home(item) for item in value] if isinstance(value, list) else value


def _at_home(values: Namespace, config_class: type) -> Namespace:
    """The values with `~` made a path in every text and in the names of data folders."""
    for key, kind in keys_of(config_class).items():
        value = values.get(key)
        if isinstance(value, str):
            values[key] = at_home(value)
        elif isinstance(value, dict) and described(kind) in ("a mapping {text: a number}", "a mapping {text: text}"):
            values[key] = {at_home(str(name)): at_home(held) for name, held in value.items()}
    return values


def fail(program: str, message: str, *, code: int) -> NoReturn:
    """Prints the message and ends the program."""
    print(f"{program}: error: {message}", file=sys.stderr)
    raise SystemExit(code)


def _one_line(message: str) -> str:
    return " ".join(message.split())


def _readable(message: str, config_class: type) -> str:
    """Jsonargparse's message about a value of the wrong type, in our words; others as they are, on one line."""
    found = re.match(r'Parser key "([\w.]+)":.*(?:Got|Given) value: (.*)$', message, re.DOTALL)
    kind = keys_of(config_class).get(found[1]) if found else None
    if found is None or kind is None:
        return _one_line(message)
    return f"{found[1]} is {_one_line(found[2])}; it takes {described(kind)}"


def _file_at_fault(parser: ArgumentParser, files: dict[str, Any], message: str) -> str | None:
    """The configuration file that causes the same error alone."""
    for name, content in files.items():
        try:
            parser.parse_args(["--config", as_yaml(content)])
        except argparse.ArgumentError as error:
            if str(error) == message:
                return name
    return None
