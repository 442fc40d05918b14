"""The kinds of data sets, one file or folder each, and how a path is told apart.

Other packages bring kinds by an entry point of the group `roboflamingo.sources` (see `roboflamingo/plugins.py`).
"""

from __future__ import annotations

import importlib
from pathlib import Path

from roboflamingo.data.errors import DataError
from roboflamingo.data.sources.base import Source, SourceOptions
from roboflamingo.plugins import Group, find, names

GROUP: Group = "roboflamingo.sources"

KINDS = {
    "packed": "roboflamingo.data.sources.packed:PackedSource",
    "calvin": "roboflamingo.data.sources.calvin.source:CalvinSource",
    "lerobot": "roboflamingo.data.sources.lerobot:LeRobotSource",
    "robomimic": "roboflamingo.data.sources.robomimic:RobomimicSource",
    "real_robot": "roboflamingo.data.sources.real_robot:RealRobotSource",
}
"""Where the class of each kind is; asked in this order whether they recognise a path."""


def kind_of(path: Path, kind: str | None = None) -> type[Source]:
    """The class that reads a data set.

    Args:
        path: a folder or file.
        kind: its name, where the path alone would not tell.

    Raises:
        DataError: nothing is there, no kind recognises it, or the kind is unknown. Says which there are.
    """
    if kind is not None:
        return _load(kind)
    if not path.exists():
        raise DataError(f"{path} does not exist; name the folder or file of a data set")
    kinds = [*KINDS, *(name for name in names(KINDS, GROUP) if name not in KINDS)]
    for name in kinds:
        if (found := _load(name)).recognises(path):
            return found
    raise DataError(f"{path} is no data set of a known kind ({', '.join(kinds)}); CALVIN's has training/, validation/")


def open_source(
    path: Path, split: str = "training", options: SourceOptions | None = None, *, kind: str | None = None
) -> Source:
    """One split of the data set that lies there.

    Raises:
        DataError: see `kind_of`; the data set has no such split, or is damaged.
    """
    found = kind_of(path, kind)
    if split not in (there := found.splits(path)):
        raise DataError(f"{path} has no split {split}; it has {', '.join(there) or 'none'}")
    return found(path, split, options or SourceOptions())


def _load(kind: str) -> type[Source]:
    if kind not in KINDS:
        if kind not in names(KINDS, GROUP):
            raise DataError(f"there is no kind of data set {kind!r}; known are {', '.join(names(KINDS, GROUP))}")
        brought: type[Source] = find({}, GROUP, kind, "kind of data set", Source)
        return brought
    module, name = KINDS[kind].split(":")
    found: type[Source] = getattr(importlib.import_module(module), name)
    return found
