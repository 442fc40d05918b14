"""Feeds Lightning with batches of windows from packed CALVIN data sets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from rich.console import Console
from torch.utils.data import DataLoader

from roboflamingo.data.annotations import DataError
from roboflamingo.data.frames import PackSettings
from roboflamingo.data.packing import pack
from roboflamingo.data.sampling import BatchNumbers, WindowStream, held_out_numbers
from roboflamingo.data.windows import Windows, to_tensors
from roboflamingo.training.config import TrainConfig


class WindowDataModule(LightningDataModule):
    """Packs the data sets and draws batches, an endless stream of them.

    Args:
        config: the run's.
        start_batch: batches that earlier sessions of this run have trained on.
        console: where the progress of packing goes; None for the terminal.
    """

    def __init__(self, config: TrainConfig, start_batch: int, console: Console | None = None) -> None:
        super().__init__()
        self.config, self._start_batch, self._console = config, start_batch, console
        self.validation: Windows | None = None

    def setup(self, stage: str) -> None:
        """Packs what is not packed yet; of several processes one does and the others wait.

        Raises:
            DataError: a data set is missing or broken, or there is nothing to validate on.
        """
        folders = {Path(folder): weight for folder, weight in self.config.data.folders.items()}
        training = [folder / "training" for folder in folders]
        self.training = self._windows(training, list(folders.values()))
        weights = self.training.draw_weights(balance_tasks=self.config.data.balance_tasks)
        self.stream = WindowStream(weights, self.config.seed)
        if self.config.validation_windows:
            held_out = [folder / "validation" for folder in folders if (folder / "validation").is_dir()]
            if not held_out:
                names = ", ".join(map(str, folders))
                raise DataError(f"none of {names} has a validation/ folder; set validation_windows to 0")
            self.validation = self._windows(held_out, [1.0] * len(held_out))

    def _windows(self, splits: list[Path], weights: list[float]) -> Windows:
        data, policy = self.config.data, self.config.policy
        settings = PackSettings(policy.static_size, policy.gripper_size, data.actions, data.language)
        cache = Path(data.cache or Path(next(iter(data.folders))) / "packed")
        processes, console = data.pack_processes, self._console
        packed = [pack(split, cache, settings, processes=processes, console=console) for split in splits]
        return Windows(packed, window=policy.window, chunk=policy.chunk, stride=data.stride, weights=weights)

    def train_dataloader(self) -> DataLoader[Any]:
        """The endless stream from `start_batch` on."""
        rank, processes = self._place()
        numbers = BatchNumbers(
            self.stream, self.config.batch_size, start=self._start_batch, rank=rank, processes=processes
        )
        return self._loader(self.training, numbers)

    def held_out_batches(self) -> DataLoader[Any] | list[Any]:
        """Each held-out window once; empty without validation."""
        if self.validation is None:
            return []
        rank, processes = self._place()
        count = self.config.validation_windows
        numbers = held_out_numbers(len(self.validation), count, rank=rank, processes=processes).tolist()
        size = self.config.batch_size
        return self._loader(self.validation, [numbers[i : i + size] for i in range(0, len(numbers), size)])

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
