"""Saves and reads what a killed run needs to continue, so that a kill at any moment leaves a whole file."""

from __future__ import annotations

import os
import pickle
import shutil
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

from roboflamingo.checkpoint import save_policy
from roboflamingo.policy import RoboFlamingo
from roboflamingo.training.config import ConfigError
from roboflamingo.training.sharding import whole

FORMAT = 1


def save_state(state: dict[str, Any], path: Path) -> None:
    """Writes tensors and plain values; the old file stays until the new one is complete and on the disk."""
    temporary = path.with_suffix(".tmp")
    with temporary.open("wb") as file:
        torch.save(state | {"format": FORMAT}, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def load_state(path: Path) -> dict[str, Any] | None:
    """What `save_state` wrote, or None where no run has been saved. No code in the file is run.

    Raises:
        ConfigError: the file is not a training state of this version.
    """
    if not path.is_file():
        return None
    try:
        if not zipfile.is_zipfile(path):
            raise EOFError("it is not what torch.save writes")
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError) as error:
        raise ConfigError(f"{path} is no training state: {error}; delete it to start anew") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise ConfigError(f"{path} is no training state of format {FORMAT}; delete it to start anew")
    return state


def trained_weights(module: nn.Module) -> dict[str, torch.Tensor]:
    """The module's state without frozen parameters, which every session of a run makes or reads alike."""
    frozen = {name for name, p in module.named_parameters(remove_duplicate=False) if not p.requires_grad}
    return {name: value for name, value in module.state_dict().items() if name not in frozen}


def load_trained_weights(module: nn.Module, weights: dict[str, torch.Tensor]) -> None:
    """Puts `trained_weights` back, into a module that is not sharded yet.

    Raises:
        ConfigError: they are another module's. Names a key.
    """
    differing = sorted(weights.keys() ^ trained_weights(module).keys())
    if differing:
        raise ConfigError(f"the saved run trains other weights than this one, {differing[0]} for example")
    module.load_state_dict(weights, strict=False)


def save_policy_whole(policy: RoboFlamingo, folder: Path, *, write: bool = True) -> None:
    """Saves a policy so that `folder` is at any time the old or the new one, or for an instant missing.

    Args:
        policy: whole or sharded; all processes that have a share must call this.
        folder: of the policy.
        write: False where another process writes.
    """
    weights = whole(policy.state_dict(), keep=write)
    if not write:
        return
    fresh, old = folder.with_name(f"{folder.name}.new"), folder.with_name(f"{folder.name}.old")
    for leftover in (fresh, old):
        shutil.rmtree(leftover, ignore_errors=True)
    save_policy(policy, fresh, weights)
    if folder.exists():
        os.replace(folder, old)
    os.replace(fresh, folder)
    shutil.rmtree(old, ignore_errors=True)
