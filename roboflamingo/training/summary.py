"""What trains and what does not, shown before the first step."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table

from roboflamingo.policy.base import LearnedPolicy
from roboflamingo.training.config import TrainConfig


@dataclass
class Part:
    """Counts of one part of a policy.

    Attributes:
        trained: numbers in its trained tensors.
        frozen: numbers in those that are not trained.
        trained_tensors: how many there are.
        frozen_tensors: likewise.
        bytes: that all of them take, whole.
    """

    trained: int = 0
    frozen: int = 0
    trained_tensors: int = 0
    frozen_tensors: int = 0
    bytes: int = 0

    def add(self, parameter: torch.Tensor) -> None:
        """Counts one tensor."""
        self.bytes += parameter.numel() * parameter.element_size()
        if parameter.requires_grad:
            self.trained, self.trained_tensors = self.trained + parameter.numel(), self.trained_tensors + 1
        else:
            self.frozen, self.frozen_tensors = self.frozen + parameter.numel(), self.frozen_tensors + 1


def parts_of(policy: LearnedPolicy) -> dict[str, Part]:
    """Counts by part (see `LearnedPolicy.part_of`), in the order of the policy's parameters, each tensor once."""
    parts: dict[str, Part] = {}
    for name, parameter in policy.named_parameters():
        parts.setdefault(policy.part_of(name), Part()).add(parameter)
    return parts


def summary(policy: LearnedPolicy, config: TrainConfig) -> RenderableType:
    """The table of parts, and below it batch and learning rate with all that they come from."""
    parts = parts_of(policy)
    table = Table("part", box=SIMPLE_HEAD, show_edge=False)
    for column in ("trained", "tensors", "frozen", "tensors", "memory"):
        table.add_column(column, justify="right")
    for name, part in parts.items():
        table.add_row(name, *_cells(part))
    table.add_section()
    table.add_row("all", *_cells(_total(list(parts.values()))))
    return Group(table, _step_line(config))


def _cells(part: Part) -> tuple[str, ...]:
    counts = (part.trained, part.trained_tensors, part.frozen, part.frozen_tensors)
    return (*(f"{count:,}" if count else "-" for count in counts), f"{part.bytes / 2**20:,.1f} MiB")


def _total(parts: list[Part]) -> Part:
    total = Part()
    for part in parts:
        for field, value in vars(part).items():
            setattr(total, field, getattr(total, field) + value)
    return total


def _step_line(config: TrainConfig) -> str:
    """How many windows a step has and how fast it learns."""
    processes = config.devices * config.nodes
    factors = f"batch {config.batch_size} x accumulate {config.accumulate} x processes {processes}"
    rate = f"learning rate {config.scaled_learning_rate:g}"
    if config.optimizer.scale_with == "batch":
        optimizer = config.optimizer
        rate += f" = {optimizer.learning_rate:g} x {config.windows_a_step} / {optimizer.reference_batch} (scale_with)"
    return f"{config.windows_a_step} windows a step ({factors}), {rate}, {config.optimizer.schedule}"
