"""Saves and reads what a killed run needs to continue, so that a kill at any moment leaves a whole file.

`last.ckpt` is what `torch.save` writes, followed by `TRAILER` and the SHA-256 of all that comes before it. torch does
not notice a flipped bit; the hash does, so what is read is what was written, to the last bit.
"""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import nn

from calvin_eval.system.files import naming, write_atomic
from calvin_eval.system.provenance import BLOCK
from roboflamingo.policy.base import LearnedPolicy
from roboflamingo.training.config_parts import ConfigError
from roboflamingo.training.sharding import whole
from roboflamingo.weights.checkpoint import save_policy

FORMAT = 2
TRAILER = b"roboflamingo.sha256:"
KEYS = ("weights", "optimizer", "average", "step", "elapsed_s", "means", "validated_step", "best")
"""What every training state has."""


def save_state(state: dict[str, Any], path: Path) -> None:
    """Writes tensors and plain values; the old file stays until the new one is complete and on the disk.

    Raises:
        OSError: the disk is full, or the folder cannot be written to. Names the file; the old one stays.
    """
    write_atomic(path, lambda file: _write(state | {"format": FORMAT}, file))


def load_state(path: Path) -> dict[str, Any] | None:
    """What `save_state` wrote, or None where no run has been saved. No code in the file is run.

    Raises:
        ConfigError: the file is damaged, or not a training state of this version. Says what to do.
        OSError: it cannot be read.
    """
    if not path.is_file():
        return None
    advice = (
        f"delete it to start anew, or begin another run with start_from {path.parent / 'policy_best'} "
        "where that folder is whole"
    )
    with naming(path), path.open("rb") as file:
        if not _is_whole(file):
            raise ConfigError(
                f"{path} is no training state of format {FORMAT}: it is damaged, or another version wrote it; {advice}"
            )
        file.seek(0)
        try:
            state = torch.load(file, map_location="cpu", weights_only=True)
        except (RuntimeError, pickle.UnpicklingError, EOFError) as error:
            raise ConfigError(f"{path} is no training state: {error}; {advice}") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise ConfigError(f"{path} is no training state of format {FORMAT}; {advice}")
    return state


def check_state(state: dict[str, Any]) -> None:
    """Makes sure that a training state has all that continuing needs, and no number that is none.

    Raises:
        ConfigError: it does not. Names the key.
    """
    missing = [key for key in KEYS if key not in state]
    if missing:
        raise ConfigError(f"last.ckpt lacks {missing[0]!r}; another version wrote it: delete it to start anew")
    culprit = not_finite(state)
    if culprit is not None:
        raise ConfigError(f"last.ckpt: {culprit} is not finite; delete it to start anew")


def not_finite(tree: Any, name: str = "") -> str | None:
    """The name of a floating-point tensor of a tree of dicts and lists that holds NaN or infinity, or None."""
    if isinstance(tree, torch.Tensor):
        return None if not tree.is_floating_point() or bool(tree.isfinite().all()) else name
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list | tuple) else ()
    found = (not_finite(value, f"{name}.{key}" if name else str(key)) for key, value in items)
    return next((culprit for culprit in found if culprit is not None), None)


class _Hashed:
    """A file that is being written and its hash.

    Attributes:
        digest: of what has been written.
        error: what the disk has answered: torch hides it behind an error of its own.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file, self.digest = file, hashlib.sha256()
        self.error: OSError | None = None

    def write(self, content: bytes) -> int:
        """Some bytes more."""
        try:
            written = self._file.write(content)
        except OSError as error:
            self.error = error
            raise
        self.digest.update(content)
        return written

    def flush(self) -> None:
        """Hands on what is buffered."""
        self._file.flush()


def _write(state: dict[str, Any], file: BinaryIO) -> None:
    hashed = _Hashed(file)
    try:
        torch.save(state, hashed)  # type: ignore[arg-type]  # it only writes
    except RuntimeError:
        if hashed.error is not None:
            raise hashed.error from None
        raise
    file.write(TRAILER + hashed.digest.digest())


def _is_whole(file: BinaryIO) -> bool:
    """Whether a file ends with the hash of what comes before."""
    size = file.seek(0, 2) - len(TRAILER) - hashlib.sha256().digest_size
    if size <= 0:
        return False
    digest, left = hashlib.sha256(), size
    file.seek(0)
    while left:
        block = file.read(min(BLOCK, left))
        if not block:  # somebody cuts it while we read
            return False
        digest.update(block)
        left -= len(block)
    return file.read() == TRAILER + digest.digest()


def trained_weights(module: nn.Module) -> dict[str, torch.Tensor]:
    """The module's state without frozen parameters, which every session of a run makes or reads alike."""
    frozen = {name for name, p in module.named_parameters(remove_duplicate=False) if not p.requires_grad}
    return {name: value for name, value in module.state_dict().items() if name not in frozen}


def load_trained_weights(module: nn.Module, weights: dict[str, torch.Tensor]) -> None:
    """Puts `trained_weights` back, into a module that is not sharded yet.

    Raises:
        ConfigError: they are another module's. Names a key.
    """
    wanted = trained_weights(module)
    differing = sorted(weights.keys() ^ wanted.keys())
    if differing:
        raise ConfigError(f"the saved run trains other weights than this one, {differing[0]} for example")
    for name, value in weights.items():
        is_, should = (value.dtype, tuple(value.shape)), (wanted[name].dtype, tuple(wanted[name].shape))
        if is_ != should:
            raise ConfigError(f"the saved run's {name} is {is_[0]} {is_[1]}, here it is {should[0]} {should[1]}")
    module.load_state_dict(weights, strict=False)


def save_policy_whole(policy: LearnedPolicy, folder: Path, *, write: bool = True) -> None:
    """Saves a policy so that `folder` is at any time the old or the new one, or for an instant missing.

    Args:
        policy: whole or sharded; all processes that have a share must call this.
        folder: of the policy.
        write: False where another process writes.

    Raises:
        OSError: the disk is full, or the folder cannot be written to. Names a file; the old folder stays.
    """
    weights = whole(policy.state_dict(), keep=write)
    if write:
        save_policy(policy, folder, weights)
