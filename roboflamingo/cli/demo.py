"""`roboflamingo demo`: collects, trains, evaluates and reports, on this machine."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from calvin_eval.demonstrations.collect import SPLITS, collect
from calvin_eval.demonstrations.recording import Recorder
from calvin_eval.evaluation.report import print_table, write_report
from calvin_eval.system.files import read_lines, write_json, write_text
from calvin_eval.system.locks import folder_lock
from calvin_eval.system.machine import cores, matmul_gflops, processor
from roboflamingo.cli import evaluate as evaluate_verb
from roboflamingo.cli.arguments import parse_config
from roboflamingo.cli.collect import acting_first
from roboflamingo.cli.demo_parts import (
    DemoConfig,
    collection_settings,
    data_folder,
    episode_settings,
    evaluation_config,
    evaluation_folder,
    horizons,
    training_config,
    training_run,
)
from roboflamingo.cli.estimate import estimate, measure
from roboflamingo.training.launching import is_launched
from roboflamingo.training.precision import computes_in_bf16
from roboflamingo.training.train import TrainingStopped, train
from roboflamingo.weights.acting import read_acting, save_acting

EXAMPLES = """
roboflamingo demo --config configs/demo_short.yaml
roboflamingo demo --config configs/demo_long.yaml --run runs/long
"""


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
    episodes, steps, wanted = _left(config)
    if not (episodes or steps or wanted):
        return 0.0
    console.print(f"{processor()}: {matmul_gflops():.0f} GFLOP/s in fp32 matrix products", highlight=False)
    in_bf16 = config.precision == "bf16" or (config.precision == "auto" and computes_in_bf16("auto"))
    with console.status("timing a little of each part"):
        training = training_config(config, 0, {"": 1.0}, None)
        speeds = measure(config.scene, episode_settings(config), training, in_bf16=in_bf16)
    workers, shifts = config.workers or cores(), config.token_shifts
    expected = estimate(speeds, episodes, steps, config.chains, wanted, workers, shifts)
    console.print(f"This will take {expected}. Stopped or killed, the same command continues it.", highlight=False)
    return expected.minutes


def _left(config: DemoConfig) -> tuple[int, int, list[int]]:
    """Episodes, optimizer steps and values of E that an earlier session has not finished."""
    episodes, steps = 0, 0
    for number, each in enumerate(config.rounds):
        settings = collection_settings(config, number)
        if not all(Recorder(data_folder(config, number) / split, config.scene).finished for split in SPLITS):
            episodes += settings.episodes + settings.validation_episodes
        made = [line["step"] for line in read_lines(training_run(config, number) / "metrics.jsonl")]
        steps += max(0, each.steps - max(made, default=0))
    left = {
        label: steps or not (evaluation_folder(config, label) / "results.json").is_file() for label in horizons(config)
    }
    return episodes, steps, [execute for label, execute in horizons(config).items() if left[label]]


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
        policy = train(training_config(config, number, data, policy), console=console)
    assert policy is not None
    if config.execute:
        save_acting(policy, replace(read_acting(policy), execute=config.execute[0]))
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
        videos=sorted((evaluation_folder(config, "closed loop") / "videos").glob("*.mp4")),
        notes=[
            "Play table and scripted experts are this project's own; do not compare with numbers from CALVIN's data.",
            f"Actions are kept within {config.leash} m of the arm (target leash), in training data and here.",
        ],
    )
    return path


def _collect(config: DemoConfig, number: int, policy: Path | None) -> Path:
    """The data set of a round; after the first, the policy acts first."""
    maker, about = (None, None) if policy is None else acting_first(str(policy), 4)
    out, settings = data_folder(config, number).parent, collection_settings(config, number)
    return collect(out, settings, workers=config.workers, make_policy=maker, about=about)


def _evaluate(config: DemoConfig, policy: Path) -> dict[str, Any]:
    """Results by label."""
    return {
        label: evaluate_verb.run(evaluation_config(config, policy, label, execute), label)
        for label, execute in horizons(config).items()
    }


def _all_metrics(config: DemoConfig) -> Path:
    """One metrics.jsonl of all rounds, their times added up."""
    runs = [training_run(config, number) / "metrics.jsonl" for number in range(len(config.rounds))]
    if len(runs) == 1:
        return runs[0]
    lines, before = [], 0.0
    for run in runs:
        lines += [{**line, "elapsed_s": line["elapsed_s"] + before} for line in read_lines(run)]
        before = lines[-1]["elapsed_s"] if lines else before
    path = Path(config.run) / "metrics.jsonl"
    write_text(path, "".join(json.dumps(line) + "\n" for line in lines))
    return path
