"""Nothing out of range reaches training: every number of every configuration is tried with what it cannot be."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, Literal

import pytest

from calvin_eval.demonstrations.collect import CollectSettings
from calvin_eval.demonstrations.episodes import EpisodeSettings, Noise
from calvin_eval.evaluation.chains import ChainSettings
from calvin_eval.system import ranges
from calvin_eval.system.errors import UserError
from roboflamingo.backbone.adapters import LoRAConfig
from roboflamingo.backbone.config import PRESETS, BackboneConfig, CrossAttentionConfig, ResamplerConfig
from roboflamingo.backbone.encoders import VisionConfig
from roboflamingo.backbone.language import LanguageConfig
from roboflamingo.cli.collect import CollectConfig
from roboflamingo.cli.demo_parts import DemoConfig, Round
from roboflamingo.cli.evaluate import EvaluateConfig
from roboflamingo.data.sources.columns import Columns
from roboflamingo.heads import HeadConfig
from roboflamingo.policy.actions import Statistics
from roboflamingo.policy.base_config import ActingConfig
from roboflamingo.policy.config import PolicyConfig
from roboflamingo.training.config import TrainConfig
from roboflamingo.training.config_parts import ConfigError, DataConfig, OptimizerConfig, TrainableConfig, WandbConfig
from roboflamingo.weights.presets import preset

CONFIGS: dict[str, Callable[[], Any]] = {
    "data": lambda: DataConfig({"a": 1.0}),
    "data.columns": Columns,
    "optimizer": OptimizerConfig,
    "trainable": TrainableConfig,
    "wandb": WandbConfig,
    "": lambda: TrainConfig("run", DataConfig({"a": 1.0}), max_steps=1),
    "policy": PolicyConfig,
    "policy.acting": ActingConfig,
    "policy.head": HeadConfig,
    "policy.backbone": BackboneConfig,
    "policy.backbone.vision": VisionConfig,
    "policy.backbone.language": LanguageConfig,
    "policy.backbone.resampler": ResamplerConfig,
    "policy.backbone.cross_attention": CrossAttentionConfig,
    "policy.backbone.lora": LoRAConfig,
    "policy.statistics": lambda: Statistics((0.0,), (1.0,)),
    "settings": ChainSettings,
    "settings ": CollectSettings,
    "settings.episode": EpisodeSettings,
    "settings.episode.noise": Noise,
    " ": lambda: EvaluateConfig("expert", "out"),
    "  ": CollectConfig,
    "   ": DemoConfig,
    "rounds": lambda: Round(1, 1),
}
"""A valid configuration of every class, by the key at which it stands."""

MAY_BE_ZERO = {
    "data.workers", "optimizer.learning_rate", "optimizer.warmup_steps", "optimizer.weight_decay", "optimizer.beta1",
    "optimizer.beta2", "trainable.cross_attention", "seed", "validation_windows", "min_delta", "policy.word_dropout",
    "policy.auxiliary_weight", "policy.head.dropout",
    "policy.head.continuous_beta", "policy.head.discrete_weight", "policy.backbone.adapter_width",
    "policy.backbone.vision.layers", "policy.backbone.cross_attention.gate", "policy.backbone.lora.language",
    "policy.backbone.lora.vision", "policy.backbone.lora.dropout", "policy.statistics.centre", "settings.videos",
    "settings.seed", "settings.leash", "settings.failure_videos",
    "settings.episode.noise.white", "settings.episode.noise.burst_rate",
    "settings.episode.noise.flip_rate", "ensemble", "videos",
}  # fmt: skip
MAY_BE_NEGATIVE = {"policy.backbone.cross_attention.gate", "policy.statistics.centre"}


def leaves() -> Iterator[Any]:
    """(key, configuration, field) of every number."""
    for where, make in CONFIGS.items():
        config = make()
        for name in ranges._numbers(type(config)):
            key = f"{where.strip()}.{name}".strip(".")
            yield pytest.param(key, config, name, id=f"{type(config).__name__}.{name}")


def changed(config: Any, name: str, number: float) -> Any:
    """The configuration with another number where one, or some, stood."""
    before = getattr(config, name)
    if isinstance(before, dict):
        return replace(config, **{name: {"a": number}})
    several = isinstance(before, tuple | list)
    return replace(config, **{name: type(before)([number] * max(1, len(before))) if several else number})


@pytest.mark.parametrize(("key", "config", "name"), leaves())
def test_no_number_is_out_of_range(key: str, config: Any, name: str) -> None:
    impossible: list[float] = [math.nan, math.inf, -math.inf]
    if key not in MAY_BE_NEGATIVE:
        impossible.append(-1)
    if key not in MAY_BE_ZERO:
        impossible.append(0)
    for number in impossible:
        with pytest.raises(UserError) as error:
            changed(config, name, number)
        assert key in str(error.value) and str(number) in str(error.value)


@pytest.mark.parametrize("key", sorted(MAY_BE_ZERO))
def test_zero_is_allowed_where_it_means_something(key: str) -> None:
    tried = 0
    for parameter in leaves():
        if parameter.values[0] == key:
            changed(parameter.values[1], parameter.values[2], 0)
            tried += 1
    assert tried


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: OptimizerConfig(ema=1.5), "optimizer.ema is 1.5; it must be above 0 and below 1"),
        (lambda: OptimizerConfig(ema=1.0), "optimizer.ema is 1.0"),
        (lambda: OptimizerConfig(beta2=1.0), "optimizer.beta2 is 1.0; it must be at least 0 and below 1"),
        (lambda: DataConfig({"a": 1.0, "b": 0.0}), "data.folders of b is 0.0; it must be above 0"),
        (lambda: DataConfig({}), "data.folders is empty"),
        (lambda: DataConfig({"a": 1.0}, fraction=1.5), "data.fraction is 1.5; it must be above 0 and at most 1"),
        (lambda: PolicyConfig(window=1.5), "policy.window is 1.5; it must be a whole number, at least 1"),  # type: ignore[arg-type]
        (lambda: PolicyConfig(window=True, chunk=2), "policy.window is True"),
        (lambda: PolicyConfig(pooling="median"), "policy.pooling is 'median'; it must be one of max, mean, attention"),  # type: ignore[arg-type]
        (lambda: OptimizerConfig(kind="sgd"), "optimizer.kind is 'sgd'; it must be one of adamw, adamw_8bit"),  # type: ignore[arg-type]
        (lambda: LanguageConfig(max_tokens=2), "policy.backbone.language.max_tokens is 2"),
        (lambda: ChainSettings(chains=1001), "settings.chains is 1001; it must be a whole number, at least 1 and"),
        (lambda: ChainSettings(chains=3, videos=4), "settings.videos is 4, but there are only 3 chains"),
        (lambda: CollectSettings(scenes=""), "settings.scenes is ''"),
        (lambda: CollectSettings(scenes="ABA"), "settings.scenes is 'ABA'; scenes are A, B, C, D, several as in ABC"),
        (lambda: CollectSettings(validation_scene="AB"), "settings.validation_scene is 'AB'"),
        (lambda: CollectSettings(scenes="ABC", episodes=2), "too few for the 3 scenes ABC"),
        (lambda: Noise(burst_steps=(8, 3)), "burst_steps is (8, 3)"),
        (lambda: Noise(white=()), "noise.white is empty"),
        (lambda: EvaluateConfig("p", "o", execute=4, ensemble=0.1), "ensemble needs execute=1, not 4"),
        (lambda: EvaluateConfig("p", "o", renderer="none", settings=ChainSettings(videos=1)), "nothing to film"),
        (lambda: DemoConfig(execute=[4, 9]), "execute is 9; it must be a whole number, at least 1 and at most 8"),
        (lambda: TrainConfig("r", DataConfig({"a": 1.0}), max_steps=1, loggers=["csv"]), "loggers is 'csv'"),  # type: ignore[list-item]
    ],
)  # fmt: skip
def test_values_are_refused_with_key_value_and_range(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        make()
    assert message in str(error.value)


def test_values_of_a_training_are_config_errors() -> None:
    with pytest.raises(ConfigError):
        OptimizerConfig(clip=0.0)


def test_a_number_without_a_range_is_a_fault_of_the_class() -> None:
    with pytest.raises(TypeError, match="Careless: either no range or no such number: size"):
        Careless()


@dataclass
class Careless:
    size: int = 3
    kind: Literal["a", "b"] = "a"

    def __post_init__(self) -> None:
        ranges.check_ranges(self)


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_means_the_same_in_python_or_is_refused(name: str) -> None:
    assert preset(name).backbone.preset == name
    if name != "scratch":
        with pytest.raises(UserError, match=rf"presets\.preset\('{name}'\)"):
            BackboneConfig(preset=name)
        with pytest.raises(UserError, match=rf"presets\.preset\('{name}'\)"):
            BackboneConfig(preset=name, vision=VisionConfig(width=64))


def test_an_unknown_preset_is_refused_in_python() -> None:
    with pytest.raises(
        UserError, match="preset 'mpt-9b' does not exist; choose one of scratch, tiny, smollm2-135m, mpt-1b"
    ):
        BackboneConfig(preset="mpt-9b")


def test_a_policy_that_would_not_see_is_refused() -> None:
    two = LanguageConfig(layers=2)
    BackboneConfig(language=two, cross_attention=CrossAttentionConfig(every=2))
    with pytest.raises(UserError, match="every is 3, but only 2 language layers run"):
        BackboneConfig(language=two, cross_attention=CrossAttentionConfig(every=3))
    with pytest.raises(UserError, match="every is 2, but only 1 language layers run"):
        BackboneConfig(language=replace(two, output="penultimate"), cross_attention=CrossAttentionConfig(every=2))


def test_every_class_of_the_command_line_is_tried() -> None:
    tried = {type(make()) for make in CONFIGS.values()}
    for config in [make() for make in CONFIGS.values()]:
        for field in fields(config):
            value = getattr(config, field.name)
            assert not is_dataclass(value) or type(value) in tried, f"{type(config).__name__}.{field.name}"
