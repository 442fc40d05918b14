"""Grids: what is varied, on what, and what the reference claims of it. One YAML file each.

    about: one line that says what is asked
    base: ./common/base.yaml                # further keys of this file, which this one overrides
    config: ./common/train.yaml             # a configuration of `roboflamingo train`
    collect: {settings.episodes: 900}       # keys of `roboflamingo collect`; or data: a folder
    train: {max_steps: 6700}                # keys of `roboflamingo train`, for all members
    evaluate: {settings.chains: 200}        # keys of `roboflamingo evaluate`, for all members
    members:                                # name -> keys of its own, dotted or nested
      LSTM: {train.policy.head.kind: lstm}
      MLP: {train.policy.head.kind: mlp}
    claim: {text: ..., source: ..., order: [LSTM > MLP], reported: {LSTM: "4.09"}}
    needs: {checkpoints/tiny_vlm: "`roboflamingo pretrain` makes it"}
    curves: true                            # held-out loss of the trainings in the plot
    smoke: {collect: ..., train: ..., evaluate: ..., members: [...]}   # a run of seconds: overrides, and which members

A path that begins with `./` is taken from the file's own folder, any other from where the command runs. Members with
the same training share it, also with those of other grids.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import roboflamingo
from calvin_eval.system.errors import UserError
from roboflamingo.cli.ablations.grid import VERBS, Claim, Comparison, Grid, Member
from roboflamingo.cli.yaml_files import parse_yaml

SHARED = {"config": str, "data": str, "collect": dict, "train": dict, "evaluate": dict, "smoke": dict}
"""Keys of a file that a grid is based on, with their types."""
KEYS = {**SHARED, "about": str, "base": str, "members": dict, "claim": dict, "needs": dict, "curves": bool}
ORDER = re.compile(r"^(?P<first>.+?) (?P<relation>[>~]) (?P<second>.+)$")


def folder() -> Path:
    """Where the grids lie that come with the project: below the working folder, or beside the package."""
    places = [Path("configs/ablations"), Path(roboflamingo.__file__).parents[1] / "configs" / "ablations"]
    return next((place for place in places if place.is_dir()), places[-1])


def listed() -> dict[str, Path]:
    """All grids that come with the project, by name."""
    return {path.stem: path for path in sorted(folder().glob("*.yaml"))}


def find(name: str) -> Path:
    """The file of a grid, by its name or its path.

    Raises:
        UserError: there is none.
    """
    known = listed()
    if name in known:
        return known[name]
    path = Path(name)
    if path.suffix in (".yaml", ".yml") and path.is_file():
        return path
    raise UserError(f"there is no ablation {name!r}; known are {', '.join(known)}, or give the path of a YAML file")


def read_grid(
    path: Path, *, smoke: bool = False, only: Sequence[str] = (), typed: Mapping[str, Mapping[str, Any]] | None = None
) -> Grid:
    """Reads a grid.

    Args:
        path: of the file.
        smoke: its smoke version.
        only: names of the members that are wanted; all where there are none.
        typed: keys by verb (collect, train, evaluate) that win over all others.

    Raises:
        UserError: the file is missing or damaged, or contradicts itself. Names file and key.
    """
    layers = list(_files(path))
    own, typed = layers[0], typed or {}
    members = _members(path, own.get("members", {}))
    claim = _claim(path, own, members)
    config = next((layer["config"] for layer in layers if "config" in layer), None)
    if config is None:
        raise UserError(f"{path}: config is missing; it names a configuration of `roboflamingo train`")
    below = [layer.get("smoke", {}) for layer in reversed(layers)] if smoke else []
    if unknown := {key for layer in below for key in layer} - {"collect", "train", "evaluate", "members"}:
        raise UserError(f"{path}: smoke has no key {min(unknown)}; it has collect, train, evaluate and members")
    wanted: Sequence[str] | None = list(only) or None
    if wanted is None:
        wanted = next((layer["members"] for layer in reversed(below) if "members" in layer), None)
    last = {verb: [*(layer.get(verb, {}) for layer in below), typed.get(verb, {})] for verb in (*VERBS, "collect")}
    collect: dict[str, Any] = {}
    for layer in [*(layer.get("collect", {}) for layer in reversed(layers)), *last.pop("collect")]:
        collect |= dict(flat(layer))
    return Grid(
        name=path.stem,
        path=path,
        about=str(own.get("about", "")),
        config=Path(config),
        data=next((layer["data"] for layer in layers if "data" in layer), None),
        collect=collect,
        train=[layer.get("train", {}) for layer in reversed(layers)],
        evaluate=[layer.get("evaluate", {}) for layer in reversed(layers)],
        last=last,
        members=_chosen(path, members, wanted),
        claim=claim,
        needs=own.get("needs", {}),
        curves=bool(own.get("curves", False)),
        smoke=smoke,
    )


def flat(
    values: Mapping[str, Any], whole: Mapping[str, Any] | None = None, before: str = ""
) -> Iterator[tuple[str, Any]]:
    """Keys and values with nested ones dotted.

    Args:
        values: nested or dotted.
        whole: keys whose value is a mapping, and stays one.
        before: what the keys stand below, with a dot.
    """
    for name, value in values.items():
        key = f"{before}{name}"
        if isinstance(value, dict) and key not in (whole or {}):
            yield from flat(value, whole, f"{key}.")
        else:
            yield key, value


def _files(path: Path) -> Iterator[dict[str, Any]]:
    """The contents of a grid's file and of those that it is based on, with their paths resolved."""
    seen: list[Path] = []
    following: Path | None = path
    while following is not None:
        if following in seen:
            raise UserError(f"{following}: base leads back to the file itself")
        seen.append(following)
        content = _content(following, KEYS if following == path else {**SHARED, "base": str})
        yield content
        following = Path(content["base"]) if "base" in content else None


