"""What an ablation is: members, what they have in common, and what the reference claims of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from calvin_eval.system.errors import UserError

VERBS = ("train", "evaluate")
"""Whose keys a member may have."""


@dataclass(frozen=True)
class Comparison:
    """A claimed relation of two members' average lengths.

    Attributes:
        first: a member.
        relation: ">" where the first is claimed to be better, "~" where no difference is claimed.
        second: another.
    """

    first: str
    relation: str
    second: str


@dataclass(frozen=True)
class Claim:
    """What the reference says.

    Attributes:
        text: in a sentence.
        source: where.
        order: what follows for the members; empty where nothing was published.
        reported: its figures, as text, by member.
    """

    text: str
    source: str
    order: tuple[Comparison, ...] = ()
    reported: Mapping[str, str] | None = None


@dataclass(frozen=True)
class Member:
    """One line of the table.

    Attributes:
        name: of it.
        train: its own keys of `roboflamingo train`, nested or dotted.
        evaluate: its own keys of `roboflamingo evaluate`.
    """

    name: str
    train: Mapping[str, Any]
    evaluate: Mapping[str, Any]


@dataclass(frozen=True)
class Grid:
    """An ablation.

    Attributes:
        name: the file's, without its ending.
        path: of the file.
        about: what is asked.
        config: of the training that all members begin with.
        data: a data set's folder; None to collect.
        collect: keys of `roboflamingo collect`.
        train: keys of `roboflamingo train` for all members, in layers; later ones win.
        evaluate: likewise, of `roboflamingo evaluate`.
        last: layers by verb that win over members: a smoke run's, and what was typed.
        members: at least one.
        claim: of the reference.
        needs: paths that must be there, and what brings them.
        curves: whether the plot shows held-out losses.
        smoke: whether this is its smoke version.
    """

    name: str
    path: Path
    about: str
    config: Path
    data: str | None
    collect: Mapping[str, Any]
    train: Sequence[Mapping[str, Any]]
    evaluate: Sequence[Mapping[str, Any]]
    last: Mapping[str, Sequence[Mapping[str, Any]]]
    members: tuple[Member, ...]
    claim: Claim
    needs: Mapping[str, str]
    curves: bool
    smoke: bool

    def layers(self, verb: str, member: Member) -> list[Mapping[str, Any]]:
        """Keys of a verb for a member, later ones winning."""
        return [*getattr(self, verb), getattr(member, verb), *self.last.get(verb, ())]

    def check_needs(self) -> None:
        """Makes sure that what the grid needs is there.

        Raises:
            UserError: something is missing. Says what brings it.
        """
        for path, advice in self.needs.items():
            if not Path(path).exists():
                raise UserError(f"the ablation {self.name} needs {path}, which is not there: {advice}")
