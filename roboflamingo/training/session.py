"""What surrounds an optimizer step: averaging, logging, validating, saving, stopping, in this order."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import Console

from roboflamingo.training.checkpoint import not_finite, save_policy_whole, save_state, trained_weights
from roboflamingo.training.datamodule import WindowDataModule
from roboflamingo.training.display import Display
from roboflamingo.training.ema import WeightAverage
from roboflamingo.training.loggers import open_loggers
from roboflamingo.training.metrics import MetricsLog, RunningMean
from roboflamingo.training.module import PolicyModule
from roboflamingo.training.progress import SaveTimes
from roboflamingo.training.schedule import continued_at
from roboflamingo.training.sharding import share_of_optimizer_state, whole
from roboflamingo.training.stopping import Patience, StopSignals
from roboflamingo.training.summary import summary
from roboflamingo.training.validation import validate

AGREE_EVERY = 10
"""Optimizer steps from one agreement of several processes on time and signals to the next."""


class Session(Callback):
    """One session of a run: from its start or its last checkpoint to its end, or to a signal.

    Args:
        module: what is trained.
        data: where batches come from.
        saved: the state of the last session, or None; its weights are in the module already.
        console: for the summary and the progress bar.

    Attributes:
        stopped_by: the signal (SIGTERM, SIGINT) that ended the session before the run's end, or None.
    """

    def __init__(
        self, module: PolicyModule, data: WindowDataModule, saved: dict[str, Any] | None, console: Console
    ) -> None:
        self.module, self.data, self.config, self.progress = module, data, module.config, module.progress
        self.run = Path(self.config.run)
        self.stopped_by: signal.Signals | None = None
        self._signals = StopSignals()
        self._patience = Patience(self.config.patience, self.config.min_delta)
        self._save_times = SaveTimes(self.config.save_every_steps, self.config.save_every_minutes)
        self._saved = saved
        self._means = RunningMean()
        self._validated_step = -1
        self._logged = (self.progress.step, 0.0)
        self._average: WeightAverage | None = None
        self._console, self._display = console, Display(self.progress, console)
        self._log: MetricsLog | None = None  # only one process writes

    # --- the session's beginning ----------------------------------------------------------------

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restores the last session, opens logs, starts the clock."""
        self.module.train()  # a policy that was loaded comes in evaluation mode
        if self.config.optimizer.ema is not None:
            self._average = WeightAverage(self.module.policy, self.config.optimizer.ema)
        if self._saved is not None:
            self._restore(self._saved, trainer)
            note = continued_at(self.config, self.progress, self._saved)
            if note:
                self._console.print(note, highlight=False, soft_wrap=True)
            self._saved.clear()  # whoever else holds it: the weights of a large policy are needed but once
            self._saved = None
        if trainer.is_global_zero:
            self._log = MetricsLog(self.run, self.progress.step, open_loggers(self.config, self.progress.step))
        self._held_out = self.data.held_out_batches()
        self._console.print(summary(self.module.policy, self.config), highlight=False)
        self._display.open()
        self._signals.catch()
        self.progress.start_clock()
        self._logged = (self.progress.step, self.progress.clock())
        self._save_times.start(self.progress.clock())
        trainer.should_stop = self.progress.finished()  # then only the policy is missing

    def _restore(self, saved: dict[str, Any], trainer: Trainer) -> None:
        optimizer = trainer.optimizers[0]
        optimizer.load_state_dict(share_of_optimizer_state(saved["optimizer"], optimizer))
        if self._average is not None:
            self._average.load_state_dict(saved["average"])
        self._means.load_state_dict(saved["means"], self.module.device)
        self._patience.load_state_dict(saved)
        self._validated_step = saved["validated_step"]

    # --- every step -----------------------------------------------------------------------------

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """After every batch; most of it after every optimizer step."""
        self._means.add(self.module.losses)
        if (batch_idx + 1) % self.config.accumulate:
            return
        elapsed_s, stop = self._agree(trainer)
        self.progress.advance(elapsed_s)
        if self._average is not None:
            self._average.update(self.progress.step)
        if self.progress.due(self.config.log_every_steps, None):
            self._write_means(trainer)
        if self.progress.due(self.config.validate_every_steps, self.config.validate_every_minutes):
            self._validate(trainer)
        self._snapshot(trainer)
        if self.progress.finished() or stop:
            self.stopped_by = None if self.progress.finished() else signal.Signals(stop)
            trainer.should_stop = True  # on_train_end saves
        elif self._save_times.due(self.progress):
            self._save(trainer)

    def _agree(self, trainer: Trainer) -> tuple[float, int]:
        """Seconds spent and a signal to stop by (0: none), the same in all processes.

        To agree, processes wait for each other and for their devices, so several do it only every few steps; time
        stands still between.
        """
        elapsed_s, stop = self.progress.clock(), self._signals.received
        if trainer.world_size > 1:
            if self.progress.step % AGREE_EVERY:
                return self.progress.elapsed_s, 0
            mine = torch.tensor([elapsed_s, stop], dtype=torch.float64, device=trainer.strategy.root_device)
            torch.distributed.all_reduce(mine, torch.distributed.ReduceOp.MAX)
            elapsed_s, stop = mine[0].item(), int(mine[1])
        return elapsed_s, stop

    def _write_means(self, trainer: Trainer) -> None:
        """One line of the log: the mean over processes and steps since the last line."""
        self.module.watch.check()
        self._means.share(trainer)
        means = self._means.take() | {"grad_norm": self.module.grad_norm}
        if self._log is not None:
            step, before_s = self._logged
            frames = (self.progress.step - step) * self._windows_a_step(trainer) * self.data.training.window
            values = {name: value.item() for name, value in means.items()}  # waits for the device
            line = self._place(trainer) | {"lr": self.module.learning_rate} | values
            # by the clock, as the time that several processes agree on stands still between two agreements
            line["frames_per_s"] = round(frames / max(1e-6, self.progress.clock() - before_s), 1)
            self._log.write(line)
            self._display.update(line)
        self._logged = (self.progress.step, self.progress.clock())

    def _windows_a_step(self, trainer: Trainer) -> int:
        return self.config.batch_size * self.config.accumulate * trainer.world_size

    def _place(self, trainer: Trainer) -> dict[str, float]:
        """Where in the run a line of the log belongs."""
        epoch = self.progress.step * self._windows_a_step(trainer) / self.data.stream.epoch_length()
        return {
            "step": self.progress.step,
            "epoch": round(epoch, 4),
            "elapsed_s": round(self.progress.clock(), 2),
        }

    @contextmanager
    def _averaged_weights(self) -> Iterator[None]:
        """The weights that are validated and shared: their average where one is kept."""
        with self._average.applied() if self._average is not None else nullcontext():
            yield

    def _validate(self, trainer: Trainer) -> None:
        """Measures the held-out windows and keeps the best policy so far."""
        if self.data.validation is None or self._validated_step == self.progress.step:
            return
        self.module.watch.check()
        self._validated_step = self.progress.step
        numbers = getattr(self._held_out, "batch_sampler", ())
        with self._averaged_weights():
            results = validate(self.module.policy, self._held_out, trainer, self.data.held_out_count, numbers)
            is_best = self._patience.is_best(results["val_loss"])
            if self._log is not None:
                line = self._place(trainer) | results
                self._log.write(line)
                self._display.validated(line, is_best)
            if is_best:
                save_policy_whole(self.module.policy, self.run / "policy_best", write=self._log is not None)
        self.progress.stopped_early = self._patience.exhausted()

    def _snapshot(self, trainer: Trainer) -> None:
        """Keeps the policy of an epoch's end."""
        every = self.config.snapshot_every_epochs
        if every is None:
            return
        steps = every * self.data.stream.epoch_length() / self._windows_a_step(trainer)
        done = self.progress.passed(steps)
        if done is None:
            return
        self.module.watch.check()
        with self._averaged_weights():
            folder = self.run / "epochs" / str(done * every)
            save_policy_whole(self.module.policy, folder, write=self._log is not None)

    def _save(self, trainer: Trainer) -> None:
        """Writes `last.ckpt`, the same for all processes and however they share the weights.

        Raises:
            DivergenceError: something in it is not finite. The old file stays.
            OSError: the disk is full. The old file stays.
        """
        began = time.monotonic()
        self.module.watch.check()
        self._means.share(trainer)
        sharded = {
            "weights": trained_weights(self.module.policy),
            "optimizer": trainer.optimizers[0].state_dict(),
            "average": None if self._average is None else self._average.state_dict(),
        }
        state = whole(sharded, keep=self._log is not None)
        if self._log is not None:
            culprit = not_finite(state)
            if culprit is not None:
                raise self.module.watch.error(culprit, self.progress.step)
            state |= {
                "step": self.progress.step,
                "elapsed_s": self.progress.clock(),
                "means": self._means.state_dict(),
                "validated_step": self._validated_step,
                "learning_rate": self.module.learning_rate,
                "limits": (self.progress.max_steps, self.progress.max_minutes),
            }
            save_state(state | self._patience.state_dict(), self.run / "last.ckpt")
        cost_s = time.monotonic() - began
        if trainer.world_size > 1:  # the writer's, so that all save again at the same step
            cost_s = trainer.strategy.broadcast(cost_s)
        self._save_times.cost_s = cost_s
        self._save_times.start(self.progress.elapsed_s + cost_s)

    # --- the session's end ----------------------------------------------------------------------

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A finished run leaves its policy; any leaves its state."""
        self.module.watch.check()
        if self.progress.finished():
            self._validate(trainer)
            with self._averaged_weights():
                save_policy_whole(self.module.policy, self.run / "policy", write=self._log is not None)
        self._save(trainer)
        if self._log is not None:
            self._log.close()
        self._display.close()
        trainer.strategy.barrier("saved")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leaves the terminal in order, and the log whole."""
        self._display.close()
        if self._log is not None:
            with suppress(OSError):  # of a full disk, say, which is known by now
                self._log.close()
