"""`roboflamingo demo`: collects, trains, evaluates and reports, on this machine."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import yaml
from rich.console import Console

from calvin_eval.benchmark.chains import CHAINS
from calvin_eval.demonstrations.collect import SPLITS, CollectSettings, collect
from calvin_eval.demonstrations.episodes import EpisodeSettings
from calvin_eval.demonstrations.recording import Recorder
from calvin_eval.evaluation.evaluate import EvaluateSettings
from calvin_eval.evaluation.report import print_table, write_report
from calvin_eval.system.errors import UserError
from calvin_eval.system.files import read_lines, write_json, write_text
from calvin_eval.system.locks import folder_lock
from calvin_eval.system.machine import cores, matmul_gflops, processor
from calvin_eval.system.ranges import ABOVE_ZERO, AMOUNT, COUNT, SEED, Range, check_ranges
from roboflamingo.cli import evaluate as evaluate_verb
from roboflamingo.cli.arguments import parse_config
from roboflamingo.cli.collect import acting_first
from roboflamingo.cli.estimate import estimate, measure
from roboflamingo.policy.config import PolicyConfig
from roboflamingo.training.config import DataConfig, OptimizerConfig, TrainConfig
from roboflamingo.training.launching import is_launched
from roboflamingo.training.precision import computes_in_bf16
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
        steps: optimizer steps to train for.
    """

    episodes: int
    steps: int

    def __post_init__(self) -> None:
        check_ranges(self, "rounds", episodes=COUNT, steps=COUNT)


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
    rounds: list[Round] = field(default_factory=lambda: [Round(900, 6700)])
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
            raise UserError("rounds is empty; give at least one, as {episodes: 900, steps: 6700}")
        chunk = Range(1, self.policy.chunk)
        check_ranges(
            self,
            tasks_in_a_row=COUNT,
            max_steps=Range(2),
            validation_episodes=COUNT,
            leash=ABOVE_ZERO,
            batch_size=COUNT,
            devices=COUNT,
            chains=Range(1, CHAINS),
            execute=chunk,
            videos=AMOUNT,
            seed=SEED,
            workers=COUNT,
        )


def main(arguments: Sequence[str]) -> None:
    """Runs the loop, or what is left of it."""
    summary = "Collects demonstrations, trains a policy, evaluates it and writes a report; killed, it is continued."
    config = parse_config(DemoConfig, "demo", arguments, summary=summary, examples=EXAMPLES)
    try:
        run(config)
    except TrainingStopped as stopped:
        raise SystemExit(128 + stopped.signal) from None


def run(config: DemoConfig) -> dict[str, Any]:
    """The loop: rounds of collecting and training, then evaluation and report. Finished parts are not repeated.

    Raises:
        UserError: another process works in the run's folder, or it holds a demo with other settings.
    """
    if is_launched():  # by a training on several devices, which this process shares, and within which it ends
        _rounds(config, Console(quiet=True))
    folder = Path(config.run)
    with folder_lock(folder, "roboflamingo demo"):
        console, started = Console(), time.time()
        expected = _say_how_long(config, console)
        policy = _rounds(config, console)
        console.rule("evaluation")
        evaluations = _evaluate(config, policy)
        results = {
            "closed_loop": evaluations["closed loop"],
            "open_loop": evaluations["open loop"],
            "execute": {str(r["execute"]): r["avg_seq_len"] for r in evaluations.values()},
        }
        write_json(folder / "results.json", results)
        report = _report(config, policy, evaluations)
        print_table(evaluations, console)
        minutes = (time.time() - started) / 60
        console.print(
            f"report: {report.resolve()}  ({minutes:.1f} minutes in this session, {expected:.0f} were expected)",
            soft_wrap=True,
        )
        return results


def _say_how_long(config: DemoConfig, console: Console) -> float:
    """Prints, and returns, the minutes that what is left of the demo will take here."""
    episodes, steps, horizons = _left(config)
    if not (episodes or steps or horizons):
        return 0.0
    console.print(f"{processor()}: {matmul_gflops():.0f} GFLOP/s in fp32 matrix products", highlight=False)
    in_bf16 = config.precision == "bf16" or (config.precision == "auto" and computes_in_bf16("auto"))
    with console.status("timing a little of each part"):
        speeds = measure(
            config.scene, _episode(config), config.policy, config.optimizer, config.batch_size, in_bf16=in_bf16
        )
    expected = estimate(speeds, episodes, steps, config.chains, horizons, config.workers or cores())
    console.print(f"This will take {expected}. Stopped or killed, the same command continues it.", highlight=False)
    return expected.minutes


def _left(config: DemoConfig) -> tuple[int, int, list[int]]:
    """Episodes, optimizer steps and values of E that an earlier session has not finished."""
    episodes, steps = 0, 0
    for number, each in enumerate(config.rounds):
        settings = _collection(config, number)
        if not all(Recorder(_data(config, number) / split, config.scene).finished for split in SPLITS):
            episodes += settings.episodes + settings.validation_episodes
        made = [line["step"] for line in read_lines(_training_run(config, number) / "metrics.jsonl")]
        steps += max(0, each.steps - max(made, default=0))
    left = {label: steps or not (_chains(config, label) / "results.json").is_file() for label in _horizons(config)}
    horizons = [execute for label, execute in _horizons(config).items() if left[label]]
    return episodes, steps, horizons


