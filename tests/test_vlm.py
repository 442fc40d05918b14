"""Pre-trained backbones in folders, and policies that begin with them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from calvin_eval.system.errors import UserError
from roboflamingo.backbone.adapters import LoRAConfig
from roboflamingo.backbone.config import BackboneConfig, CrossAttentionConfig, ResamplerConfig
from roboflamingo.backbone.encoders import VisionConfig
from roboflamingo.backbone.flamingo import Flamingo
from roboflamingo.backbone.language import LanguageConfig
from roboflamingo.policy.config import PolicyConfig
from roboflamingo.training.config import TrainConfig
from roboflamingo.training.config_parts import DataConfig
from roboflamingo.training.trainable import choose_trainable
from roboflamingo.weights.checkpoint import load_policy, save_policy
from roboflamingo.weights.files import WeightsError
from roboflamingo.weights.making import make_policy
from roboflamingo.weights.presets import preset
from roboflamingo.weights.vlm import read_vlm_config, save_vlm, vlm_folder

WORDS = ("block", "lift", "red", "the")
SMALL = BackboneConfig(
    vision=VisionConfig(image_size=32, patch_size=16, width=32, layers=1, heads=2, stem_width=8),
    language=LanguageConfig(width=32, layers=2, heads=2, words=WORDS),
    resampler=ResamplerConfig(latents=2, heads=2, head_width=8),
    cross_attention=CrossAttentionConfig(heads=2, head_width=8),
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    save_vlm(Flamingo(SMALL), tmp_path / "vlm", "a card\n")
    return tmp_path / "vlm"


def policy_config(folder: Path, **changed: object) -> PolicyConfig:
    language = replace(SMALL.language, words=())
    backbone = replace(SMALL, weights="published", checkpoint=str(folder), language=language, **changed)
    return PolicyConfig(backbone=backbone)


def test_a_policy_begins_with_the_pre_trained_weights(folder: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    backbone = Flamingo(SMALL)
    policy = make_policy(policy_config(folder))
    assert policy.config.backbone.language.words == WORDS
    for name, tensor in policy.backbone.state_dict().items():
        assert torch.equal(tensor, backbone.state_dict()[name].half().float()), name
    save_policy(policy, tmp_path / "policy")
    again = load_policy(tmp_path / "policy")
    assert torch.equal(again.backbone.vision_encoder.class_embedding, policy.backbone.vision_encoder.class_embedding)
    assert (folder / "README.md").read_text() == "a card\n" and read_vlm_config(folder) == SMALL


def test_eyes_and_language_stay_as_they_are_and_the_rest_trains(folder: Path) -> None:
    config = policy_config(folder)
    policy = make_policy(config)
    choose_trainable(policy, TrainConfig(run="r", data=DataConfig({"a": 1.0}), policy=config, max_steps=1))
    trains = {policy.part_of(name) for name, p in policy.named_parameters() if p.requires_grad}
    stays = {policy.part_of(name) for name, p in policy.named_parameters() if not p.requires_grad}
    assert trains >= {"resampler", "cross-attention", "head"} and stays == {"vision encoder", "language model"}


def test_low_rank_updates_and_adapters_lie_around_the_pre_trained_weights(folder: Path) -> None:
    pytest.importorskip("peft")
    plain = make_policy(policy_config(folder))
    policy = make_policy(policy_config(folder, lora=LoRAConfig(language=2), adapter_width=4))
    images = [torch.randint(0, 256, (1, 32, 32, 3), dtype=torch.uint8)] * 2
    with torch.no_grad():
        outs = [
            each.eval().backbone(each.backbone.see(images), each.read(["lift the red block"]))
            for each in (plain, policy)
        ]
    assert torch.allclose(*outs, atol=1e-6)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"resampler": ResamplerConfig(latents=3, heads=2, head_width=8)}, r"resampler.latents is 3, and .* 2"),
        ({"vision": replace(SMALL.vision, layers=2)}, r"vision.layers is 2, and .* 1"),
    ],
)
def test_other_sizes_are_refused_by_name(folder: Path, changed: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_policy(policy_config(folder, **changed))


def test_changed_weights_are_refused(folder: Path) -> None:
    path = folder / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    with pytest.raises(WeightsError, match=r"weights\.safetensors is not as it was saved"):
        make_policy(policy_config(folder))


def test_a_damaged_configuration_is_named(folder: Path) -> None:
    (folder / "config.yaml").write_text("colour: red\n")
    with pytest.raises(WeightsError, match=r"config\.yaml is damaged: colour is no key"):
        read_vlm_config(folder)


def test_weights_that_are_not_here_are_named() -> None:
    assert vlm_folder("openflamingo/OpenFlamingo-3B-vitl-mpt1b") is None and vlm_folder(None) is None
    with pytest.raises(WeightsError, match="checkpoints/none is neither here nor in"):
        vlm_folder("checkpoints/none")


def test_the_shipped_model_is_found_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = preset("tiny")
    policy = make_policy(config)
    assert config.backbone.vision.layers == policy.config.backbone.vision.layers > 0
    assert {"question", "red", "drawer", "lift"} <= set(policy.config.backbone.language.words)
    assert policy.config.pretrained
