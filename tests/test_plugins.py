"""Encoders, heads and policies of other packages: found by entry point, loaded when asked for, refused by name."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

from calvin_eval.calvin import calvin_observation
from calvin_eval.system.errors import UserError
from policies import a_batch, small_config
from roboflamingo.backbone.adapters import LoRAConfig
from roboflamingo.backbone.encoders import VISION, ImageEncoder, VisionConfig, register_vision
from roboflamingo.policy.control import PolicyController
from roboflamingo.policy.roboflamingo import RoboFlamingo
from roboflamingo.training.train import train
from roboflamingo.weights.checkpoint import load_policy
from runs import tiny_policy, tiny_run
from synthetic import write_dataset


class Pixels(ImageEncoder):
    """Every patch's mean colour, as tokens."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.pool = nn.AvgPool2d(config.settings["every"])
        self.project = nn.Linear(3, config.width)
        self.register_buffer("seen", torch.zeros(()), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, H, W, 3) uint8 -> tokens (N, V, D)."""
        return self.project(self.pool(images.permute(0, 3, 1, 2) / 255).flatten(2).transpose(1, 2))


@pytest.fixture
def pixels() -> Any:
    register_vision("pixels")(Pixels)
    yield VisionConfig(kind="pixels", width=16, settings={"every": 5})
    del VISION["pixels"]


def with_vision(config: Any, vision: VisionConfig, **changed: Any) -> Any:
    return replace(config, backbone=replace(config.backbone, vision=vision, **changed))


def test_another_vision_encoder_trains_is_saved_loads_and_acts(tmp_path: Any, pixels: VisionConfig) -> None:
    dataset = write_dataset(tmp_path / "data")
    config = tiny_run(tmp_path / "run", dataset, policy=with_vision(tiny_policy(), pixels), max_steps=2)
    policy = load_policy(train(config, console=Console(quiet=True)))
    assert isinstance(policy.backbone.vision_encoder, Pixels) and not policy.backbone.vision_encoder.seen.is_meta
    controller = PolicyController(policy)
    image = np.zeros((24, 24, 3), np.uint8)
    seen = [calvin_observation(picture, picture[:16, :16], np.zeros(15)) for picture in (image, image + 99)]
    actions, _ = controller.act(seen, [controller.start("push the red block")] * 2)
    assert actions.shape == (2, 1, 7) and not np.array_equal(*actions)


def test_images_of_any_size_are_the_encoder_s_own_business(pixels: VisionConfig) -> None:
    from roboflamingo.policy.config import calvin_cameras

    config = with_vision(replace(small_config(), backbone=with_vision(small_config(), pixels).backbone,
                                 cameras=calvin_cameras(35, 25)), pixels)  # fmt: skip
    policy = RoboFlamingo(config)
    policy.loss(a_batch(config))["loss"].backward()
    with pytest.raises(UserError, match=r"rgb_static\.size 35 is no multiple of .*patch_size 8"):
        with_vision(config, VisionConfig(width=16, heads=2))


def test_low_rank_updates_go_into_another_encoder_as_well(pixels: VisionConfig) -> None:
    config = with_vision(small_config(), pixels, lora=LoRAConfig(vision=2))
    assert any("vision_encoder.project.lora_" in name for name, _ in RoboFlamingo(config).named_parameters())


def test_a_vision_encoder_that_is_none_is_named() -> None:
    with pytest.raises(UserError, match=r"policy\.backbone\.vision\.kind 'resnet' does not exist; choose one of vit"):
        RoboFlamingo(with_vision(small_config(), VisionConfig(kind="resnet", width=16)))


def test_settings_are_for_encoders_that_have_some() -> None:
    with pytest.raises(UserError, match=r"settings .*every.* does nothing with kind vit"):
        VisionConfig(settings={"every": 5})
