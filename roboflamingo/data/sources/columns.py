"""Which columns of a recorded vector make which part of an action, and which make which state.

Data sets of robots write an action as one row of numbers and seldom say what they are. As they come they are one
continuous part called `action`; whoever knows more says so here, such as that the last number is a gripper's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from calvin_eval.specs import ActionPart, ActionSpec
from calvin_eval.system.errors import UserError
from calvin_eval.system.ranges import FINITE
from roboflamingo.data.errors import DataError


@dataclass(frozen=True)
class PartColumns:
    """One part of an action.

    Attributes:
        columns: numbers, from 0, or names of the columns that make it, in this order.
        kind: continuous; binary: one column, 1 above `threshold` and -1 up to it; categorical: one column of whole
            numbers from 0.
        units: of a continuous part, one for each number.
        one: what 1 stands for in the unit, likewise.
        low: least command of a continuous part; none for no bound.
        high: greatest.
        threshold: of a binary part.
        choices: of a categorical part.
    """

    columns: tuple[int | str, ...]
    kind: Literal["continuous", "binary", "categorical"] = "continuous"
    units: tuple[str, ...] = ()
    one: tuple[float, ...] = ()
    low: float | None = None
    high: float | None = None
    threshold: float = 0.0
    choices: int = 2

    def __post_init__(self) -> None:
        object.__setattr__(self, "columns", tuple(self.columns))
        if not self.columns:
            raise DataError("a part of data.columns.actions names no columns")
        for name in ("low", "high", "threshold"):
            value = getattr(self, name)
            if value is not None and value not in FINITE:
                raise DataError(f"data.columns.actions: {name} is {value}; it must be {FINITE}")


@dataclass(frozen=True)
class Columns:
    """What the columns of a data set's vectors mean; with nothing said, vectors are taken as they are.

    Attributes:
        actions: the parts of an action by name, in order. Columns that none names are left out. Empty: one continuous
            part `action` of all columns.
        states: the columns of each state by name: a number or name in the vector `state`, or VECTOR.NUMBER in another;
            VECTOR.* is the whole vector. Empty: every vector of the observations as it is.
    """

    actions: dict[str, PartColumns] = field(default_factory=dict)
    states: dict[str, list[str]] = field(default_factory=dict)


def places(columns: Sequence[int | str], names: Sequence[str], size: int, what: str) -> list[int]:
    """Where columns stand.

    Args:
        columns: numbers or names.
        names: of all columns, where they have any.
        size: how many columns there are.
        what: where they are looked for, for messages.

    Raises:
        DataError: a column is not there. Says which are.
    """
    found = []
    for column in columns:
        if column in names:
            found.append(list(names).index(str(column)))
        elif str(column).isdigit() and int(column) < size:
            found.append(int(column))
        else:
            there = f" ({', '.join(names)})" if names else ""
            raise DataError(f"{what} has no column {column!r}; it has {size}, numbered from 0{there}")
    return found


class ActionColumns:
    """Makes actions of recorded rows.

    Args:
        columns: what the parts are.
        size: numbers in a recorded row.
        names: of these, where they have any.
        what: the recorded vector, for messages.

    Attributes:
        spec: what an action is.

    Raises:
        DataError: a column is not there, or a part cannot be.
    """

    def __init__(self, columns: Columns, size: int, names: Sequence[str], what: str) -> None:
        parts = columns.actions or {"action": PartColumns(tuple(range(size)))}
        self._places = [places(part.columns, names, size, what) for part in parts.values()]
        self._parts = list(parts.values())
        try:
            self.spec = ActionSpec(
                tuple(
                    ActionPart(
                        name, part.kind, len(part.columns), part.choices, part.units, part.one, part.low, part.high
                    )
                    for name, part in parts.items()
                )
            )
        except UserError as error:
            raise DataError(f"data.columns.actions: {error}") from error

    def take(self, rows: np.ndarray) -> np.ndarray:
        """Recorded rows (N, n) -> actions (N, A) float64. Whether they are commands is not looked at."""
        taken = []
        for part, where in zip(self._parts, self._places, strict=True):
            values = rows[:, where].astype(np.float64)
            if part.kind == "binary":  # NaN stays what it is, so that it is noticed
                values = np.where(np.isnan(values), values, np.where(values > part.threshold, 1.0, -1.0))
            taken.append(values)
        return np.concatenate(taken, axis=1)


class StateColumns:
    """Makes states of recorded vectors.

    Args:
        columns: what the states are.
        vectors: numbers of each recorded vector by name.
        names: of the numbers of some of them.
        what: the data set, for messages.

    Attributes:
        sizes: numbers of each state by name.

    Raises:
        DataError: a column is not there.
    """

    def __init__(
        self, columns: Columns, vectors: Mapping[str, int], names: Mapping[str, Sequence[str]], what: str
    ) -> None:
        self._pieces: dict[str, list[tuple[str, int]]] = {}
        if not columns.states:
            self._pieces = {name: [(name, place) for place in range(size)] for name, size in vectors.items()}
        for state, wanted in columns.states.items():
            pieces = []
            for text in map(str, wanted):
                vector, _, column = text.rpartition(".")
                if vector not in vectors:  # a name with a dot in it, or a bare number or name
                    vector, column = "state", text
                if vector not in vectors:
                    raise DataError(f"{what} has no vector {vector} for {text}; it has {', '.join(vectors) or 'none'}")
                here = names.get(vector, ())
                if column == "*":
                    pieces += [(vector, place) for place in range(vectors[vector])]
                    continue
                pieces.append((vector, places([column], here, vectors[vector], f"{vector} of {what}")[0]))
            if not pieces:
                raise DataError(f"data.columns.states: {state} names no columns")
            self._pieces[state] = pieces
        self.sizes = {name: len(pieces) for name, pieces in self._pieces.items()}

    def needed(self, state: str) -> list[str]:
        """The recorded vectors that a state is made of."""
        return list(dict.fromkeys(vector for vector, _ in self._pieces[state]))

    def take(self, state: str, vectors: Mapping[str, np.ndarray]) -> np.ndarray:
        """One state of rows, (N, n), from the recorded vectors (N, m) by name."""
        return np.stack([vectors[vector][:, place] for vector, place in self._pieces[state]], axis=1)
