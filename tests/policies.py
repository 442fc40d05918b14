"""Small policies and batches for tests."""

from __future__ import annotations

from typing import Any

import torch

from roboflamingo.backbone.config import BackboneConfig, CrossAttentionConfig, ResamplerConfig
from roboflamingo.backbone.encoders import VisionConfig
from roboflamingo.backbone.language import LanguageConfig
from roboflamingo.heads import HeadConfig
from roboflamingo.heads.config import unused
from roboflamingo.policy.config import PolicyConfig, calvin_cameras
from roboflamingo.policy.roboflamingo import RoboFlamingo

SENTENCES = ("push the red block", "open the drawer now", "turn on the light")


def head_config(kind: str, **wanted: Any) -> HeadConfig:
    """A head with those of some values that its kind uses."""
    return HeadConfig(kind=kind, **{name: value for name, value in wanted.items() if name not in unused(kind)})


def small_config(**changes: Any) -> PolicyConfig:
    """A policy of some ten thousand weights on 32-pixel images."""
    backbone = BackboneConfig(
        vision=VisionConfig(image_size=32, patch_size=8, width=16, layers=1, heads=2, stem=True),
        language=LanguageConfig(width=16, layers=2, heads=2),
        resampler=ResamplerConfig(latents=4, depth=1, heads=2, head_width=8),
        cross_attention=CrossAttentionConfig(heads=2, head_width=8),
    )
    values = {
        "backbone": backbone, "head": HeadConfig(hidden=32), "window": 3, "chunk": 4,
        "cameras": calvin_cameras(32, 32, 2, 2),
    } | changes  # fmt: skip
    return PolicyConfig(**values).with_words(SENTENCES)


def small_policy(seed: int = 0, **changes: Any) -> RoboFlamingo:
    """The policy of `small_config`, in evaluation mode."""
    torch.manual_seed(seed)
    return RoboFlamingo(small_config(**changes)).eval()


def frozen_policy(**changes: Any) -> RoboFlamingo:
    """A small policy of which resampler, cross-attention and head train, as in the published recipe."""
    policy = small_policy(**changes).train()
    for name, parameter in policy.named_parameters():
        parameter.requires_grad = not ("vision_encoder" in name or "decoder_layer" in name or "wte" in name)
    return policy


def a_batch(config: PolicyConfig, batch: int = 2, seed: int = 0) -> dict[str, Any]:
    """A random batch, all of whose steps are inside."""
    random = torch.Generator().manual_seed(seed)
    shape, chunk = (batch, config.window), config.chunk

    def images(size: int) -> torch.Tensor:
        return torch.randint(0, 256, (*shape, size, size, 3), dtype=torch.uint8, generator=random)

    actions = torch.rand(*shape, chunk, 7, generator=random) * 2 - 1
    actions[..., 6] = actions[..., 6].sign()
    return {
        **{name: images(camera.size) for name, camera in config.cameras.items()},
        "robot_obs": torch.rand(*shape, 15, generator=random),
        "scene_obs": torch.rand(*shape, 24, generator=random),
        "actions": actions,
        "action_mask": torch.ones(*shape, chunk, dtype=torch.bool),
        "frame_mask": torch.ones(*shape, dtype=torch.bool),
        "instruction": [SENTENCES[i % len(SENTENCES)] for i in range(batch)],
    }  # fmt: skip
