"""`roboflamingo ablate`: trains and evaluates the members of a grid, and says whether the reference's claim holds."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser
from rich.console import Console

from calvin_eval.system.errors import UsageError, UserError
from calvin_eval.system.files import write_json, write_text
from calvin_eval.system.locks import folder_lock
from calvin_eval.system.machine import matmul_gflops, processor
from roboflamingo.cli.ablations.document import put_section
from roboflamingo.cli.ablations.grid import Grid
from roboflamingo.cli.ablations.planning import Plan, make_plan
from roboflamingo.cli.ablations.reading import find, listed, read_grid
from roboflamingo.cli.arguments import parse, verb_parser
from roboflamingo.cli.yaml_files import parse_yaml

EXAMPLES = """
roboflamingo ablate --list                                       # the grids, and what each asks
roboflamingo ablate head                                         # leaves table, plot and JSON in runs/ablations/head
roboflamingo ablate head --write docs/results.md                 # and puts its section into a document
roboflamingo ablate execution --smoke                            # the whole in seconds; its figures mean nothing
roboflamingo ablate window --only 'T = 1' 'T = 8' --workers 2    # two members, side by side
roboflamingo ablate data --train.max_steps 2000 --evaluate.settings.chains 100    # any key, for all members
roboflamingo ablate my_grid.yaml --data data/task_ABC_D          # a grid and a data set of your own
"""
TYPED = ("train", "evaluate", "collect")
"""Verbs whose keys may be typed, each after its name and a dot."""


def main(arguments: Sequence[str]) -> None:
    """Runs an ablation, or lists them."""
    words, typed = _typed_apart(arguments)
    options = parse(_parser(), words)
    if options.list:
        for name, path in listed().items():
            print(f"{name:<12} {read_grid(path).about}")
        return
    if options.name is None:
        raise UsageError(f"name an ablation: {', '.join(listed())}, or the path of a grid of your own")
    if options.write and (options.smoke or options.only):
        raise UsageError("--write takes the whole ablation: leave --smoke and --only out")
    if options.data is not None and typed["collect"]:
        raise UsageError("--data takes the place of what is collected: leave --collect keys out")
    grid = read_grid(find(options.name), smoke=options.smoke, only=options.only or (), typed=typed)
    if options.data is not None:
        grid = _on_data(grid, options.data)
    command = _command(options.name, options.data, typed)
    summary = run(grid, Path(options.out), options.workers, Console(), command)
    if options.write:
        write_section(summary, Path(options.out) / grid.name / "plot.png", Path(options.write))


def _parser() -> ArgumentParser:
    parser = verb_parser(
        "ablate",
        "Trains and evaluates the members of a grid, side by side where there is room, and compares them: a table, a "
        "plot, and a paragraph that says what the reference claims, what was found and whether it holds. What is "
        "finished is not repeated, and is shared with other grids; killed, the same command continues.",
        EXAMPLES,
        "NAME [--KEY VALUE ...] [--train.KEY VALUE ...] [--evaluate.KEY VALUE ...] [--collect.KEY VALUE ...]",
    )
    parser.add_argument("name", nargs="?", type=str, help="a grid of configs/ablations, or the path of a YAML file")
    parser.add_argument("--list", action="store_true", help="says which grids there are, and ends")
    parser.add_argument(
        "--out", type=str, default="runs/ablations", help="folder of all ablations, which share policies"
    )
    parser.add_argument("--only", nargs="+", type=str, help="names of members; all by default")
    parser.add_argument("--data", type=str, default=None, help="a data set to train on, instead of collecting one")
    parser.add_argument(
        "--workers", type=int, default=None, help="members side by side; by cores and memory if not given"
    )
    parser.add_argument(
        "--smoke", action="store_true", help="the smallest version: tiny models, a few steps and chains"
    )
    parser.add_argument("--write", type=str, default=None, help="a Markdown document that gets the ablation's section")
    return parser


def run(grid: Grid, out: Path, workers: int | None, console: Console, command: str = "") -> dict[str, Any]:
    """Runs what is left of an ablation, and writes what it comes to below `out`.

    Args:
        grid: which one.
        out: folder of all ablations.
        workers: members side by side; None for as many as there is room for.
        console: for progress and result.
        command: that makes the same again, for the results.

    Raises:
        UserError: the grid cannot be followed, or what collecting, training and evaluating raise.
        SystemExit: 128 + signal, where one came in training; the same command continues.
    """
    if workers is not None and workers < 1:
        raise UsageError(f"--workers is {workers}; it must be at least 1")
    grid.check_needs()
    plan = make_plan(grid, out)
    from roboflamingo.cli.ablations import plot, results, running
    from roboflamingo.training.train import TrainingStopped

    with folder_lock(plan.folder, "roboflamingo ablate"):
        side_by_side = running.room(len([unit for unit in plan.units if not running.finished(unit)]), workers)
        _say_what_comes(plan, side_by_side, console)
        try:
            running.run_plan(plan, side_by_side, console)
        except TrainingStopped as stopped:
            raise SystemExit(128 + stopped.signal) from None
        summary = {**results.collect_results(plan), "command": command}
        plot.draw(summary, plan.folder / "plot.png")
        write_json(plan.folder / "results.json", summary)
        write_text(plan.folder / "table.md", results.markdown(summary, "plot.png"))
    results.print_summary(summary, console)
    console.print(f"{plan.folder}: results.json, table.md, plot.png", soft_wrap=True, highlight=False)
    return summary


def write_section(summary: Mapping[str, Any], plot: Path, document: Path) -> None:
    """Puts an ablation's section into a document, and its plot into the folder `ablations` beside that."""
    from roboflamingo.cli.ablations.results import markdown

    put_section(document, summary["ablation"], markdown(summary, f"ablations/{summary['ablation']}.png"))
    picture = document.parent / "ablations" / f"{summary['ablation']}.png"
    picture.parent.mkdir(parents=True, exist_ok=True)
    picture.write_bytes(plot.read_bytes())


