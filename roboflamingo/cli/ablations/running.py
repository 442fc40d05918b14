"""Runs what a plan asks for: data first, then trainings with their evaluations, side by side where there is room."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from calvin_eval.benchmark.instructions import NUMBERS, sentences
from calvin_eval.benchmark.tasks import TASKS
from calvin_eval.demonstrations.collect import collect
from calvin_eval.system.errors import UserError
from calvin_eval.system.files import read_json, read_lines, write_json
from calvin_eval.system.locks import folder_lock
from calvin_eval.system.machine import available_memory, cores
from calvin_eval.system.processes import run_jobs
from calvin_eval.system.provenance import code_version, provenance
from roboflamingo.cli import evaluate as evaluate_verb
from roboflamingo.cli.ablations.planning import Plan, Unit
from roboflamingo.cli.evaluate import EvaluateConfig
from roboflamingo.training.datamodule import open_windows
from roboflamingo.training.train import train
from roboflamingo.weights.checkpoint import CONFIG, read_config

MEMORY_OF_A_MEMBER = 3 * 1024**3
"""Bytes that a training with its evaluations may claim; those of the tiny model stay well below."""
MADE_WITH = "made_with.json"
"""Of a unit's folder: what its training ran on."""
REFRESH_HZ = 0.5


def room(units: int, wanted: int | None) -> int:
    """How many units run side by side: as many as cores and memory allow, unless a number is asked for."""
    if wanted is not None:
        return max(1, min(wanted, units))
    memory = available_memory()
    by_memory = units if memory is None else memory // MEMORY_OF_A_MEMBER
    return max(1, min(units, cores(), by_memory))


