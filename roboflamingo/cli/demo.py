"""`roboflamingo demo`: collects, trains, evaluates and reports, on this machine."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import yaml
from rich.console import Console

from calvin_eval.collect import CollectSettings, collect
from calvin_eval.demonstrations import EpisodeSettings
from calvin_eval.evaluate import EvaluateSettings
from calvin_eval.report import print_table, write_report
from calvin_eval.system.files import write_json, write_text
from roboflamingo.cli import evaluate as evaluate_verb
from roboflamingo.cli.arguments import parse_config, shown_without_traceback
from roboflamingo.cli.policies import open_policy
from roboflamingo.data.annotations import DataError
from roboflamingo.policy import PolicyConfig
from roboflamingo.training.config import ConfigError, DataConfig, OptimizerConfig, TrainConfig
from roboflamingo.training.train import TrainingStopped, train

EXAMPLES = """
roboflamingo demo --config configs/demo_short.yaml
roboflamingo demo --config configs/demo_long.yaml --run runs/long
"""


@dataclass
class Round:
    """One round of collecting and training.

    Attributes:
        episodes: demonstrations to collect.
        minutes: of training.
    """

    episodes: int
    minutes: float


@dataclass
class DemoConfig:
    """The whole loop.

    Attributes:
        run: folder for everything.
        scene: where demonstrations and chains happen.
        rounds: the first collects with the demonstrators alone; in each further one (DAgger) the policy acts
            first, and training goes on from its weights with all data.
        tasks_in_a_row: tasks of an episode; fewer mean more different starts among as many frames.
        max_steps: control steps that a demonstrator has for a task.
        validation_episodes: held-out episodes, collected with the first round.
        leash: how far (m) the target pose may lead the arm, in demonstrations and evaluation.
        policy: what is trained.
        optimizer: how it is trained.
        batch_size: windows in a batch.
        devices: training processes.
        precision: of training; auto is bf16 where the processor computes in it.
        chains: official chains to evaluate, closed-loop and open-loop.
        execute: further values of E for the plot of average length against E.
        videos: chains to film.
        seed: decides everything that is drawn.
        workers: processes for collecting and evaluating; one per core by default.
    """

    run: str = "runs/demo"
    scene: Literal["A", "B", "C", "D"] = "D"
    rounds: list[Round] = field(default_factory=lambda: [Round(800, 14.0)])
    tasks_in_a_row: int = 3
    max_steps: int = 100
    validation_episodes: int = 30
    leash: float = 0.05
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(ema=0.999))
    batch_size: int = 32
    devices: int = 1
    precision: Literal["fp32", "bf16", "auto"] = "auto"
    chains: int = 100
    execute: list[int] = field(default_factory=lambda: [4])
    videos: int = 4
    seed: int = 0
    workers: int | None = None

    def __post_init__(self) -> None:
        if not self.rounds:
            raise ValueError("rounds is empty; give at least one, with its episodes and minutes")


def main(arguments: Sequence[str]) -> None:
    """Runs the loop, or what is left of it."""
    summary = "Collects demonstrations, trains a policy, evaluates it and writes a report; killed, it is continued."
    config = parse_config(DemoConfig, "demo", arguments, summary=summary, examples=EXAMPLES)
    try:
        with shown_without_traceback("demo", DataError, ConfigError, ValueError, FileNotFoundError):
            run(config)
    except TrainingStopped as stopped:
        raise SystemExit(128 + stopped.signal) from None


def run(config: DemoConfig) -> dict[str, Any]:
    """The loop: rounds of collecting and training, then evaluation and report. Finished parts are not repeated."""
    console, started = Console(), time.time()
    folder = Path(config.run)
    write_text(folder / "config.yaml", yaml.safe_dump(json.loads(json.dumps(asdict(config))), sort_keys=False))
    data: dict[str, float] = {}
    policy: Path | None = None
    for number, step in enumerate(config.rounds):
        console.rule(f"round {number + 1}: demonstrations")
        data[str(_collect(config, number, step, policy))] = 1.0
        console.rule(f"round {number + 1}: training for {step.minutes:g} minutes")
        policy = train(_training(config, number, step, data, policy), console=console)
    assert policy is not None
    console.rule("evaluation")
    evaluations = _evaluate(config, policy)
    results = {
        "closed_loop": evaluations["closed loop"],
        "open_loop": evaluations["open loop"],
        "execute": {str(r["execute"]): r["avg_seq_len"] for r in evaluations.values()},
    }
    write_json(folder / "results.json", results)
    report = folder / "report.html"
    write_report(
        report,
        f"A policy trained on this machine, scene {config.scene}",
        evaluations,
        metrics=_all_metrics(folder, len(config.rounds)),
        recipe=(policy.parent / "config.yaml").read_text(),
        videos=sorted((folder / "closed_loop" / "videos").glob("*.mp4")),
        notes=[
            "Play table and demonstrators are this project's own; do not compare with numbers from CALVIN's data.",
            f"Actions are kept within {config.leash} m of the arm (target leash), in training data and here.",
        ],
    )
    print_table(evaluations, console)
    minutes = (time.time() - started) / 60
    console.print(f"report: {report.resolve()}  ({minutes:.1f} minutes in this session)", soft_wrap=True)
    return results


def _collect(config: DemoConfig, number: int, step: Round, policy: Path | None) -> Path:
    """The data set of a round; after the first, the policy acts first."""
    settings = CollectSettings(
        scenes=config.scene,
        validation_scene=config.scene,
        episodes=step.episodes,
        validation_episodes=config.validation_episodes if number == 0 else 2,
        seed=config.seed + number,
        episode=EpisodeSettings(tasks=config.tasks_in_a_row, max_steps=config.max_steps, leash=config.leash),
    )
    maker = None if policy is None else partial(open_policy, str(policy), 4)
    return collect(
        Path(config.run) / "data" / f"round{number + 1}", settings, workers=config.workers, make_policy=maker
    )


def _training(config: DemoConfig, number: int, step: Round, data: dict[str, float], policy: Path | None) -> TrainConfig:
    """The training of a round: from scratch at first, then on from the last round's policy."""
    optimizer = config.optimizer if number == 0 else replace(config.optimizer, warmup_steps=50)
    return TrainConfig(
        run=str(Path(config.run) / f"train{number + 1}"),
        data=DataConfig(folders=dict(data)),
        policy=config.policy,
        optimizer=optimizer,
        start_from=None if policy is None else str(policy),
        max_minutes=step.minutes,
        batch_size=config.batch_size,
        precision=config.precision,
        seed=config.seed + number,
        devices=config.devices,
        accelerator="auto",
        validate_every_minutes=max(0.5, step.minutes / 8),
        save_every_minutes=1.0,
    )


