"""What can be found out before data are packed: libraries, weights, sizes that do not fit, disk space."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

from calvin_eval.calvin import CALVIN_ACTIONS
from calvin_eval.specs import ActionSpec
from roboflamingo.policy.actions import Statistics, with_action_statistics
from roboflamingo.policy.base import LearnedPolicy, policy_kind
from roboflamingo.policy.base_config import BasePolicyConfig
from roboflamingo.training.config import TrainConfig
from roboflamingo.training.config_parts import ConfigError
from roboflamingo.training.extras import check_extras
from roboflamingo.training.optimizer import weight_decay_groups
from roboflamingo.training.trainable import choose_trainable
from roboflamingo.training.vision_tokens import check_vision_tokens
from roboflamingo.weights.checkpoint import CONFIG, WEIGHTS

STAND_IN = Statistics((0.0,), (1.0,))
"""Of a vector whose length only the data tell."""


def check_beforehand(config: TrainConfig) -> None:
    """Makes the policy without memory for its large parts, and asks for all else that a run needs.

    Published weights that are not here yet are downloaded.

    Raises:
        ConfigError: something contradicts, or is missing. Names key and value, and what to do.
        WeightsError: published weights are missing. Says what to put where.
    """
    check_extras(config)
    policy = policy_kind(config.policy.kind).outline(_with_stand_ins(config.policy), fresh=config.start_from is None)
    for key in ("checkpoint_activations", "compile"):
        if getattr(config, key) and next(policy.large_layers(), None) is None:
            raise ConfigError(f"{key} does nothing with policy.kind {config.policy.kind}, which has no large layers")
    choose_trainable(policy, config)
    check_vision_tokens(policy, config)
    weight_decay_groups(policy, 0.0, config.optimizer.decay_only)
    _check_space(policy, config)


def check_start(folder: Path) -> None:
    """Makes sure that `start_from` is a policy's folder.

    Raises:
        FileNotFoundError: it is not.
    """
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"start_from {folder} holds no policy: {name} is missing; name a policy's folder, as RUN/policy"
            )


def _with_stand_ins(policy: BasePolicyConfig) -> BasePolicyConfig:
    """The same with words and statistics as if data had been read."""
    missing = {name: STAND_IN for name in policy.vectors if name not in policy.statistics}
    if policy.actions == "absolute" and "actions" not in policy.statistics:
        missing["actions"] = Statistics((0.0,) * 6, (1.0,) * 6)
    if policy.actions == "recorded":
        recorded = ActionSpec(policy.action_parts or CALVIN_ACTIONS.parts)
        policy = replace(policy, action_parts=with_action_statistics(recorded, None).parts)
    return replace(policy, statistics=policy.statistics | missing).with_words(["word"])


def _check_space(policy: LearnedPolicy, config: TrainConfig) -> None:
    """Compares the disk with what the run leaves: its state and policies, one of each in the making."""
    run = Path(config.run)
    need, there = space_of(policy, config), shutil.disk_usage(run).free
    names = ("last.ckpt", "policy", "policy_best")
    files = [file for name in names for file in [run / name, *(run / name).rglob("*")]]
    there += sum(file.stat().st_size for file in files if file.is_file())
    if need > there:
        raise ConfigError(
            f"{run}: the run's state and policies need about {need / 1e9:.1f} GB, and {there / 1e9:.1f} GB are free; "
            "make room, or choose a run folder on another disk"
        )


def space_of(policy: LearnedPolicy, config: TrainConfig) -> int:
    """Bytes that a run needs on the disk: `last.ckpt`, `policy`, `policy_best`, and a second copy of one of each.

    A snapshot of every epoch comes on top.

    Args:
        policy: with what trains; may be without memory.
        config: the run's.
    """
    sizes = [(p.numel(), p.requires_grad) for p in policy.parameters()]
    trained, all_numbers = sum(n for n, trains in sizes if trains), sum(n for n, _ in sizes)
    frozen_bytes = 2 if config.frozen_precision == "bf16" else 4
    optimizer_bytes = 2 if config.optimizer.kind == "adamw_8bit" else 8
    state = trained * (4 + optimizer_bytes + (0 if config.optimizer.ema is None else 4))
    whole = 4 * trained + frozen_bytes * (all_numbers - trained)
    return 2 * state + (3 if config.validation_windows else 2) * whole
