"""Feeds Lightning with batches of windows from packed data sets."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.pytorch import LightningDataModule
from rich.console import Console
from torch.utils.data import DataLoader

from calvin_eval.specs import ActionSpec, RobotSpec
from roboflamingo.data.errors import DataError
from roboflamingo.data.lists import read_wordings, subset_of
from roboflamingo.data.places import folder_at, is_packed, pack_or_find, splits_at
from roboflamingo.data.sampling import BatchNumbers, WindowStream, held_out_numbers
from roboflamingo.data.sources import open_source
from roboflamingo.data.sources.base import SourceOptions
from roboflamingo.data.store.index import read_index, read_sealed, write_sealed
from roboflamingo.data.store.settings import PackSettings, spec_from_json
from roboflamingo.data.variety import Variety
from roboflamingo.data.windows import Windows, to_tensors
from roboflamingo.policy.actions import pose_statistics, taken_over, vector_statistics, with_action_statistics
from roboflamingo.policy.base_config import Config
from roboflamingo.training.config import TrainConfig
from roboflamingo.training.config_parts import ConfigError

DATA = "data.json"
"""Of a run: digests of the data that it began with."""


def open_windows(config: TrainConfig, console: Console | None = None) -> tuple[Windows, Windows | None]:
    """Packs what is not packed yet and opens training and held-out windows, the latter unless switched off.

    All data sets are looked through before the first is packed. Of several processes that call this at once, one packs
    and the others wait.

    Raises:
        DataError: a data set is missing or broken, or there is nothing to validate on.
    """
    data, policy = config.data, config.policy
    folders = data_folders(config)
    held_out: list[Path] = []
    if config.validation_windows:
        held_out = [folder for folder in folders if "validation" in splits_at(folder)]
        if not held_out:
            names = ", ".join(map(str, folders))
            raise DataError(f"none of {names} has a validation/ folder; set validation_windows to 0")
    settings = pack_settings(config)
    for folder in folders:
        config.policy.check_data(robot_of(folder, settings.options), str(folder))
    packed = pack_or_find(
        [(folder, "training") for folder in folders] + [(folder, "validation") for folder in held_out],
        folder_at(data.cache) if data.cache else None,
        settings,
        data.images,
        processes=data.pack_processes,
        console=console,
    )
    sizes: dict[str, Any] = {"window": policy.window, "chunk": policy.chunk, "stride": data.stride}
    sizes |= {"grows": policy.grows, "cameras": settings.cameras, "vectors": settings.vectors}
    training = Windows(packed[: len(folders)], **sizes, weights=list(data.folders.values()))
    lists = {list(data.folders).index(folder): folder_at(path) for folder, path in data.subset.items()}
    samples = training.samples.only(subset_of(training.samples, lists)) if lists else training.samples
    training.restrict(samples.share(data.fraction, config.seed))
    training.variety = variety_of(config, training.tasks)
    validation = Windows(packed[len(folders) :], **sizes) if held_out else None
    if data.only_wordings:
        for windows in (training, validation) if validation else (training,):
            windows.restrict(windows.samples.said(read_wordings(folder_at(str(data.wordings)), training.tasks)))
    return training, validation


def robot_of(folder: Path, options: SourceOptions) -> RobotSpec:
    """What the training split of a data set, packed or not, was recorded from.

    Raises:
        DataError: there is none, or it is damaged.
    """
    if is_packed(folder):
        return spec_from_json(read_index(folder / "training")["spec"])
    return open_source(folder, "training", options).spec


def variety_of(config: TrainConfig, tasks: Sequence[str]) -> Variety | None:
    """What of a training window is drawn anew each time; None for nothing.

    Raises:
        DataError: the file of sentences is missing or damaged.
    """
    data = config.data
    if data.wordings is None and data.shortest_window is None:
        return None
    wordings = {} if data.wordings is None else read_wordings(folder_at(data.wordings), tasks)
    if data.only_wordings:  # of which every sample says the first by itself
        wordings = {task: sentences[1:] for task, sentences in wordings.items()}
    return Variety(config.seed, data.shortest_window, wordings)


def data_folders(config: TrainConfig) -> list[Path]:
    """Where the data sets lie, in order.

    Raises:
        DataError: one is named twice.
    """
    folders = [folder_at(folder) for folder in config.data.folders]
    for place, folder in enumerate(folders):
        if folder.resolve() in [other.resolve() for other in folders[:place]]:
            raise DataError(f"data.folders names {folder} twice; give it one weight")
    return folders


def pack_settings(config: TrainConfig) -> PackSettings:
    """What the policy reads of a frame, and no more."""
    data, policy = config.data, config.policy
    return PackSettings(
        cameras={name: policy.cameras[name].size for name in policy.seen},
        vectors=policy.trains_on,
        damaged=data.damaged,
        options=SourceOptions(
            language=data.language,
            actions="absolute" if policy.actions == "absolute" else "relative",
            segment_ends=data.segment_ends,
            out_of_range=data.out_of_range,
            columns=data.columns,
        ),
    )


def check_same_data(config: TrainConfig, training: Windows, held_out: Windows | None, *, write: bool) -> None:
    """Refuses to continue a run with other data than it began with, wherever that lies; notes it in `data.json`.

    Only a saved state makes a run one that is continued. A run that is older than `data.json` began with the folders
    that its `config.yaml` names.

    Args:
        config: the run's.
        training: windows of its data.
        held_out: those to validate on, or None.
        write: whether this process writes the note.

    Raises:
        ConfigError: the data have changed. Names the folder.
    """
    run = Path(config.run)
    folders = data_folders(config)
    now = {"training": dict(zip(map(str, folders), training.contents, strict=True))}
    if held_out is not None:
        validated = [folder for folder in folders if "validation" in splits_at(folder)]
        now["validation"] = dict(zip(map(str, validated), held_out.contents, strict=True))
    lists = [*config.data.subset.values(), *([config.data.wordings] if config.data.wordings else [])]
    if lists:
        now["lists"] = {name: hashlib.sha256(folder_at(name).read_bytes()).hexdigest() for name in lists}
    before: dict[str, dict[str, str]] = {}
    if (run / "last.ckpt").exists():
        before = read_sealed(run / DATA) or {}
        if not before:
            _check_same_folders(run, folders)
        for split, contents in now.items():
            _check_same_contents(run, split, before.get(split, contents), contents)
    if write and before | now != before:
        write_sealed(run / DATA, before | now)


def _check_same_contents(run: Path, split: str, before: dict[str, str], now: dict[str, str]) -> None:
    """Compares in order: weights belong to places, not to paths."""
    if len(before) != len(now):
        raise ConfigError(f"{run} began with {len(before)} data.folders for {split}, now there are {len(now)}")
    for (old, content), (new, found) in zip(before.items(), now.items(), strict=True):
        if content != found:
            raise ConfigError(
                f"{run} began with other data: {split}/ of {new} is not what {old} held then (frames or annotations "
                "differ); continue with the old data, choose another run folder, or delete this one"
            )


def _check_same_folders(run: Path, folders: list[Path]) -> None:
    began = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))["data"]["folders"]
    if [folder_at(folder).resolve() for folder in began] != [folder.resolve() for folder in folders]:
        raise ConfigError(
            f"{run} began with data.folders {', '.join(began)}, now they are {', '.join(map(str, folders))}; continue "
            "with the old ones, choose another run folder, or delete this one"
        )


def with_statistics(policy: Config, training: Windows) -> Config:
    """The same policy with what it needs to know of the training data: words, stride, what its vectors are like."""
    policy = replace(policy.with_words(training.wordings), stride=training.stride)
    missing = [name for name in policy.vectors if name not in policy.statistics]
    statistics = {name: vector_statistics(torch.from_numpy(training.column(name))) for name in missing}
    if policy.actions == "absolute" and "actions" not in policy.statistics:
        statistics["actions"] = pose_statistics(torch.from_numpy(training.column("actions")))
    if policy.actions == "recorded":
        parts = policy.action_parts or taken_over(training.folders[0].spec.actions).parts
        recorded = with_action_statistics(ActionSpec(parts), torch.from_numpy(training.column("actions")))
        policy = replace(policy, action_parts=recorded.parts)
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
            self.stream,
            self.config.batch_size,
            start=self._start_batch,
            rank=rank,
            processes=processes,
            places=self.training.variety is not None,
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
