"""Pre-trains a vision-language model: `pretrain(config)` is what the command line calls."""

from __future__ import annotations

import json
import math
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import yaml
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import nn
from torch.optim import AdamW, Optimizer

from calvin_eval.system.errors import UserError
from calvin_eval.system.files import append_line, read_lines, write_json, write_text
from calvin_eval.system.locks import folder_lock
from calvin_eval.system.machine import matmul_gflops
from calvin_eval.system.provenance import provenance
from roboflamingo.backbone.language import words_of
from roboflamingo.pretraining.accuracy import accuracy
from roboflamingo.pretraining.batches import Batches
from roboflamingo.pretraining.card import card
from roboflamingo.pretraining.config import PretrainConfig
from roboflamingo.pretraining.model import Pretraining
from roboflamingo.pretraining.pictures import Joined, Pictures, order
from roboflamingo.training.checkpoint import load_state, save_state
from roboflamingo.training.optimizer import weight_decay_groups
from roboflamingo.training.precision import computes_in_bf16, device_for
from roboflamingo.weights.vlm import save_vlm

STATE, VLM, CONFIG, METRICS, RESULTS = "last.ckpt", "vlm", "config.yaml", "metrics.jsonl", "results.json"
FREE_TO_CHANGE = {"run", "data", "held_out", "log_every_steps", "validate_every_steps", "held_out_pictures"}
FREE_TO_CHANGE |= {"save_every_minutes", "max_steps", "precision", "accelerator"}
"""Keys that may differ when a run is continued; data are known by their content."""


def pretrain(config: PretrainConfig, words: tuple[str, ...] = (), console: Console | None = None) -> Path:
    """Pre-trains, or continues to, or returns at once where the run is complete.

    The run's folder gets `config.yaml`, `last.ckpt`, `metrics.jsonl` and, at the end, `results.json` and `vlm/`, the
    model with its card, which a policy's `backbone.checkpoint` may name.

    Args:
        config: see `PretrainConfig`.
        words: that the model knows besides those of the texts: instructions that it will be given one day.
        console: for progress; None for the terminal.

    Returns:
        The folder of the model.

    Raises:
        UserError: a folder of pictures is missing or damaged, the run holds another one, or another process is in it.
    """
    if not config.data:
        raise UserError("data is empty; name at least one folder of pictures with texts")
    console = console or Console(stderr=True)
    with folder_lock(Path(config.run), "roboflamingo pretrain"):
        return _Run(config, words, console).go()


