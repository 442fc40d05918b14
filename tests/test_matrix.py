"""Every head with every fusion, and with them all that can be trained: trains, saves, loads and acts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from rich.console import Console

from calvin_eval.calvin import calvin_observation
from policies import head_config
from roboflamingo.backbone.adapters import LoRAConfig
from roboflamingo.backbone.config import CrossAttentionConfig
from roboflamingo.backbone.language import LanguageConfig
from roboflamingo.heads import HEADS
from roboflamingo.policy.control import PolicyController
from roboflamingo.training.config import TrainConfig
from roboflamingo.training.config_parts import ConfigError, DataConfig, TrainableConfig
from roboflamingo.training.datamodule import open_windows, with_statistics
from roboflamingo.training.train import train
from roboflamingo.training.trainable import choose_trainable
from roboflamingo.weights.checkpoint import load_policy
from roboflamingo.weights.making import make_policy
from roboflamingo.weights.presets import preset
from runs import tiny_policy, tiny_run
from synthetic import write_dataset

QUIET = Console(quiet=True)
FUSIONS = ("post", "pre", "two_way", "vit_concat", "first_only")
USUAL = {"resampler", "cross-attention", "head", "auxiliary", "frame_embedding", "pooling"}
TRAINABLE = {
    "recipe": (TrainableConfig(everything=False), {}, USUAL),
    "embedding": (TrainableConfig(everything=False, token_embedding=True), {}, USUAL | {"language model"}),
    "last layer": (TrainableConfig(everything=False, resampler=False, cross_attention=1), {}, USUAL - {"resampler"}),
    "vision": (TrainableConfig(everything=False, vision=True), {}, USUAL | {"vision encoder"}),
    "lora": (
        TrainableConfig(everything=False),
        {"lora": LoRAConfig(language=2, vision=2)},
        USUAL | {"low-rank updates"},
    ),
    "adapters": (TrainableConfig(everything=False), {"adapter_width": 4}, USUAL | {"adapters"}),
    "everything": (
        TrainableConfig(everything=True),
        {"cross_attention": CrossAttentionConfig(heads=2, head_width=8, residual=True)},
        USUAL | {"language model", "vision encoder"},
    ),
}
CASES = [
    (head, fusion, list(TRAINABLE)[(h + f) % len(TRAINABLE)], ("pose", "none")[(h + f) % 2])
    for h, head in enumerate(sorted(HEADS))
    for f, fusion in enumerate(FUSIONS)
]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data"))


def a_run(folder, dataset, head, fusion, trainable, state):
    choice, changes, _ = TRAINABLE[trainable]
    base = tiny_policy().backbone
    vision = replace(base.vision, layers=1, stem=False)
    backbone = replace(base, fusion=fusion, vision=vision, language=LanguageConfig(width=16, layers=2, heads=2))
    backbone = replace(backbone, **changes)
    config = head_config(head, hidden=16, attention_heads=2, sample_steps=2, bins=8)
    policy = tiny_policy(backbone=backbone, head=config, robot_obs=state, pooling="attention")
    config = tiny_run(folder, dataset, policy=policy, trainable=choice, max_steps=3, validation_windows=0)
    return replace(config, data=replace(config.data, stride=policy.chunk))  # so that E = K can show it the same windows


@pytest.mark.parametrize(("head", "fusion", "trainable", "state"), CASES)
def test_it_trains_saves_loads_and_acts(tmp_path, dataset, head, fusion, trainable, state):
    config = a_run(tmp_path, dataset, head, fusion, trainable, state)
    windows, _ = open_windows(config, QUIET)
    torch.manual_seed(config.seed)
    before = make_policy(with_statistics(config.policy, windows))
    choose_trainable(before, config)
    frozen = {name for name, p in before.named_parameters() if not p.requires_grad}
    policy = load_policy(train(config, console=QUIET))

    moved = set()
    for name, parameter in policy.named_parameters():
        same = torch.equal(parameter, before.get_parameter(name))
        assert same or name not in frozen, f"{name} is frozen and has changed"
        moved |= set() if same else {policy.part_of(name)}
    assert moved <= TRAINABLE[trainable][2]
    assert {"head", "cross-attention"} <= moved

    random = np.random.default_rng(0)
    images = random.integers(0, 256, (4, 24, 24, 3), np.uint8)
    for execute in (1, config.policy.chunk):
        controller = PolicyController(policy, execute)
        memory = controller.start("open the drawer")
        for image in images:
            actions, (memory,) = controller.act(
                [calvin_observation(image, image[:16, :16], random.normal(size=15))], [memory]
            )
            assert actions.shape == (1, execute, 7) and np.abs(actions).max() <= 1


def test_the_published_recipe_trains_as_many_numbers_as_the_reference():
    policy_config = preset("mpt-1b-dolly")
    from roboflamingo.policy.roboflamingo import RoboFlamingo

    with torch.device("meta"):
        policy = RoboFlamingo(policy_config)
    config = TrainConfig(
        run="", data=DataConfig({"": 1.0}), policy=policy_config, max_steps=1,
        trainable=TrainableConfig(token_embedding=True),
    )  # fmt: skip
    choose_trainable(policy, config)
    trained = sum(p.numel() for p in policy.parameters() if p.requires_grad)
    last = policy.backbone.layers[-1].gated_cross_attn_layer  # which never runs; the reference counts it in
    in_name_only = sum(p.numel() for p in last.parameters())
    assert (trained, in_name_only) == (1_051_479_349, 36_708_354)
    assert trained + in_name_only == 1_088_187_703


def test_the_cross_attention_that_trains_is_the_last(dataset, tmp_path):
    config = a_run(tmp_path, dataset, "mlp", "post", "last layer", "none")
    policy = make_policy(config.policy.with_words(["open"]))
    choose_trainable(policy, config)
    trains = [
        any(p.requires_grad for p in layer.gated_cross_attn_layer.parameters()) for layer in policy.backbone.layers
    ]
    assert trains == [False, True]
    too_many = replace(config, trainable=TrainableConfig(everything=False, cross_attention=3))
    with pytest.raises(ConfigError, match="cross_attention is 3; in this policy 2 such layers run"):
        choose_trainable(policy, too_many)
