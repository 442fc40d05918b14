"""The policy as Lightning trains it: loss, optimizer, learning rate, and reproducible randomness."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule
from torch import nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from roboflamingo.policy.base import LearnedPolicy
from roboflamingo.training.config import TrainConfig
from roboflamingo.training.finite import FiniteWatch, stops
from roboflamingo.training.layers import shard
from roboflamingo.training.optimizer import make_optimizer
from roboflamingo.training.progress import Progress
from roboflamingo.training.schedule import learning_rate


class PolicyModule(LightningModule):
    """One policy and the rules of its optimizer step.

    Non-obvious behaviours
        - Random numbers (augmentation, dropout) are seeded anew for every batch from seed, batch and rank. A
          continued run therefore draws what the uninterrupted one would have, with no generator states to
          save.
        - Nothing goes through Lightning's `self.log`, which costs more than a small policy's optimizer.

    Args:
        policy: what is trained.
        config: the run's.
        progress: how far it is.
        watch: told of every gradient's norm; may end training before a step.

    Attributes:
        losses: the detached parts of the last batch's loss.
        grad_norm: norm of the last step's gradient, before clipping.
        learning_rate: of the last step.
    """

    def __init__(self, policy: LearnedPolicy, config: TrainConfig, progress: Progress, watch: FiniteWatch) -> None:
        super().__init__()
        self.policy, self.config, self.progress, self.watch = policy, config, progress, watch
        self._first_batch = progress.step * config.accumulate
        self.losses: dict[str, torch.Tensor] = {}
        self.grad_norm = torch.zeros(())
        self.learning_rate = 0.0

    def configure_model(self) -> None:
        """Shards the policy where the strategy has made a mesh of processes."""
        if self.device_mesh is not None:
            shard(self.policy, self.device_mesh["data_parallel"])

    def configure_optimizers(self) -> Optimizer:
        """Over what trains."""
        return make_optimizer(self.policy, self.config)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Seeds the batch and sets the learning rate of the step it belongs to."""
        place = [self.config.seed, self._first_batch + batch_idx, self.global_rank]
        torch.manual_seed(int(np.random.SeedSequence(place).generate_state(1, np.uint64)[0]))
        self.learning_rate = learning_rate(self.config, self.progress)
        for group in self.trainer.optimizers[0].param_groups:
            group["lr"] = self.learning_rate

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> torch.Tensor:
        """The loss of a batch."""
        losses = self.policy.loss(batch)
        self.losses = {name: value.detach() for name, value in losses.items()}
        return stops(losses["loss"])

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clips the accumulated gradient, once an optimizer step, and keeps its norm for the log.

        Raises:
            DivergenceError: the gradient is not finite (see `finite.py`).
        """
        limit = self.config.optimizer.clip
        parameters = [p for p in self.policy.parameters() if p.grad is not None]
        norm = nn.utils.clip_grad_norm_(parameters, float("inf") if limit is None else limit)
        self.grad_norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
        self.watch.see(self.grad_norm, self.progress.step + 1)
