"""Trains a policy: `train(config)` is what the command line and the demo call."""

from __future__ import annotations

import logging
import signal
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, Strategy
from rich.console import Console

from calvin_eval.system.locks import folder_lock
from roboflamingo.backbone.filling import halve
from roboflamingo.data.collected import recorded_leash
from roboflamingo.data.places import folder_at
from roboflamingo.data.windows import Windows
from roboflamingo.policy.base import LearnedPolicy, policy_kind
from roboflamingo.policy.base_config import BasePolicyConfig
from roboflamingo.training.beforehand import check_beforehand, check_start
from roboflamingo.training.checkpoint import check_state, load_state, load_trained_weights
from roboflamingo.training.config import TrainConfig
from roboflamingo.training.datamodule import WindowDataModule, check_same_data, open_windows, steps_of, with_statistics
from roboflamingo.training.finite import DivergenceError, FiniteWatch
from roboflamingo.training.launching import follow_launcher, is_launched, is_main_process, launched_processes
from roboflamingo.training.layers import checkpoint_activations, compile_layers
from roboflamingo.training.module import PolicyModule
from roboflamingo.training.precision import device_for, settle
from roboflamingo.training.progress import Progress
from roboflamingo.training.resolved import check_same_config, unused_keys, write_config
from roboflamingo.training.session import Session
from roboflamingo.training.stopping import Patience
from roboflamingo.training.trainable import choose_trainable
from roboflamingo.training.vision_tokens import with_vision_tokens
from roboflamingo.weights.checkpoint import CONFIG, load_policy, read_config


class TrainingStopped(Exception):  # noqa: N818 (it is no error)
    """A signal ended training before its end; the run is saved and the same call continues it.

    Attributes:
        signal: which one.
    """

    def __init__(self, number: signal.Signals, run: Path, step: int) -> None:
        super().__init__(f"{number.name}: saved {run} at step {step}; the same command continues it")
        self.signal = number


def train(config: TrainConfig, *, console: Console | None = None) -> Path:
    """Trains, or continues to train, or returns at once where the run is complete.

    On several devices this process starts the others, which run the same command as far as this call and end there.

    The run's folder gets `config.yaml`, `last.ckpt`, `metrics.jsonl` (see `metrics.py`), what further loggers
    write, `policy_best/` (lowest held-out loss), `epochs/N/` where `snapshot_every_epochs` asks for them and, at the
    end, `policy/`; all policies are read by `load_policy`.

    Args:
        config: see `TrainConfig`.
        console: for progress; None for the terminal.

    Returns:
        The folder of the final policy.

    Raises:
        TrainingStopped: SIGTERM or SIGINT came; the run is saved.
        ConfigError: `config` contradicts itself or the run that it is to continue, or this machine cannot do it.
        DivergenceError: a gradient was not finite; the files stay as they were saved before.
        DataError: a data set is missing or broken.
        WeightsError: published weights are missing or broken.
        UserError: another process trains in the same folder.
        OSError: the disk is full, or a file cannot be read. `start_from` is no policy folder.
    """
    if not is_launched():
        if not is_main_process():
            return _train(config, Console(quiet=True))
        with folder_lock(Path(config.run), "roboflamingo train"):
            return _train(config, console or Console(stderr=True))
    follow_launcher()
    try:
        return _train(config, Console(quiet=True))
    except (TrainingStopped, DivergenceError):
        raise SystemExit(0) from None  # the main process says so


def _train(config: TrainConfig, console: Console) -> Path:
    """See `train`."""
    config = settle(config, console)
    run, first = Path(config.run), is_main_process()
    run.mkdir(parents=True, exist_ok=True)
    if config.start_from is not None:
        check_start(Path(config.start_from))
        started = read_config(Path(config.start_from) / CONFIG)
        unused = unused_keys(config.policy, started)
        if unused:
            console.print(f"start_from brings its policy's own values, so these are not used: {', '.join(unused)}")
        config = replace(config, policy=started)
    if not (run / "policy").is_dir():  # else this has run here before, and is probably complete
        check_beforehand(config)
    training, held_out = open_windows(config, console)
    config = replace(config, policy=_on_leash_of(config, with_statistics(config.policy, training)))
    if config.max_epochs is not None:
        config = replace(config, max_steps=steps_of(config, training), max_epochs=None)
    saved = load_state(run / "last.ckpt")
    check_same_data(config, training, held_out, write=first)
    if saved is not None:
        check_state(saved)
        check_same_config(config, run / "config.yaml")
    if first:
        write_config(config, run / "config.yaml")

    progress = _progress(config, saved)
    if progress.finished() and (run / "policy").is_dir():
        console.print(f"{run} is complete at step {progress.step}", soft_wrap=True)
        return run / "policy"

    torch.manual_seed(config.seed)  # initial weights
    if config.start_from is None:
        half = config.frozen_precision == "bf16" and not config.trains_everything
        trained = [part for part in ("vision", "language") if getattr(config.trainable, part)]
        policy = policy_kind(config.policy.kind).make(config.policy, half=half, trained=trained)
    else:
        policy = load_policy(config.start_from)
    choose_trainable(policy, config)
    fit(policy, config, (training, held_out), saved, console)
    if is_launched():
        raise SystemExit(0)
    return run / "policy"