def _rounds(config: DemoConfig, console: Console) -> Path:
    """Collects and trains, round by round; returns the last round's policy."""
    data: dict[str, float] = {}
    policy: Path | None = None
    for number, each in enumerate(config.rounds):
        console.rule(f"round {number + 1}: demonstrations")
        data[str(_collect(config, number, policy))] = 1.0
        if number == 0 and not is_launched():  # another demo's folder has been refused by now
            text = yaml.safe_dump(json.loads(json.dumps(asdict(config))), sort_keys=False)
            write_text(Path(config.run) / "config.yaml", text)
        console.rule(f"round {number + 1}: training for {each.steps} steps")
        policy = train(_training(config, number, data, policy), console=console)
    assert policy is not None
    return policy


def _report(config: DemoConfig, policy: Path, evaluations: dict[str, Any]) -> Path:
    """Writes the page and says where it is."""
    folder = Path(config.run)
    path = folder / "report.html"
    write_report(
        path,
        f"A policy trained on this machine, scene {config.scene}",
        evaluations,
        metrics=_all_metrics(config),
        recipe=(policy.parent / "config.yaml").read_text(),
        videos=sorted((_chains(config, "closed loop") / "videos").glob("*.mp4")),
        notes=[
            "Play table and demonstrators are this project's own; do not compare with numbers from CALVIN's data.",
            f"Actions are kept within {config.leash} m of the arm (target leash), in training data and here.",
        ],
    )
    return path


def _data(config: DemoConfig, number: int) -> Path:
    """The data set of a round."""
    return Path(config.run) / "data" / f"round{number + 1}" / _collection(config, number).name


def _training_run(config: DemoConfig, number: int) -> Path:
    """The training of a round."""
    return Path(config.run) / f"train{number + 1}"


def _chains(config: DemoConfig, label: str) -> Path:
    """The evaluation of that label."""
    return Path(config.run) / label.replace(" ", "_").replace("_=_", "")


def _episode(config: DemoConfig) -> EpisodeSettings:
    return EpisodeSettings(tasks=config.tasks_in_a_row, max_steps=config.max_steps, leash=config.leash)


def _collection(config: DemoConfig, number: int) -> CollectSettings:
    """What a round collects."""
    return CollectSettings(
        scenes=config.scene,
        validation_scene=config.scene,
        episodes=config.rounds[number].episodes,
        validation_episodes=config.validation_episodes if number == 0 else 2,
        seed=config.seed + number,
        episode=_episode(config),
    )


def _collect(config: DemoConfig, number: int, policy: Path | None) -> Path:
    """The data set of a round; after the first, the policy acts first."""
    maker, about = (None, None) if policy is None else acting_first(str(policy), 4)
    out, settings = _data(config, number).parent, _collection(config, number)
    return collect(out, settings, workers=config.workers, make_policy=maker, about=about)


def _training(config: DemoConfig, number: int, data: dict[str, float], policy: Path | None) -> TrainConfig:
    """The training of a round: from scratch at first, then on from the last round's policy."""
    steps = config.rounds[number].steps
    optimizer = config.optimizer if number == 0 else replace(config.optimizer, warmup_steps=50)
    return TrainConfig(
        run=str(_training_run(config, number)),
        data=DataConfig(folders=dict(data)),
        policy=config.policy,
        optimizer=optimizer,
        start_from=None if policy is None else str(policy),
        max_steps=steps,
        batch_size=config.batch_size,
        precision=config.precision,
        seed=config.seed + number,
        devices=config.devices,
        accelerator="auto",
        validate_every_steps=max(1, steps // 8),
        save_every_minutes=1.0,
    )


def _horizons(config: DemoConfig) -> dict[str, int]:
    """E of every evaluation, by label: closed loop, open loop, and what lies between."""
    chunk = config.policy.chunk
    between = {f"E = {execute}": execute for execute in config.execute if execute not in (1, chunk)}
    return {"closed loop": 1, "open loop": chunk} | between


def _evaluate(config: DemoConfig, policy: Path) -> dict[str, Any]:
    """Results by label."""
    return {
        label: evaluate_verb.run(
            evaluate_verb.EvaluateConfig(
                policy=str(policy),
                out=str(_chains(config, label)),
                scene=config.scene,
                settings=EvaluateSettings(
                    chains=config.chains,
                    leash=config.leash,
                    videos=min(config.videos, config.chains) if execute == 1 else 0,
                    seed=config.seed,
                ),
                execute=execute,
                workers=config.workers,
                fresh=True,  # chains of the weights before further training are no longer this demo's
            ),
            label,
        )
        for label, execute in _horizons(config).items()
    }


def _all_metrics(config: DemoConfig) -> Path:
    """One metrics.jsonl of all rounds, their times added up."""
    runs = [_training_run(config, number) / "metrics.jsonl" for number in range(len(config.rounds))]
    if len(runs) == 1:
        return runs[0]
    lines, before = [], 0.0
    for run in runs:
        lines += [{**line, "elapsed_s": line["elapsed_s"] + before} for line in read_lines(run)]
        before = lines[-1]["elapsed_s"] if lines else before
    path = Path(config.run) / "metrics.jsonl"
    write_text(path, "".join(json.dumps(line) + "\n" for line in lines))
    return path
