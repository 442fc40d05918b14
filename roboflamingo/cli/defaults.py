"""`roboflamingo defaults`: E and leash that are saved with a policy, and which `evaluate` and `watch` take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from calvin_eval.system.errors import UsageError, UserError
from roboflamingo.cli.arguments import parse, verb_parser
from roboflamingo.policy.base_config import ActingConfig
from roboflamingo.weights.acting import read_acting, save_acting
from roboflamingo.weights.checkpoint import check_policy

EXAMPLES = """
roboflamingo defaults runs/tiny/policy                              # what is saved with it
roboflamingo defaults runs/tiny/policy --execute 4                  # from now on E = 4 unless told otherwise
roboflamingo defaults runs/tiny/policy --execute 4 --leash 0.05
roboflamingo defaults runs/tiny/policy --leash none                 # forgets the leash
"""


def main(arguments: Sequence[str]) -> None:
    """Changes what was given, and prints how the policy acts now."""
    parser = verb_parser(
        "defaults",
        "Shows, or changes, the E and the leash that are saved with a policy: evaluate and watch act so unless told "
        "otherwise. Choose them on chains for choosing (evaluate --settings.set choosing).",
        EXAMPLES,
        "FOLDER [--execute E] [--leash METRES]",
    )
    parser.add_argument("folder", type=str, help="of a policy")
    parser.add_argument("--execute", type=str, default=None, help="E, actions executed of each chunk; none forgets it")
    parser.add_argument(
        "--leash", type=str, default=None, help="how far (m) the target pose may lead the measured one; none forgets it"
    )
    options = parse(parser, arguments)
    folder = Path(options.folder)
    check_policy(folder)
    acting = changed(read_acting(folder), options.execute, options.leash)
    if options.execute is not None or options.leash is not None:
        save_acting(folder, acting)
    execute = "not chosen (closed loop)" if acting.execute is None else acting.execute
    print(f"{folder}: E {execute}, leash {'none' if acting.leash is None else f'{acting.leash} m'}")


def changed(acting: ActingConfig, execute: str | None, leash: str | None) -> ActingConfig:
    """E and leash with what was typed in their place; "none" forgets one.

    Raises:
        UsageError: it is no number.
        UserError: it is out of range.
    """
    try:
        if execute is not None:
            acting = replace(acting, execute=None if execute == "none" else int(execute))
        if leash is not None:
            acting = replace(acting, leash=None if leash == "none" else float(leash))
    except ValueError as error:
        if isinstance(error, UserError):  # out of range
            raise
        raise UsageError(
            f"--execute takes a whole number or none, --leash metres or none; given are {execute} and {leash}"
        ) from None
    return acting
