"""Libraries that only some runs need, asked for by name before anything else is done."""

from __future__ import annotations

import importlib

from roboflamingo.training.config import TrainConfig
from roboflamingo.training.config_parts import ConfigError


def check_extras(config: TrainConfig) -> None:
    """Finds out at once whether the configuration needs what is not installed.

    Raises:
        ConfigError: it does. Names key and value, library and the command that installs it.
    """
    for library, (wish, extra) in config.policy.libraries.items():
        _require(library, wish, extra)
    if config.optimizer.kind == "adamw_8bit":
        _require("bitsandbytes", "optimizer.kind adamw_8bit", "adam8bit")
    if "wandb" in config.loggers:
        _require("wandb", "wandb in loggers", "wandb")


def _require(library: str, wish: str, extra: str) -> None:
    try:
        importlib.import_module(library)
    except ImportError as error:
        raise ConfigError(f"{wish} needs {library} ({error}); pip install 'roboflamingo[{extra}]'") from error