def _on_leash_of(config: TrainConfig, policy: BasePolicyConfig) -> BasePolicyConfig:
    """The policy, which is to act on the leash that its data sets were collected with unless it has one already."""
    if policy.acting.leash is not None:
        return policy
    leash = recorded_leash([folder_at(folder) for folder in config.data.folders])
    return replace(policy, acting=replace(policy.acting, leash=leash))


def fit(
    policy: LearnedPolicy,
    config: TrainConfig,
    windows: tuple[Windows, Windows | None],
    saved: dict[str, Any] | None,
    console: Console,
) -> None:
    """Trains a policy that has been made, as far as its parameters require gradients, from the last saved state on.

    Args:
        policy: what to train; its layers are changed for good (see `layers.py`).
        config: see `TrainConfig`; `policy`, `start_from` and `data` have been used by now.
        windows: to train on, and held-out ones.
        saved: the state of the run's last session, or None; it is emptied when it has been restored.
        console: for progress.

    Raises:
        TrainingStopped: SIGTERM or SIGINT came; the run is saved.
        ConfigError: the saved state is another policy's.
        DivergenceError: a gradient was not finite; the files stay as they were saved before.
        OSError: the disk is full; the files stay as they were saved before.
    """
    progress = _progress(config, saved)
    if saved is not None:
        load_trained_weights(policy, saved.pop("weights"))
    if config.frozen_precision == "bf16":
        halve(policy)
    if config.checkpoint_activations:
        checkpoint_activations(policy)
    if config.compile:
        compile_layers(policy)
    windows = with_vision_tokens(policy, config, windows, console, continued=saved is not None)
    data = WindowDataModule(config, *windows, progress.step * config.accumulate)
    module = PolicyModule(policy, config, progress, FiniteWatch(config, data))
    session = Session(module, data, saved, console)
    with _quiet_lightning():
        trainer = _trainer(config, session, _strategy(config, policy))
        with launched_processes(trainer):
            trainer.fit(module, datamodule=data)
    if session.stopped_by is not None:
        stopped = TrainingStopped(session.stopped_by, Path(config.run), progress.step)
        console.print(str(stopped), soft_wrap=True)
        raise stopped
    early = f" until step {progress.step}, when it had stopped getting better" if progress.stopped_early else ""
    console.print(f"trained {Path(config.run) / 'policy'}{early}", soft_wrap=True)


def _progress(config: TrainConfig, saved: dict[str, Any] | None) -> Progress:
    """How far the run is by its saved state."""
    progress = Progress(config.max_steps, config.max_minutes)
    if saved is not None:
        progress.step, progress.elapsed_s = saved["step"], saved["elapsed_s"]
        patience = Patience(config.patience, config.min_delta)
        patience.load_state_dict(saved)
        progress.stopped_early = patience.exhausted()
    return progress


def _trainer(config: TrainConfig, session: Session, strategy: Strategy | str) -> Trainer:
    """Lightning for devices, precision, processes and accumulation; the session does the rest."""
    return Trainer(
        accelerator=device_for(config.accelerator),
        devices=config.devices,
        num_nodes=config.nodes,
        strategy=strategy,
        precision="bf16-mixed" if config.precision == "bf16" else "32-true",
        accumulate_grad_batches=config.accumulate,
        max_epochs=-1,
        callbacks=[session],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        limit_val_batches=0,
        use_distributed_sampler=False,
    )


def _strategy(config: TrainConfig, policy: LearnedPolicy) -> Strategy | str:
    """How processes share the work; one process alone shares nothing."""
    processes = config.devices * config.nodes
    if processes == 1:
        return "auto"
    if config.strategy == "fsdp":
        return ModelParallelStrategy(data_parallel_size=processes, tensor_parallel_size=1)
    idle = policy.idle()  # which `choose_trainable` leaves out, and a policy of the caller's perhaps not
    unused = any(p.requires_grad and id(p) in idle for p in policy.parameters())
    return DDPStrategy(gradient_as_bucket_view=True, find_unused_parameters=unused)


@contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Keeps back Lightning's notes on devices, workers and its own use of torch, which are no news here."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.WARNING)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="lightning")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
