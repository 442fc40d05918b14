"""Reads YAML files of a verb's keys so that text stays text, and so that every damage is a message.

YAML by itself reads `run: 20240115` as a number and `run: 2024-01-15` as a date, and lets the last of two equal keys
win.
"""

from __future__ import annotations

import dataclasses
import re
import sys
import typing
from pathlib import Path
from typing import Any

import yaml

from calvin_eval.system.errors import UserError
from roboflamingo.cli.fields import is_text, keys_of, members, types_of

NULL = "tag:yaml.org,2002:null"


class Loader(yaml.SafeLoader):
    """PyYAML's, but `1e-3` is a number, as in every other language, and no text is a date."""


Loader.yaml_implicit_resolvers = {
    letter: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith((":timestamp", ":float"))]
    for letter, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:[0-9][0-9_]*\.[0-9_]*(?:[eE][-+]?[0-9]+)?|[0-9][0-9_]*[eE][-+]?[0-9]+"
               r"|\.[0-9][0-9_]*(?:[eE][-+]?[0-9]+)?|\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"),
    list("-+0123456789."),
)  # fmt: skip


def read_yaml(path: Path, config_class: type) -> dict[str, Any]:
    """The keys of a file, nested as they stand there; values of text keys are the text in the file.

    Raises:
        UserError: it is missing, a folder, no mapping, damaged, or has a key twice. Names the file, and the line.
    """
    if path.is_dir():
        raise UserError(f"{path} is a folder; --config takes a YAML file")
    if not path.exists():
        raise UserError(f"{path} does not exist; --config takes a YAML file")
    try:
        return _nested(parse_yaml(path.read_bytes().decode("utf-8-sig"), config_class))
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is no text in UTF-8, so it is no YAML file") from None


def _nested(content: dict[str, Any]) -> dict[str, Any]:
    """The same with dotted keys taken apart."""
    result: dict[str, Any] = {}
    for key, value in content.items():
        *outer, last = str(key).split(".")
        inner = result
        for part in outer:
            inner = inner.setdefault(part, {})
            if not isinstance(inner, dict):
                raise UserError(f"the key {key} has a value within a value")
        if isinstance(value, dict) and isinstance(inner.get(last), dict):
            value = inner[last] | value
        inner[last] = value
    return result


def parse_yaml(text: str, kind: Any) -> Any:
    """YAML as a value of that type: a dataclass's keys, or what one key takes.

    Raises:
        UserError: it is damaged, has a key twice, or is no mapping although the type is a dataclass.
    """
    loader = None
    try:
        loader = Loader(text)
        node = loader.get_single_node()
        if node is None and dataclasses.is_dataclass(kind):
            return {}
        if dataclasses.is_dataclass(kind) and not isinstance(node, yaml.MappingNode):
            raise UserError("this is no mapping of keys to values")
        return None if node is None else _value(loader, node, kind)
    except yaml.YAMLError as error:
        raise UserError(f"no YAML: {' '.join(str(error).split())}") from None
    except (ValueError, RecursionError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"no YAML: {error}") from None  # a number or an anchor that PyYAML cannot make
    finally:
        if loader is not None:
            loader.dispose()


def as_yaml(value: Any) -> str:
    """A value on one line that every reader reads alike: text stands in quotes."""
    return yaml.dump(value, Dumper=Dumper, default_flow_style=True, width=sys.maxsize, sort_keys=False)


class Dumper(yaml.SafeDumper):
    """PyYAML's, with all text in quotes, as readers differ in what they take for a number."""


Dumper.add_representer(str, lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"'))


def _value(loader: Loader, node: yaml.Node, kind: Any) -> Any:
    """A node as a value; `kind` only decides what is text."""
    if isinstance(node, yaml.MappingNode):
        return _mapping(loader, node, kind)
    if any(dataclasses.is_dataclass(member) for member in members(kind)):
        if node.tag != NULL:
            said = node.value if isinstance(node, yaml.ScalarNode) else "a list"
            raise UserError(f"line {node.start_mark.line + 1}: {said} stands where keys belong")
        return {}
    arguments = [typing.get_args(member) for member in members(kind) if typing.get_origin(member) in (list, tuple)]
    if isinstance(node, yaml.SequenceNode) and arguments:
        return [_value(loader, child, arguments[0][0]) for child in node.value]
    if isinstance(node, yaml.ScalarNode) and is_text(kind):
        return None if node.tag == NULL else node.value
    return loader.construct_object(node, deep=True)


def _mapping(loader: Loader, node: yaml.MappingNode, kind: Any) -> dict[Any, Any]:
    """A mapping, each of whose keys stands there once."""
    _refuse_repeated(node)
    loader.flatten_mapping(node)  # anchors that are merged in with `<<`
    nested = next((member for member in members(kind) if dataclasses.is_dataclass(member)), None)
    arguments = [typing.get_args(member) for member in members(kind) if typing.get_origin(member) is dict]
    fields = {**types_of(typing.cast(type, nested)), **keys_of(typing.cast(type, nested))} if nested else {}
    result = {}
    for name, child in node.value:
        key = _value(loader, name, arguments[0][0] if arguments else str if nested else Any)
        if isinstance(key, list | dict):
            raise UserError(f"line {name.start_mark.line + 1}: a key is one word")
        result[key] = _value(loader, child, arguments[0][1] if arguments else fields.get(key, Any))
    return result


def _refuse_repeated(node: yaml.MappingNode) -> None:
    seen = set()
    for name, _ in node.value:
        if isinstance(name, yaml.ScalarNode) and name.value != "<<":
            if name.value in seen:
                raise UserError(f"line {name.start_mark.line + 1}: the key {name.value} stands there twice")
            seen.add(name.value)
