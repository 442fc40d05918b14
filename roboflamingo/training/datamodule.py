"""Feeds Lightning with batches of windows from packed CALVIN data sets."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from rich.console import Console
from torch.utils.data import DataLoader

from roboflamingo.actions import pose_statistics, vector_statistics
from roboflamingo.data.annotations import DataError
from roboflamingo.data.frames import PackSettings, vector_length
from roboflamingo.data.packing import pack
from roboflamingo.data.sampling import BatchNumbers, WindowStream, held_out_numbers
from roboflamingo.data.split import read_split
from roboflamingo.data.windows import Windows, to_tensors
from roboflamingo.policy import PolicyConfig
from roboflamingo.training.config import TrainConfig


def open_windows(config: TrainConfig, console: Console | None = None) -> tuple[Windows, Windows | None]:
    """Packs what is not packed yet and opens training and held-out windows, the latter unless switched off.

    Of several processes that call this at once, one packs and the others wait.

    Raises:
        DataError: a data set is missing or broken, or there is nothing to validate on.
    """
    data, policy = config.data, config.policy
    folders = [Path(folder) for folder in data.folders]
    cache = Path(data.cache) if data.cache else folders[0] / "packed"
    recorded = "actions" if policy.actions == "absolute" else "rel_actions"
    settings = PackSettings(policy.static_size, policy.gripper_size, recorded, data.language)
    if policy.vectors:
        split = read_split(folders[0] / "training", data.language)
        frame = split.path(int(split.frames[0]))
        settings = replace(settings, vectors={name: vector_length(frame, name) for name in policy.vectors})
    sizes: dict[str, Any] = {"window": policy.window, "chunk": policy.chunk, "stride": data.stride}
    sizes["grows"] = policy.grows

    def windows(splits: list[Path], weights: list[float]) -> Windows:
        packed = [pack(split, cache, settings, processes=data.pack_processes, console=console) for split in splits]
        return Windows(packed, **sizes, weights=weights, vectors=policy.vectors)

    training = windows([folder / "training" for folder in folders], list(data.folders.values()))
    training.keep(data.fraction, config.seed)
    if not config.validation_windows:
        return training, None
    held_out = [folder / "validation" for folder in folders if (folder / "validation").is_dir()]
    if not held_out:
        names = ", ".join(map(str, folders))
        raise DataError(f"none of {names} has a validation/ folder; set validation_windows to 0")
    return training, windows(held_out, [1.0] * len(held_out))


def with_statistics(policy: PolicyConfig, training: Windows) -> PolicyConfig:
    """The same policy with what it needs to know of the training data: words, stride, what its vectors are like."""
    policy = replace(policy.with_words(training.instructions), stride=training.stride)
    missing = [name for name in policy.vectors if name not in policy.statistics]
    statistics = {name: vector_statistics(torch.from_numpy(training.column(name))) for name in missing}
    if policy.actions == "absolute" and "actions" not in policy.statistics:
        statistics["actions"] = pose_statistics(torch.from_numpy(training.column("actions")))
    return replace(policy, statistics=policy.statistics | statistics)


def steps_of(config: TrainConfig, training: Windows) -> int:
    """Optimizer steps that `max_epochs` comes to."""
    assert config.max_epochs is not None
    stream = WindowStream(training.draw_weights(balance_tasks=config.data.balance_tasks), config.seed)
    return max(1, math.ceil(config.max_epochs * stream.epoch_length() / config.windows_a_step))


class WindowDataModule(LightningDataModule):
    """Draws batches of windows, an endless stream of them.

    Args:
        config: the run's.
        training: the windows to train on.
        validation: the held-out windows, or None.
        start_batch: batches that earlier sessions of this run have trained on.

    Attributes:
        held_out_count: batches of `held_out_batches` that count.
    """

    def __init__(self, config: TrainConfig, training: Windows, validation: Windows | None, start_batch: int) -> None:
        super().__init__()
        self.config, self.training, self.validation = config, training, validation
        self._start_batch, self.held_out_count = start_batch, 0
        weights = training.draw_weights(balance_tasks=config.data.balance_tasks)
        self.stream = WindowStream(weights, config.seed)

    def train_dataloader(self) -> DataLoader[Any]:
        """The endless stream from `start_batch` on."""
        rank, processes = self._place()
        numbers = BatchNumbers(
            self.stream, self.config.batch_size, start=self._start_batch, rank=rank, processes=processes
        )
        return self._loader(self.training, numbers)

    def held_out_batches(self) -> DataLoader[Any] | list[Any]:
        """This process's share of the held-out windows, each once; empty without validation.

        Every process gets equally many batches, as sharded policies compute together; those beyond
        `held_out_count` are filled up with some window. It is not called `val_dataloader`, as validation is not
        left to Lightning (see `Session`).
        """
        if self.validation is None:
            return []
        rank, processes = self._place()
        total, size = self.config.validation_windows, self.config.batch_size
        shares = [held_out_numbers(len(self.validation), total, rank=r, processes=processes) for r in range(processes)]
        mine = shares[rank].tolist()
        batches = [mine[i : i + size] for i in range(0, len(mine), size)]
        self.held_out_count = len(batches)
        most = math.ceil(max(map(len, shares)) / size)
        return self._loader(self.validation, batches + [[0]] * (most - len(batches)))

    def _place(self) -> tuple[int, int]:
        """This process's rank and the number of processes."""
        assert self.trainer is not None
        return self.trainer.global_rank, self.trainer.world_size

    def _loader(self, windows: Windows, numbers: Any) -> DataLoader[Any]:
        workers = self.config.data.workers
        return DataLoader(
            windows,
            batch_sampler=numbers,
            collate_fn=to_tensors,  # type: ignore[arg-type]  # an item is a whole batch
            num_workers=workers,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=workers > 0,
        )
