"""What a grid comes to: trainings, each once, and the evaluations of what they make.

A training is known by all that it is told (`digest`), wherever it lies, so grids share what they have in common:

    OUT/data/DIGEST/         demonstrations
    OUT/policies/DIGEST/     train/, a run of `roboflamingo train`; chains_DIGEST/, evaluations of its policy
    OUT/NAME/                what an ablation comes to: results.json, table.md, plot.png
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from calvin_eval.demonstrations.collect import CollectSettings
from calvin_eval.system.errors import UserError
from roboflamingo.cli.ablations.grid import Grid, Member
from roboflamingo.cli.ablations.reading import flat
from roboflamingo.cli.arguments import read_given
from roboflamingo.cli.collect import CollectConfig
from roboflamingo.cli.evaluate import EvaluateConfig
from roboflamingo.cli.fields import keys_of
from roboflamingo.cli.kinds import of_kind
from roboflamingo.cli.yaml_files import as_yaml
from roboflamingo.policy.control import check_execution
from roboflamingo.training.config import TrainConfig
from roboflamingo.training.config_parts import DataConfig
from roboflamingo.training.resolved import plain

COLLECTED = "collected"
"""Stands for the folder of the demonstrations that are collected, which is part of no training's identity."""
OF_NO_EFFECT = (
    *("run", "data.cache", "data.workers", "data.pack_processes", "data.token_gb", "loggers"),
    *("log_every_steps", "save_every_steps", "save_every_minutes"),
)
"""Keys of a training that change nothing of its policy."""
OWN = {"train": ("run",), "evaluate": ("policy", "out", "workers", "fresh"), "collect": ("out", "check", "policy")}
"""Keys that only the ablation itself gives."""


@dataclass(frozen=True)
class Unit:
    """A training and the evaluations of its policy.

    Attributes:
        members: names of those that it is for.
        folder: of it.
        config: of the training.
        evaluations: by the names of members.
    """

    members: tuple[str, ...]
    folder: Path
    config: TrainConfig
    evaluations: Mapping[str, EvaluateConfig]


@dataclass(frozen=True)
class Plan:
    """All that is to be done for a grid.

    Attributes:
        grid: which one.
        folder: for what it comes to.
        collect: demonstrations to collect, and below which folder; None where a data set is given.
        units: in the order in which members name them.
    """

    grid: Grid
    folder: Path
    collect: tuple[CollectSettings, Path] | None
    units: tuple[Unit, ...]

    @property
    def data(self) -> Path:
        """The data set that is collected."""
        assert self.collect is not None
        return self.collect[1] / self.collect[0].name

    def unit_of(self, member: str) -> Unit:
        """The training of a member."""
        return next(unit for unit in self.units if member in unit.members)


def make_plan(grid: Grid, out: Path) -> Plan:
    """Everything that a grid asks for, checked before anything runs.

    Args:
        grid: which one.
        out: folder of all ablations.

    Raises:
        UserError: a key is unknown, a value out of range, or values contradict. Names file and member.
    """
    settings = None if grid.data else _collect_settings(grid)
    collected = None if settings is None else out / "data" / digest(asdict(settings))
    about = {"data": grid.data} if settings is None else {"collect": asdict(settings)}
    trainings: dict[str, TrainConfig] = {}
    evaluations: dict[str, dict[str, EvaluateConfig]] = {}
    for member in grid.members:
        try:
            config = _training(grid, member)
            key = digest({**about, "train": _identity(config)})
            folder = out / "policies" / key
            evaluation = _evaluation(grid, member, folder)
            check_execution(config.policy, evaluation.execute or 1, evaluation.ensemble)
        except UserError as error:
            raise UserError(f"{grid.path}, member {member.name}: {error}") from None
        if collected is not None and settings is not None:
            folders = {str(collected / settings.name): 1.0}
            config = replace(config, data=replace(config.data, folders=folders))
        trainings[key] = replace(config, run=str(folder / "train"))
        evaluations.setdefault(key, {})[member.name] = evaluation
    units = [
        Unit(tuple(evaluations[key]), out / "policies" / key, config, evaluations[key])
        for key, config in trainings.items()
    ]
    collect = None if settings is None or collected is None else (settings, collected)
    return Plan(grid, out / (grid.name + "_smoke" * grid.smoke), collect, tuple(units))


def digest(value: Any) -> str:
    """The same for equal JSON values, and hardly ever for others."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=list).encode()).hexdigest()[:12]


def _identity(config: TrainConfig) -> dict[str, Any]:
    """All that a training's policy depends on; a key with its default says nothing, so that new ones change nothing."""
    data = DataConfig(folders={"": 1.0})
    default = dict(flat(plain(TrainConfig(run="", data=data, policy=type(config.policy)(), max_steps=1))))
    always = ("max_steps", "policy.kind")
    return {
        key: value
        for key, value in flat(plain(config))
        if key not in OF_NO_EFFECT and (key in always or key not in default or value != default[key])
    }


def _collect_settings(grid: Grid) -> CollectSettings:
    try:
        words = _words("collect", [grid.collect], {})
        return read_given(CollectConfig, "collect", words).config.settings
    except UserError as error:
        raise UserError(f"{grid.path}, collect: {error}") from None


def _training(grid: Grid, member: Member) -> TrainConfig:
    layers = grid.layers("train", member)
    kind = next((value for layer in reversed(layers) for key, value in flat(layer) if key == "policy.kind"), None)
    named = ["--config", str(grid.config), *([] if kind is None else [f"--policy.kind={kind}"])]
    words = _words("train", layers, keys_of(of_kind(TrainConfig, named)))
    data = as_yaml({grid.data or COLLECTED: 1.0})
    if not any(word.startswith("--data.folders=") for word in words):
        words.append(f"--data.folders={data}")
    config = read_given(TrainConfig, "train", ["--config", str(grid.config), *words, f"--run={COLLECTED}"]).config
    if config.devices * config.nodes > 1:
        raise UserError("an ablation trains each member on one device; leave devices and nodes at 1")
    return TrainConfig(**{each.name: getattr(config, each.name) for each in fields(TrainConfig)})  # which pickles


def _evaluation(grid: Grid, member: Member, folder: Path) -> EvaluateConfig:
    layers = grid.layers("evaluate", member)
    words = _words("evaluate", layers, keys_of(EvaluateConfig))
    key = digest(sorted(words))
    words += [f"--policy={folder / 'train' / 'policy'}", f"--out={folder / f'chains_{key}'}"]
    return replace(read_given(EvaluateConfig, "evaluate", words).config, fresh=True)  # of older code, say


def _words(verb: str, layers: Iterable[Mapping[str, Any]], whole: Mapping[str, Any]) -> list[str]:
    """Layers of keys as words of a command line, of which each key is there once."""
    values: dict[str, Any] = {}
    for layer in layers:
        values |= dict(flat(layer, whole))
    if own := sorted(values.keys() & set(OWN[verb])):
        raise UserError(f"{verb}.{own[0]} is up to the ablation itself; leave it out")
    return [f"--{key}={_word(value)}" for key, value in values.items()]


def _word(value: Any) -> str:
    return value if isinstance(value, str) else as_yaml(value).strip().removesuffix("\n...")
