"""Heads, vision encoders, policies and kinds of data sets by name: ours, what a program registers, what packages offer.

A package offers one by an entry point, in its pyproject.toml:

    [project.entry-points."roboflamingo.heads"]
    mine = "my_package.heads:MyHead"

The name then works wherever one of ours does. A package is imported only when something of it is asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Literal, TypeAlias, TypeVar

from calvin_eval.system.errors import UserError

Found = TypeVar("Found")
Group: TypeAlias = Literal["roboflamingo.heads", "roboflamingo.vision", "roboflamingo.policies", "roboflamingo.sources"]


def find(registered: Mapping[str, Found], group: Group, name: str, key: str, kind: Any) -> Found:
    """What goes by a name.

    Args:
        registered: what is here already, by name; it comes first.
        group: of the entry points of other packages.
        name: of what is wanted.
        key: where the name was given, as "policy.head.kind", for messages.
        kind: the class that a loaded class must derive from, or a loaded object be of.

    Raises:
        UserError: there is nothing of that name, two packages offer it, or a package's cannot be loaded or is of
            another kind. Names the package.
    """
    if name in registered:
        return registered[name]
    offered = [point for point in entry_points(group=group) if point.name == name]
    if not offered:
        raise UserError(f"{key} {name!r} does not exist; choose one of {', '.join(names(registered, group))}")
    if len({point.value for point in offered}) > 1:
        packages = " and ".join(sorted(_package(point) for point in offered))
        raise UserError(f"{key} {name!r} is offered by {packages}; uninstall all but one of them")
    point = offered[0]
    try:
        loaded = point.load()
    except Exception as error:  # whatever the import of somebody else's code raises
        raise UserError(
            f"{key} {name!r} is of the package {_package(point)}, whose {point.value} cannot be loaded: "
            f"{type(error).__name__}: {error}"
        ) from error
    fits = issubclass(loaded, kind) if isinstance(loaded, type) else isinstance(loaded, kind)
    if not fits:
        raise UserError(
            f"{key} {name!r} is of the package {_package(point)}, whose {point.value} is no {kind.__name__}; its "
            f"entry point of {group} must name one"
        )
    return loaded


def names(registered: Mapping[str, Any], group: Group) -> list[str]:
    """All names that can be asked for, sorted; nothing is loaded."""
    return sorted({*registered, *(point.name for point in entry_points(group=group))})


def _package(point: EntryPoint) -> str:
    """The package of an entry point, with its version."""
    return "that is not known" if point.dist is None else f"{point.dist.name} {point.dist.version}"
