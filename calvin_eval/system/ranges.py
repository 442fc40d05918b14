"""Which values the numbers and words of a configuration may have, checked where it is made."""

from __future__ import annotations

import dataclasses
import math
import numbers
import typing
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from calvin_eval.system.errors import UserError


@dataclass(frozen=True)
class Range:
    """Finite numbers between two bounds.

    Attributes:
        low: the lower bound.
        high: the upper bound.
        low_open: the lower bound itself is outside.
        high_open: the upper bound itself is outside.
    """

    low: float = -math.inf
    high: float = math.inf
    low_open: bool = False
    high_open: bool = False

    def __contains__(self, value: Any) -> bool:
        if not isinstance(value, numbers.Real) or isinstance(value, bool) or not math.isfinite(value):
            return False
        number = float(value)
        above = number > self.low if self.low_open else number >= self.low
        return above and (number < self.high if self.high_open else number <= self.high)

    def __str__(self) -> str:
        if math.isinf(self.low):
            return "a finite number"
        low = f"{'above' if self.low_open else 'at least'} {self.low}"
        return low if math.isinf(self.high) else f"{low} and {'below' if self.high_open else 'at most'} {self.high}"


FINITE = Range()
COUNT = Range(1)
"""Of things of which there must be one."""
AMOUNT = Range(0)
"""Of things of which there may be none."""
ABOVE_ZERO = Range(0, low_open=True)
BELOW_ONE = Range(0, 1, high_open=True)
INSIDE_ONE = Range(0, 1, low_open=True, high_open=True)
PROBABILITY = Range(0, 1)
SHARE = Range(0, 1, low_open=True)
SEED = Range(0, 2**32 - 1)
"""What every generator takes."""


def check_ranges(config: Any, where: str = "", /, error: type[UserError] = UserError, **ranges: Range) -> None:
    """Makes sure that the numbers of a dataclass lie in their ranges, and that its `Literal` fields hold one of theirs.

    Args:
        config: the dataclass; None passes, and of lists, tuples and mappings every number is looked at.
        where: the dotted key at which it stands, as "policy.head".
        error: what to raise.
        **ranges: of every field that holds numbers.

    Raises:
        UserError: a value is out of range. Names key, value and range.
        TypeError: a field that holds numbers has no range: a fault of the class.
    """
    cls: Any = type(config)
    for name, choices in _words(cls).items():
        value = getattr(config, name)
        for word in value if isinstance(value, list | tuple) else [value]:
            if word is not None and word not in choices:
                known = ", ".join(map(str, choices))
                raise error(f"{_key(where, name)} is {word!r}; it must be one of {known}")
    kinds = _numbers(cls)
    if missing := sorted(set(kinds) ^ set(ranges)):
        raise TypeError(f"{cls.__name__}: either no range or no such number: {', '.join(missing)}")
    for name, whole in kinds.items():
        for label, number in _labelled(_key(where, name), getattr(config, name)):
            if number not in ranges[name] or (whole and not isinstance(number, numbers.Integral)):
                raise error(f"{label} is {number}; it must be {'a whole number, ' * whole}{ranges[name]}")


def _key(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name


def _labelled(key: str, value: Any) -> list[tuple[str, Any]]:
    """The numbers of a value, each with the key that names it; none of None."""
    if isinstance(value, dict):
        return [(f"{key} of {name}", number) for name, number in value.items()]
    if isinstance(value, list | tuple):
        return [(key, number) for number in value]
    return [] if value is None else [(key, value)]


@cache
def _words(config_class: Hashable) -> dict[str, tuple[Any, ...]]:
    """The fields that hold one or several of a few words, with the words."""
    return {name: words for name, kind in _fields(config_class) if (words := tuple(_atoms(kind, literals=True)))}


@cache
def _numbers(config_class: Hashable) -> dict[str, bool]:
    """The fields that hold one or several numbers, and whether these are whole."""
    found = {}
    for name, kind in _fields(config_class):
        atoms = set(_atoms(kind))
        if int in atoms or float in atoms:
            found[name] = float not in atoms
    return found


def _fields(config_class: Any) -> Iterator[tuple[str, Any]]:
    hints = typing.get_type_hints(config_class)
    return ((field.name, hints[field.name]) for field in dataclasses.fields(config_class))


def _atoms(kind: Any, literals: bool = False) -> Iterator[Any]:
    """The types that a type is made of, or its literals; the keys of mappings are left out."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        yield from arguments if literals else ()
    elif arguments:
        for argument in arguments[1:] if origin is dict else arguments:
            yield from _atoms(argument, literals)
    elif not literals:
        yield kind
