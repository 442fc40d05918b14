"""The resolved configuration of a run, on disk, and what of it may change when the run is continued."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from calvin_eval.system.files import write_text
from roboflamingo.policy.base_config import BasePolicyConfig
from roboflamingo.training.config import TrainConfig
from roboflamingo.training.config_parts import ConfigError, DataConfig

FREE_TO_CHANGE = frozenset(
    {
        "run",
        "max_steps",
        "max_epochs",
        "max_minutes",
        "data.cache",
        "data.token_gb",
        "data.workers",
        "data.pack_processes",
        "policy.acting.execute",
        "policy.acting.leash",
        "checkpoint_activations",
        "compile",
        "strategy",
        "loggers",
        "wandb.project",
        "wandb.mode",
        "log_every_steps",
        "validate_every_steps",
        "validate_every_minutes",
        "validation_windows",
        "patience",
        "min_delta",
        "save_every_steps",
        "save_every_minutes",
        "snapshot_every_epochs",
    }
)
"""Keys that may differ when a run is continued; any other would make it neither the old run nor a new one."""


def write_config(config: TrainConfig, path: Path) -> None:
    """Writes the resolved configuration, which `--config` reads back."""
    write_text(path, yaml.safe_dump(plain(config), sort_keys=False))


def check_same_config(config: TrainConfig, path: Path) -> None:
    """Refuses to continue a run with another configuration than it began with.

    A key that the file lacks is younger than the run; its default says what was done before it existed. Of
    `data.folders` the weights are compared, in order: which data they are of, `check_same_data` tells by content.

    Raises:
        ConfigError: a key of `config` differs from the file at `path`, or the file is missing or damaged. Names key,
            values and file.
    """
    old = _flat(_read(path))
    new = _flat(plain(config))
    default = TrainConfig(run="", data=DataConfig(folders={"": 1.0}), policy=type(config.policy)(), max_steps=1)
    before = _flat(plain(default)) | old
    before["policy.stride"] = old.get("policy.stride", before["data.stride"])  # training fills it in
    for key in sorted((old.keys() | new.keys()) - FREE_TO_CHANGE):
        if before.get(key) != new.get(key):
            raise ConfigError(
                f"{path} began with {key} = {before.get(key)}, now it is {new.get(key)}; "
                "continue with the old value, choose another run folder, or delete this one"
            )


def unused_keys(given: BasePolicyConfig, started: BasePolicyConfig) -> list[str]:
    """Keys of a policy that were set, as "policy.window = 4", and that another policy's values stand in for."""
    default, mine, theirs = (_flat(_plain(asdict(policy)), "policy.") for policy in (type(given)(), given, started))
    filled = (
        "policy.statistics.",
        "policy.backbone.language.words",
        "policy.stride",
        "policy.action_parts",
        "policy.acting.leash",
    )  # by training
    return [
        f"{key} = {value} ({theirs.get(key)} there)"
        for key, value in mine.items()
        if value not in (default.get(key), theirs.get(key)) and not key.startswith(filled)
    ]


def _read(path: Path) -> dict[str, Any]:
    advice = "restore it, choose another run folder, or delete this one"
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path} is missing, so that nobody knows how the run there began; {advice}") from None
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} is damaged: {error}; {advice}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path} is no configuration of a run; {advice}")
    return values


def plain(config: TrainConfig) -> dict[str, Any]:
    """The configuration as dicts, lists and values that YAML knows."""
    return _plain(asdict(config))


def _plain(value: Any) -> Any:
    """The same with what YAML knows: tuples as lists, paths as strings."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Leaves by dotted key."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if f"{prefix}{key}" in ("data.folders", "data.subset") and isinstance(value, dict):
            value = list(value.values())
        elif f"{prefix}{key}" == "policy.cameras" and isinstance(value, dict):
            flat["policy.cameras"] = list(value)  # their order matters
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