def _evaluate(config: DemoConfig, policy: Path) -> dict[str, Any]:
    """Results by label: closed loop, open loop, and what lies between."""
    chunk = config.policy.chunk
    wanted = {"closed loop": 1, "open loop": chunk}
    wanted |= {f"E = {execute}": execute for execute in config.execute if execute not in (1, chunk)}
    evaluations = {}
    for label, execute in wanted.items():
        evaluations[label] = evaluate_verb.run(
            evaluate_verb.EvaluateConfig(
                policy=str(policy),
                out=str(Path(config.run) / label.replace(" ", "_").replace("_=_", "")),
                scene=config.scene,
                settings=EvaluateSettings(
                    chains=config.chains,
                    leash=config.leash,
                    videos=config.videos if execute == 1 else 0,
                    seed=config.seed,
                ),
                execute=execute,
                workers=config.workers,
            ),
            label,
        )
    return evaluations


def _all_metrics(folder: Path, rounds: int) -> Path:
    """One metrics.jsonl of all rounds, their times added up."""
    if rounds == 1:
        return folder / "train1" / "metrics.jsonl"
    lines, before = [], 0.0
    for number in range(rounds):
        part = [json.loads(line) for line in (folder / f"train{number + 1}" / "metrics.jsonl").read_text().splitlines()]
        lines += [{**line, "elapsed_s": line["elapsed_s"] + before} for line in part]
        before = lines[-1]["elapsed_s"] if lines else before
    path = folder / "metrics.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path
