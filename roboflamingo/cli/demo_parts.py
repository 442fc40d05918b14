"""What the demo is told, and what it tells each of its parts."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from calvin_eval.benchmark.chains import CHAINS
from calvin_eval.demonstrations.collect import CollectSettings
from calvin_eval.demonstrations.episodes import EpisodeSettings
from calvin_eval.evaluation.chains import ChainSettings
from calvin_eval.system.errors import UserError
from calvin_eval.system.ranges import ABOVE_ZERO, AMOUNT, COUNT, SEED, Range, check_ranges
from roboflamingo.cli.evaluate import EvaluateConfig
from roboflamingo.policy.base_config import BasePolicyConfig
from roboflamingo.policy.config import PolicyConfig
from roboflamingo.training.config import TrainConfig
from roboflamingo.training.config_parts import DataConfig, OptimizerConfig


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
        rounds: the first collects with the scripted experts alone; in each further one (DAgger) the policy acts
            first, and training goes on from its weights with all data.
        tasks_in_a_row: tasks of an episode; fewer mean more different starts among as many frames.
        max_steps: control steps that a scripted expert has for a task.
        validation_episodes: held-out episodes, collected with the first round.
        leash: how far (m) the target pose may lead the arm, in demonstrations and evaluation.
        stride: control steps from one frame of the policy's window to the next.
        token_shifts: random shifts of which a frozen vision encoder's tokens are kept.
        policy: what is trained.
        optimizer: how it is trained.
        batch_size: windows in a batch.
        devices: training processes.
        precision: of training; auto is bf16 where the processor computes in it.
        chains: official chains to evaluate, closed-loop and open-loop.
        execute: further values of E for the plot of average length against E. The first is saved with the policy: it
            is what `evaluate` and `watch` take.
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
    stride: int = 1
    token_shifts: int = 2
    policy: BasePolicyConfig = field(default_factory=PolicyConfig)
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
            stride=COUNT,
            token_shifts=COUNT,
            batch_size=COUNT,
            devices=COUNT,
            chains=Range(1, CHAINS),
            execute=chunk,
            videos=AMOUNT,
            seed=SEED,
            workers=COUNT,
        )


def data_folder(config: DemoConfig, number: int) -> Path:
    """The data set of a round."""
    return Path(config.run) / "data" / f"round{number + 1}" / collection_settings(config, number).name


def training_run(config: DemoConfig, number: int) -> Path:
    """The training of a round."""
    return Path(config.run) / f"train{number + 1}"


def evaluation_folder(config: DemoConfig, label: str) -> Path:
    """The evaluation of that label."""
    return Path(config.run) / label.replace(" ", "_").replace("_=_", "")


def episode_settings(config: DemoConfig) -> EpisodeSettings:
    """What an episode of demonstrations is like."""
    return EpisodeSettings(tasks=config.tasks_in_a_row, max_steps=config.max_steps, leash=config.leash)


def collection_settings(config: DemoConfig, number: int) -> CollectSettings:
    """What a round collects."""
    return CollectSettings(
        scenes=config.scene,
        validation_scene=config.scene,
        episodes=config.rounds[number].episodes,
        validation_episodes=config.validation_episodes if number == 0 else 2,
        seed=config.seed + number,
        episode=episode_settings(config),
    )


def training_config(config: DemoConfig, number: int, data: dict[str, float], policy: Path | None) -> TrainConfig:
    """The training of a round: from scratch at first, then on from the last round's policy."""
    steps = config.rounds[number].steps
    optimizer = config.optimizer if number == 0 else replace(config.optimizer, warmup_steps=50)
    return TrainConfig(
        run=str(training_run(config, number)),
        data=DataConfig(folders=dict(data), stride=config.stride, token_shifts=config.token_shifts),
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


def horizons(config: DemoConfig) -> dict[str, int]:
    """E of every evaluation, by label: closed loop, open loop, and what lies between."""
    chunk = config.policy.chunk
    between = {f"E = {execute}": execute for execute in config.execute if execute not in (1, chunk)}
    return {"closed loop": 1, "open loop": chunk} | between


def evaluation_config(config: DemoConfig, policy: Path, label: str, execute: int) -> EvaluateConfig:
    """The evaluation of that label."""
    return EvaluateConfig(
        policy=str(policy),
        out=str(evaluation_folder(config, label)),
        scene=config.scene,
        settings=ChainSettings(
            chains=config.chains,
            leash=config.leash,
            videos=min(config.videos, config.chains) if execute == 1 else 0,
            seed=config.seed,
        ),
        execute=execute,
        workers=config.workers,
        fresh=True,  # chains of the weights before further training are no longer this demo's
    )
