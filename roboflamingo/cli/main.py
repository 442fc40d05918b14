"""The command `roboflamingo`: finds the verb and hands over.

A verb is a file beside this one with a function `main(arguments)`, imported only when it is called, so that
help and mistyped verbs answer at once. A new verb is one new file and one line in `VERBS`.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from typing import NamedTuple

import roboflamingo


class Verb(NamedTuple):
    """One line of the overview."""

    summary: str
    example: str


VERBS = {
    "demo": Verb("the whole loop on this machine", "--config configs/demo_short.yaml"),
    "collect": Verb("record demonstrations", "--out data --settings.scenes D --settings.episodes 800"),
    "train": Verb("train a policy", "--config configs/train_tiny.yaml --run runs/tiny"),
    "evaluate": Verb(
        "run CALVIN's chains with a policy",
        "--policy runs/tiny/policy --out runs/chains --settings.chains 100",
    ),
    "report": Verb("make a page of plots and videos", "runs/chains --out report.html"),
    "weights": Verb("bring published weights", "get mpt-1b-dolly"),
    "convert": Verb(
        "turn an OpenFlamingo or RoboFlamingo checkpoint into a policy",
        "--checkpoint checkpoint.pth --out policies/theirs --policy.backbone.preset mpt-1b-dolly",
    ),
    "info": Verb("versions, devices, and what a folder holds", "runs/tiny"),
}


def overview() -> str:
    """What `roboflamingo --help` prints."""
    lines = [
        f"{roboflamingo.__doc__} Version {roboflamingo.__version__}.",
        "",
        "usage: roboflamingo VERB ...",
        "",
    ]
    for name, verb in VERBS.items():
        lines += [f"  {name:<9} {verb.summary}", f"            roboflamingo {name} {verb.example}"]
    return "\n".join([*lines, "", "roboflamingo VERB --help tells everything about one."])


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs a verb.

    Raises:
        SystemExit: always after help and errors; by convention 2 for wrong arguments, 1 for other errors.
    """
    verb, *rest = arguments or sys.argv[1:] or ["--help"]
    if verb in ("-h", "--help", "help"):
        print(overview())
    elif verb == "--version":
        print(roboflamingo.__version__)
    elif verb in VERBS:
        importlib.import_module(f"roboflamingo.cli.{verb}").main(rest)
    else:
        raise SystemExit(_refusal(verb))


def _refusal(verb: str) -> int:
    print(f"roboflamingo: there is no verb {verb!r}; known are {', '.join(VERBS)}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    main()
