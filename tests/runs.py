"""Small training runs and how to read what they leave, for the tests of training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from roboflamingo.backbone.config import BackboneConfig, CrossAttentionConfig, ResamplerConfig
from roboflamingo.backbone.encoders import VisionConfig
from roboflamingo.backbone.language import LanguageConfig
from roboflamingo.heads import HeadConfig
from roboflamingo.policy.config import PolicyConfig, calvin_cameras
from roboflamingo.training.config import TrainConfig
from roboflamingo.training.config_parts import DataConfig, OptimizerConfig


def tiny_policy(**changed: Any) -> PolicyConfig:
    """A policy that is whole and as small as can be."""
    backbone = BackboneConfig(
        vision=VisionConfig(image_size=16, patch_size=8, width=16, heads=2),
        language=LanguageConfig(width=16, layers=1, heads=2),
        resampler=ResamplerConfig(latents=2, heads=2, head_width=8),
        cross_attention=CrossAttentionConfig(heads=2, head_width=8),
    )
    settings: dict[str, Any] = {
        "backbone": backbone,
        "head": HeadConfig(hidden=16, layers=2, dropout=0.1),
        "window": 2,
        "chunk": 3,
        "cameras": calvin_cameras(24, 16),
    }
    return PolicyConfig(**(settings | changed))


def deterministic_policy() -> PolicyConfig:
    """Without randomness and with one frame and one action, so that every batch has equally many targets."""
    return tiny_policy(window=1, chunk=1, head=HeadConfig(hidden=16), cameras=calvin_cameras(24, 16, 0, 0))


def tiny_run(run: Path, dataset: Path, **changed: Any) -> TrainConfig:
    """A run of a few steps on synthetic data."""
    settings: dict[str, Any] = {
        "policy": tiny_policy(),
        "optimizer": OptimizerConfig(warmup_steps=3, learning_rate=2e-3),
        "max_steps": 6,
        "batch_size": 4,
        "log_every_steps": 1,
        "accelerator": "cpu",  # equal to the last bit, wherever the tests run
    }
    data = DataConfig(folders={str(dataset): 1.0}, pack_processes=1)
    return TrainConfig(run=str(run), data=data, **(settings | changed))


def write_yaml(config: TrainConfig, path: Path) -> Path:
    """The run as a file for `--config`."""
    from dataclasses import asdict

    path.write_text(yaml.safe_dump(asdict(config), sort_keys=False))
    return path


def metrics(run: Path) -> list[dict[str, float]]:
    """The lines of the log."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def losses(run: Path) -> list[float]:
    """The training loss, line by line."""
    return [line["loss"] for line in metrics(run) if "loss" in line]


def without_clocks(lines: list[dict[str, float]]) -> list[dict[str, float]]:
    """The lines without what depends on the machine's speed."""
    clocks = ("elapsed_s", "frames_per_s")
    return [{key: value for key, value in line.items() if key not in clocks} for line in lines]