def _content(path: Path, keys: Mapping[str, type]) -> dict[str, Any]:
    """A file's keys, each of its type.

    Raises:
        UserError: see `read_grid`.
    """
    try:
        content = parse_yaml(path.read_text(encoding="utf-8"), Any)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; it should hold an ablation's grid") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is no text in UTF-8, so it is no YAML file") from None
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} is no mapping of keys to values")
    for key, value in content.items():
        if key not in keys:
            raise UserError(f"{path} has no key {key}; it has {', '.join(keys)}")
        if not isinstance(value, keys[key]):
            raise UserError(f"{path}: {key} is {value!r}; it takes {_kind(keys[key])}")
    resolved: dict[str, Any] = _beside(content, path.parent)
    return resolved


def _kind(kind: type) -> str:
    return {str: "text", dict: "a mapping", bool: "true or false"}[kind]


def _beside(value: Any, place: Path) -> Any:
    """The same with texts that begin with `./` as paths from a folder."""
    if isinstance(value, dict):
        return {key: _beside(held, place) for key, held in value.items()}
    if isinstance(value, list):
        return [_beside(held, place) for held in value]
    return str(place / value[2:]) if isinstance(value, str) and value.startswith("./") else value


def _members(path: Path, given: Mapping[Any, Any]) -> dict[str, Member]:
    if not given:
        raise UserError(f"{path}: members is empty; name at least one, as LSTM: {{train.policy.head.kind: lstm}}")
    found = {}
    for name, keys in given.items():
        if not isinstance(name, str) or not isinstance(keys, dict | None):
            raise UserError(f"{path}: members.{name} is {keys!r}; it takes a name in text and a mapping of keys")
        parts: dict[str, dict[str, Any]] = {verb: {} for verb in VERBS}
        for key, value in flat(keys or {}, dict.fromkeys(VERBS)):
            verb, _, rest = key.partition(".")
            if verb not in parts or not (rest or isinstance(value, dict)):
                raise UserError(f"{path}: members.{name} has {key}; its keys begin with train. or evaluate.")
            parts[verb] |= {rest: value} if rest else value
        found[name] = Member(name, **parts)
    return found


def _chosen(path: Path, members: Mapping[str, Member], names: Sequence[str] | None) -> tuple[Member, ...]:
    if names is None:
        return tuple(members.values())
    for name in names:
        if name not in members:
            raise UserError(f"{path} has no member {name!r}; it has {', '.join(members)}")
    return tuple(member for name, member in members.items() if name in names)


def _claim(path: Path, content: Mapping[str, Any], members: Mapping[str, Member]) -> Claim:
    given = content.get("claim", {})
    if unknown := given.keys() - {"text", "source", "order", "reported"}:
        raise UserError(f"{path}: claim has no key {min(unknown)}; it has text, source, order and reported")
    if "text" not in given or "source" not in given:
        raise UserError(f"{path}: claim needs text and source: what the reference says, and where")
    order = []
    for line in given.get("order", []):
        found = ORDER.match(str(line))
        if found is None:
            raise UserError(f"{path}: claim.order has {line!r}; write FIRST > SECOND, or FIRST ~ SECOND")
        order.append(Comparison(**found.groupdict()))
    reported = {name: str(value) for name, value in given.get("reported", {}).items()}
    named = {name for each in order for name in (each.first, each.second)} | reported.keys()
    if strange := sorted(named - members.keys()):
        raise UserError(f"{path}: claim names {strange[0]}, which is no member; they are {', '.join(members)}")
    return Claim(" ".join(str(given["text"]).split()), str(given["source"]), tuple(order), reported)
