"""The command `roboflamingo`: finds the verb and hands over.

A verb is a file beside this one with a function `main(arguments)`, imported only when it is called, so that
help and mistyped verbs answer at once. A new verb is one new file and one line in `VERBS`.

What a user can put right (`UserError`, `OSError`) is shown here as one line, for every verb; any other exception is a
fault of ours and keeps its traceback.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import NamedTuple, NoReturn

import roboflamingo


class Verb(NamedTuple):
    """One line of the overview."""

    summary: str
    example: str
    continues: bool = False
    """Whether the same command goes on where a signal or a kill stopped it."""


VERBS = {
    "demo": Verb("the whole loop on this machine", "--config configs/demo_short.yaml", True),
    "collect": Verb("record demonstrations", "--out data --settings.scenes D --settings.episodes 800", True),
    "data": Verb("what a data set holds, whether it is whole; packs and converts it", "inspect data/task_D_D", True),
    "pretrain": Verb("pre-train the small vision-language model", "--config configs/pretrain_tiny.yaml", True),
    "train": Verb("train a policy", "--config configs/train_tiny.yaml --run runs/tiny", True),
    "evaluate": Verb(
        "run CALVIN's chains with a policy",
        "--policy runs/tiny/policy --out runs/chains --settings.chains 100",
        True,
    ),
    "watch": Verb("a video of one instruction being carried out", '--policy runs/tiny/policy "open the drawer"'),
    "defaults": Verb("E and leash that are saved with a policy", "runs/tiny/policy --execute 4"),
    "ablate": Verb("train and evaluate what differs in one thing, and compare", "head", True),
    "report": Verb("make a page of plots and videos", "runs/chains --out report.html"),
    "weights": Verb("bring published weights", "get mpt-1b-dolly", True),
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
    """Runs a verb, and turns what stops it into one line and an exit status.

    Raises:
        SystemExit: 2 for wrong arguments, `UsageError` among them; 1 for other things that the user can put right,
            for a worker process that was killed, and where nobody reads the output any more; 128 + signal after
            SIGTERM or Ctrl-C; 0 after help.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        try:
            _run(words)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:  # `roboflamingo ... | head`: whoever reads has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None


def _run(words: Sequence[str]) -> None:
    verb, *rest = words or ["--help"]
    if verb in ("-h", "--help", "help"):
        print(overview())
    elif verb == "--version":
        print(roboflamingo.__version__)
    elif verb in VERBS:
        _call(verb, rest)
    else:
        _fail("roboflamingo", f"there is no verb {verb!r}; known are {', '.join(VERBS)}", 2)


def _call(verb: str, words: Sequence[str]) -> None:
    """Runs one verb. A fault of ours goes on as the exception that it is."""
    program = f"roboflamingo {verb}"
    with _leaving_at_signals(verb):
        from calvin_eval.system.errors import UsageError, UserError
        from calvin_eval.system.signals import Stopped, stop_signals

        try:
            module = importlib.import_module(f"roboflamingo.cli.{verb}")
            with stop_signals():
                module.main(words)
        except UserError as error:
            _fail(program, str(error), 2 if isinstance(error, UsageError) else 1)
        except BrokenPipeError:
            raise
        except OSError as error:
            _fail(program, _explained(error), 1)
        except (Stopped, KeyboardInterrupt) as stopped:
            number = stopped.signal if isinstance(stopped, Stopped) else signal.SIGINT
            _say_stopped(verb, number)
            raise SystemExit(128 + number) from None


@contextmanager
def _leaving_at_signals(verb: str) -> Iterator[None]:
    """Ends the process at SIGTERM and Ctrl-C without more words than one line, while libraries are imported.

    An exception would not do, as extension modules turn it into errors of their own; and nothing has begun yet.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(number: int, frame: FrameType | None) -> None:
        _say_stopped(verb, number)
        os._exit(128 + number)

    before = {number: signal.signal(number, leave) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _explained(error: OSError) -> str:
    """The operating system's error in the order in which people say it."""
    if error.strerror is None or error.filename is None:
        return str(error)
    return f"{error.filename}: {error.strerror}"


def _say_stopped(verb: str, number: int) -> None:
    again = "; the same command continues it" if VERBS[verb].continues else ""
    print(f"roboflamingo {verb}: stopped by {signal.Signals(number).name}{again}", file=sys.stderr, flush=True)


def _fail(program: str, message: str, code: int) -> NoReturn:
    print(f"{program}: error: {message}", file=sys.stderr)
    raise SystemExit(code) from None


if __name__ == "__main__":
    main()
