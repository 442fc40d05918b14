"""Which device and which precision a run computes with: settled, or refused, before anything else is done."""

from __future__ import annotations

import os
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Literal

import torch
import yaml
from rich.console import Console
from torch import nn

from roboflamingo.heads.base import HeadConfig
from roboflamingo.heads.lstm import window_lstm
from roboflamingo.training.config import TrainConfig
from roboflamingo.training.config_parts import ConfigError

Device = Literal["cpu", "cuda"]

BF16_LIMITS = ("BF16", "FP16", "AMX", "AVX10", "VNNI_2", "ALL", "DEFAULT")
"""Parts of the values of ONEDNN_MAX_CPU_ISA that leave oneDNN its bf16 instructions."""


def settle(config: TrainConfig, console: Console) -> TrainConfig:
    """The configuration with a precision in place of `auto`, once device and precision are known to work.

    A run that is continued keeps the precision that `auto` came to when it began, on whatever machine it goes on.

    Args:
        config: see `TrainConfig`.
        console: for a note where a Mac's GPU is left alone.

    Raises:
        ConfigError: there is no such device, there are not so many, or it cannot compute in bf16.
    """
    device = device_for(config.accelerator)
    if device == "cuda" and config.devices > torch.cuda.device_count():
        raise ConfigError(
            f"devices is {config.devices}, but torch sees {torch.cuda.device_count()} GPU(s) on this machine; "
            f"set devices: {torch.cuda.device_count()}, or nodes for further machines"
        )
    if device == "cpu" and config.accelerator == "auto" and torch.backends.mps.is_available():
        console.print("accelerator auto: computing on the CPU, as a Mac's GPU has no float64", soft_wrap=True)
    precision = config.precision
    if precision == "auto":
        precision = _began_with(Path(config.run)) or ("bf16" if computes_in_bf16(device) else "fp32")
    if precision == "bf16" and not runs_in_bf16(device):
        raise ConfigError(f"precision is bf16, in which torch cannot train on this {device}; set precision: fp32")
    if precision == "fp32" and config.frozen_precision == "bf16":
        raise ConfigError(
            "precision auto is fp32 on this machine, and frozen_precision bf16 needs bf16; set frozen_precision: fp32, "
            "or precision: bf16, which is slower here"
        )
    return replace(config, precision=precision)


def device_for(accelerator: str, key: str = "accelerator") -> Device:
    """What `auto`, `cpu` or `cuda` is on this machine; `auto` is never a Mac's GPU.

    Args:
        accelerator: what was asked for.
        key: where, for the message.

    Raises:
        ConfigError: cuda is asked for where there is no GPU.
    """
    if accelerator == "cpu":
        return "cpu"
    if torch.cuda.is_available():
        return "cuda"
    if accelerator == "cuda":
        built = f"is built for CUDA {torch.version.cuda}" if torch.version.cuda else "is built without CUDA"
        raise ConfigError(
            f"{key} is cuda, but torch {torch.__version__}, which {built}, finds no GPU here; set {key}: cpu"
        )
    return "cpu"


def computes_in_bf16(accelerator: str) -> bool:
    """Whether bf16 has arithmetic of its own here, and training runs in it; emulated, it would be slower than fp32."""
    device = device_for(accelerator)
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False) and runs_in_bf16(device)
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA", "DEFAULT").upper()
    if not any(part in limit for part in BF16_LIMITS):
        return False
    capabilities = [getattr(torch.cpu, f"_is_{name}_supported", None) for name in ("avx512_bf16", "amx_tile")]
    return any(supported() for supported in capabilities if supported is not None) and runs_in_bf16(device)


@lru_cache
def runs_in_bf16(device: Device) -> bool:
    """Whether linear layers and a head's LSTM can be trained in bf16 at all: small ones are tried."""
    with torch.random.fork_rng(devices=[]), torch.inference_mode(False), torch.enable_grad():
        layers = (nn.Linear(8, 8).to(device), window_lstm(HeadConfig(hidden=8), 8).to(device))
        try:
            with torch.autocast(device, torch.bfloat16):
                out = layers[1](layers[0](torch.zeros(1, 2, 8, device=device)))[0]
            out.float().sum().backward()
        except RuntimeError:  # how torch says that it has no such kernel
            return False
    return True


def _began_with(run: Path) -> Literal["fp32", "bf16"] | None:
    """The precision of a run that is to be continued, None for a new one."""
    if not (run / "last.ckpt").is_file() or not (run / "config.yaml").is_file():
        return None
    return yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))["precision"]