def run_plan(plan: Plan, workers: int, console: Console) -> None:
    """Does all that is not done yet.

    Args:
        plan: what is asked for.
        workers: units side by side, each in a process of its own; with 1, in this process.
        console: for what is to be said.

    Raises:
        TrainingStopped, Stopped: a signal came; what is finished is kept, trainings are saved.
        WorkerKilledError: a process was killed, as by the system for lack of memory.
        UserError: what trainings and evaluations raise.
    """
    make_data(plan, console)
    waiting = [unit for unit in plan.units if not finished(unit)]
    if not waiting:
        return
    if workers == 1 or len(waiting) == 1:
        for number, unit in enumerate(waiting, start=1):
            console.rule(f"{number} of {len(waiting)}: {', '.join(unit.members)}")
            run_unit(unit, cores(), here=plan.grid.smoke or cores() == 1)
        return
    for unit in waiting:  # whose data are packed here, on all cores, and not by each
        open_windows(unit.config, console)
    share = max(1, cores() // workers)
    environment = {name: str(share) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    jobs = run_jobs(Worker(share), waiting, workers, environment=environment, nested=True)
    with _shown(waiting, console):
        for members in jobs:
            console.print(f"finished: {', '.join(members)}")


def make_data(plan: Plan, console: Console) -> None:
    """Collects the demonstrations, unless they are there."""
    if plan.collect is None:
        return
    settings, out = plan.collect
    with folder_lock(out, "roboflamingo ablate", wait=True):  # another ablation may be collecting the same
        collect(out, settings)


def finished(unit: Unit) -> bool:
    """Whether nothing is to be done: a policy, and results of it by the present code, in every evaluation's folder."""
    return all(_is_finished(unit, config) for config in unit.evaluations.values())


def _is_finished(unit: Unit, config: EvaluateConfig) -> bool:
    results, settings = (Path(config.out) / name for name in ("results.json", "settings.json"))
    if not (results.is_file() and settings.is_file() and (unit.folder / "train" / "policy").is_dir()):
        return False
    if len(read_lines(Path(config.out) / "chains.jsonl")) < config.settings.chains:
        return False
    known = read_json(settings, "what was evaluated")
    return (known.get("code"), known.get("policy_code")) == (code_version(), code_version("roboflamingo"))


@dataclass(frozen=True)
class Worker:
    """Runs units in a process of its own, whose words go to a file of the unit.

    Attributes:
        share: cores of such a process.
    """

    share: int

    def __call__(self, unit: Unit) -> tuple[str, ...]:
        """Trains and evaluates; returns the members that it was for."""
        unit.folder.mkdir(parents=True, exist_ok=True)
        with ExitStack() as held:
            log = held.enter_context((unit.folder / "log.txt").open("a", encoding="utf-8"))
            held.enter_context(redirect_stdout(log))
            held.enter_context(redirect_stderr(log))
            run_unit(unit, self.share, here=self.share == 1)
        return unit.members


def run_unit(unit: Unit, share: int, *, here: bool) -> None:
    """Trains, and evaluates what came of it.

    Args:
        unit: what to do.
        share: cores that it may use.
        here: whether chains run in this process.
    """
    with folder_lock(unit.folder, "roboflamingo ablate", wait=True):  # another ablation may want the same
        check_numbers(unit, unit.config.policy)
        check_numbers(unit, read_config(train(unit.config) / CONFIG))
        if not (unit.folder / MADE_WITH).is_file():
            write_json(unit.folder / MADE_WITH, {**provenance(), "policy_code": code_version("roboflamingo")})
        for name, config in unit.evaluations.items():
            config.workers = share
            evaluate_verb.run(config, name, here=here)


def check_numbers(unit: Unit, policy: Any) -> None:
    """Makes sure that a policy that is told tasks by number can read them; else all tasks look alike to it.

    A vocabulary that was made of the numbers in the training data has those of its tasks.

    Args:
        unit: what is evaluated.
        policy: the policy's configuration, which may have no words yet.

    Raises:
        UserError: the vocabulary is another, and lacks some.
    """
    if all(config.settings.sentences != NUMBERS for config in unit.evaluations.values()):
        return
    language = getattr(getattr(policy, "backbone", None), "language", None)
    known = set(getattr(language, "words", ()))
    said = {word for task in TASKS for sentence in sentences(task, NUMBERS) for word in sentence.split()}
    if known - said and (missing := sorted(said - known)):
        raise UserError(
            f"{', '.join(unit.members)}: the policy's vocabulary lacks {', '.join(missing[:5])} ({len(missing)} such), "
            "so it could not tell tasks by their numbers apart: give it these words, or leave the member out"
        )


@contextmanager
def _shown(units: Sequence[Unit], console: Console) -> Iterator[None]:
    """A line for every unit under way, for the length of a `with` block. Where nobody watches, none."""
    if not console.is_terminal:
        yield
        return
    begun = time.monotonic()

    def lines() -> Group:
        minutes = (time.monotonic() - begun) / 60
        return Group(*(Text(standing(unit)) for unit in units), Text(f"{minutes:.0f} minutes in this session"))

    with Live(get_renderable=lines, console=console, refresh_per_second=REFRESH_HZ, transient=True):
        yield


def standing(unit: Unit) -> str:
    """How far a unit is, by its files."""
    label = ", ".join(unit.members)
    steps = steps_made(unit)
    if not (unit.folder / "train" / "policy").is_dir():
        return f"{label}: step {steps} of {unit.config.max_steps or 'as many as its time allows'}"
    done = {name: chains_run(config) for name, config in unit.evaluations.items()}
    parts = [f"{done[name]} of {config.settings.chains}" for name, config in unit.evaluations.items()]
    return f"{label}: trained; chains {', '.join(parts)}"


def steps_made(unit: Unit) -> int:
    """Optimizer steps that are logged."""
    return max((line["step"] for line in _lines(unit.folder / "train" / "metrics.jsonl")), default=0)


def chains_run(config: EvaluateConfig) -> int:
    """Chains of an evaluation that are written down."""
    path = Path(config.out) / "chains.jsonl"
    return path.read_bytes().count(b"\n") if path.is_file() else 0


def _lines(path: Path) -> list[Any]:
    """What a log that is being written holds by now."""
    return read_lines(path, on_damage=lambda number, why: None) if os.path.exists(path) else []