class _Run:
    """One session of a run."""

    def __init__(self, config: PretrainConfig, words: tuple[str, ...], console: Console) -> None:
        self.folder, self.console = Path(config.run), console
        training = [Pictures(Path(each)) for each in config.data]
        self.pictures = Joined(training)
        self.held_out = [Pictures(Path(each)) for each in config.held_out]
        Joined([training[0], *self.held_out])  # or says what differs
        self._check_apart(training)
        self.device = torch.device(device_for(config.accelerator))
        backbone = config.backbone
        if not backbone.language.words:
            known = {*words, *(word for each in training for word in words_of(each.sentences()))}
            backbone = replace(backbone, language=replace(backbone.language, words=tuple(sorted(known))))
        self.config = replace(config, backbone=backbone)
        self.digests = {"data": [each.digest for each in training], "held_out": [e.digest for e in self.held_out]}
        torch.manual_seed(config.seed)
        cameras = training[0].cameras
        sizes = (len(cameras), len(training[0].states), config.question_weight, config.state_weight)
        self.model = Pretraining(backbone, *sizes).to(self.device)
        self.batches = Batches(self.model.backbone.instructions.tokenizer, cameras, backbone.language.max_tokens)
        groups = weight_decay_groups(self.model, config.weight_decay)
        self.optimizer: Optimizer = AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.98), fused=True)
        bf16 = config.precision == "bf16" or (config.precision == "auto" and computes_in_bf16(self.device.type))
        self.precision = "bf16" if bf16 else "fp32"
        self.step, self.elapsed = 0, 0.0

    def _check_apart(self, training: list[Pictures]) -> None:
        """Held-out pictures are not learned from."""
        learned = {each.digest: each.folder for each in training}
        for each in self.held_out:
            if each.digest in learned:
                raise UserError(f"held_out {each.folder} holds what data has in {learned[each.digest]}; record another")

    def arithmetic(self) -> AbstractContextManager[Any]:
        """In which the model computes."""
        return torch.autocast(self.device.type, torch.bfloat16) if self.precision == "bf16" else nullcontext()

    def go(self) -> Path:
        """The rest of the run."""
        saved = load_state(self.folder / STATE)
        self._check_same(saved)
        if saved is not None:
            self.model.load_state_dict(saved["model"])
            self.optimizer.load_state_dict(saved["optimizer"])
            self.step, self.elapsed = saved["step"], saved["elapsed_s"]
            lines = [line for line in read_lines(self.folder / METRICS, mend=True) if line["step"] <= self.step]
            write_text(self.folder / METRICS, "".join(f"{json.dumps(line)}\n" for line in lines))
        if self.step >= self.config.max_steps and (self.folder / VLM).is_dir():
            self.console.print(f"{self.folder / VLM} is complete at step {self.step}", soft_wrap=True)
            return self.folder / VLM
        self._learn()
        return self._finish()

    def _check_same(self, saved: dict[str, Any] | None) -> None:
        """Refuses to continue another run."""
        now = asdict(self.config) | {"digests": self.digests}
        now["backbone"]["language"]["words"] = list(now["backbone"]["language"]["words"])
        path = self.folder / CONFIG
        if saved is None:
            write_text(path, yaml.safe_dump(now, sort_keys=False))
            return
        before = yaml.safe_load(path.read_text(encoding="utf-8"))
        for key, value in now.items():
            old = before.get(key, value)
            if key == "digests":
                old, value = old["data"], value["data"]
            if key not in FREE_TO_CHANGE and old != value:
                raise UserError(
                    f"{self.folder} began with {key} {str(old)[:200]}, and now it is {str(value)[:200]}; set it back, "
                    "or begin another run"
                )

    def _learn(self) -> None:
        """The optimizer steps that are left."""
        config, started = self.config, time.monotonic() - self.elapsed
        numbers = islice(order(len(self.pictures), config.seed), self.step * config.batch_size, None)
        means, saved_at, counted = _Means(), self.elapsed, self.elapsed
        columns = (BarColumn(), TextColumn("{task.description}"), TimeRemainingColumn())
        with Progress(*columns, console=self.console, disable=not self.console.is_terminal) as bar:
            task = bar.add_task("pre-training", total=config.max_steps, completed=self.step)
            while self.step < config.max_steps:
                means.add(self._step([self.pictures[n] for n in islice(numbers, config.batch_size)]))
                self.step, self.elapsed = self.step + 1, time.monotonic() - started
                if self.step % config.log_every_steps == 0:
                    seconds, counted = self.elapsed - counted, self.elapsed
                    speed = means.count * config.batch_size / seconds
                    line = means.take() | {"pictures_per_s": round(speed, 1)}
                    self._log(line)
                    text = f"pre-training  step {self.step}  loss {line['loss']:.4f}  {speed:.0f} pictures/s"
                    bar.update(task, completed=self.step, description=text)
                if self.elapsed - saved_at > 60 * config.save_every_minutes:
                    self._save()
                    saved_at = self.elapsed
                if self.step % config.validate_every_steps == 0 and self.step < config.max_steps:
                    self._validate(config.held_out_pictures)
        self._save()

    def _step(self, pictures: list[Any]) -> dict[str, float]:
        """One optimizer step."""
        config = self.config
        for group in self.optimizer.param_groups:
            group["lr"] = config.learning_rate * _schedule(self.step, config.warmup_steps, config.max_steps)
        batch = self.batches.training(pictures, config.texts, config.shift, (config.seed, self.step))
        batch["images"] = [each.to(self.device) for each in batch["images"]]
        batch["state"] = batch["state"].to(self.device)
        with self.arithmetic():
            losses = self.model.loss(batch)
        losses["loss"].backward()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), config.clip)
        if not bool(norm.isfinite()):
            raise UserError(
                f"the gradient of step {self.step + 1} is not finite; {self.folder} stays as it was saved: begin "
                f"another run with a lower learning_rate than {config.learning_rate}"
            )
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return {name: float(value.detach()) for name, value in losses.items()} | {"grad_norm": float(norm)}

    def _validate(self, most: int | None) -> dict[str, dict[str, float]]:
        """Accuracy on each held-out folder, by its name."""
        self.model.eval()
        found: dict[str, dict[str, float]] = {}
        for each in self.held_out:
            found[each.folder.name] = accuracy(self.model, each, self.batches, self.arithmetic, most)
            said = {name: found[each.folder.name].get(name, math.nan) for name in ("answers", "state")}
            self.console.print(
                f"step {self.step}  {each.folder.name}: {said['answers']:.1%} of answers right, "
                f"states off by {said['state']:.3f}",
                highlight=False,
                soft_wrap=True,
            )
        self.model.train()
        if found:
            self._log({f"{name}.{kind}": value for name, kinds in found.items() for kind, value in kinds.items()})
        return found

    def _log(self, values: dict[str, float]) -> None:
        line = {"step": self.step, "elapsed_s": round(self.elapsed, 1)} | values
        append_line(self.folder / METRICS, line)

    def _save(self) -> None:
        state = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
        save_state(state | {"step": self.step, "elapsed_s": self.elapsed}, self.folder / STATE)

    def _finish(self) -> Path:
        """The last accuracy, over all held-out pictures, and the model's folder."""
        results = {
            "accuracy": self._validate(None),
            "held_out": {each.folder.name: each.described for each in self.held_out},
            "data": [each.described for each in self.pictures.folders],
            "pictures": len(self.pictures),
            "steps": self.step,
            "hours": self.elapsed / 3600,
            "precision": self.precision,
            "gflops": matmul_gflops(),
            "seed": self.config.seed,
            "parameters": sum(p.numel() for p in self.model.backbone.parameters()),
            **provenance(),
        }
        save_vlm(self.model.backbone, self.folder / VLM, card(results, self.config))
        write_json(self.folder / RESULTS, results)
        self.console.print(f"pre-trained {self.folder / VLM}", soft_wrap=True)
        return self.folder / VLM


class _Means:
    """Means of the losses since they were last taken."""

    def __init__(self) -> None:
        self._lines: list[dict[str, float]] = []

    def add(self, values: dict[str, float]) -> None:
        """Of a step."""
        self._lines.append(values)

    @property
    def count(self) -> int:
        """Steps since then."""
        return len(self._lines)

    def take(self) -> dict[str, float]:
        """The means, to begin again."""
        lines, self._lines = self._lines, []
        return {name: sum(line[name] for line in lines) / len(lines) for name in lines[0]}


def _schedule(step: int, warmup: int, end: int) -> float:
    """The learning rate's factor: rises, then falls to zero as a cosine."""
    return min(1.0, (step + 1) / max(1, warmup)) * 0.5 * (1 + math.cos(math.pi * min(1.0, step / end)))