def _say_what_comes(plan: Plan, side_by_side: int, console: Console) -> None:
    """What is left, and how long it will take here."""
    from roboflamingo.cli.ablations import running
    from roboflamingo.cli.ablations.expected import expected

    left = [unit for unit in plan.units if not running.finished(unit)]
    evaluations = sum(len(unit.evaluations) for unit in plan.units)
    console.print(
        f"{plan.grid.name}: {len(plan.grid.members)} members, {len(plan.units)} trainings and {evaluations} "
        f"evaluations; {len(left)} trainings with their evaluations are left, {side_by_side} side by side.",
        highlight=False,
        soft_wrap=True,
    )
    if not left or plan.grid.smoke:
        return
    console.print(f"{processor()}: {matmul_gflops():.0f} GFLOP/s in fp32 matrix products", highlight=False)
    with console.status("timing a little of each training"):
        time = expected(plan)
    console.print(f"This will take {time}. Stopped or killed, the same command continues it.", highlight=False)


def _typed_apart(arguments: Sequence[str]) -> tuple[list[str], dict[str, dict[str, Any]]]:
    """The words of this verb, and the keys of others by verb.

    Raises:
        UsageError: nothing stands after such a key.
    """
    words, typed = list[str](), {verb: dict[str, Any]() for verb in TYPED}
    rest = iter(arguments)
    for word in rest:
        option, equals, value = word.partition("=")
        verb, dot, key = option.removeprefix("--").partition(".")
        if not (option.startswith("--") and dot and verb in TYPED):
            words.append(word)
            continue
        text = value if equals else next(rest, "")
        if not text or (not equals and text.startswith("--")):
            raise UsageError(f"{option} takes a value")
        try:
            typed[verb][key] = parse_yaml(text, Any)
        except UserError as error:
            raise UsageError(f"{option} is {text}: {error}") from None
    return words, typed


def _command(name: str, data: str | None, typed: Mapping[str, Mapping[str, Any]]) -> str:
    """The words that make the same figures again, wherever they lie and however many run side by side."""
    words = ["roboflamingo", "ablate", name, *([] if data is None else ["--data", data])]
    for verb, keys in typed.items():
        for key, value in keys.items():
            words += [f"--{verb}.{key}", value if isinstance(value, str) else json.dumps(value)]
    return shlex.join(words)


def _on_data(grid: Grid, folder: str) -> Grid:
    if grid.smoke:
        raise UsageError("--smoke collects its own data; leave --data out")
    return replace(grid, data=folder)
