"""RoboFlamingo: frames and an instruction in, chunks of actions out.

backbone -> one vector a frame (pooled hidden states) -> head. Shapes: B batch, T window, K chunk, D width.
The module keeps nothing of an episode; `roboflamingo.control` does, in explicit memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from roboflamingo.backbone import BackboneConfig, Flamingo
from roboflamingo.backbone.language import words_of
from roboflamingo.heads import HeadConfig, Prediction, build_head
from roboflamingo.inputs import AUXILIARY_SIZE, STATE_SIZES, auxiliary_targets, random_shift, state_vector
from roboflamingo.pooling import Pooling, PoolingKind


@dataclass
class PolicyConfig:
    """A policy.

    Attributes:
        backbone: the vision-language model.
        head: what predicts actions from its output.
        pooling: how the text tokens' hidden states become one vector: max, mean, or attention with a learned query.
        window: T, frames that the head sees.
        chunk: K, actions predicted at each frame.
        static_size: edge (pixels) of the static camera's image as the policy is shown it.
        gripper_size: the same of the gripper camera's.
        static_shift: largest random shift (pixels) of training images.
        gripper_shift: the same of the gripper camera's.
        state: what of robot_obs the head reads: none; pose (tool pose and opening); full (also joints and the
            last gripper command).
        auxiliary_weight: of the loss of a linear layer that predicts the table's and the robot's state from
            the visual tokens, in training only; 0 for none.
    """

    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    head: HeadConfig = field(default_factory=HeadConfig)
    pooling: PoolingKind = "max"
    window: int = 1
    chunk: int = 8
    static_size: int = 96
    gripper_size: int = 64
    static_shift: int = 3
    gripper_shift: int = 3
    state: Literal["none", "pose", "full"] = "pose"
    auxiliary_weight: float = 0.5

    def __post_init__(self) -> None:
        if self.window < 1 or self.chunk < 1:
            raise ValueError(f"policy.window and policy.chunk must be at least 1, not {self.window} and {self.chunk}")
        if self.state not in STATE_SIZES:
            raise ValueError(f"policy.state {self.state!r} does not exist; choose one of {', '.join(STATE_SIZES)}")
        for name in ("static_size", "gripper_size"):
            size, patch = getattr(self, name), self.backbone.vision.patch_size
            if size % patch:
                raise ValueError(f"policy.{name} {size} is no multiple of vision.patch_size {patch}")

    def with_words(self, sentences: Iterable[str]) -> PolicyConfig:
        """The same policy with the words of these sentences as vocabulary, unless it has one."""
        if self.backbone.language.words:
            return self
        language = replace(self.backbone.language, words=words_of(sentences))
        return replace(self, backbone=replace(self.backbone, language=language))


class RoboFlamingo(nn.Module):
    """The policy as a module.

    Args:
        config: what it is like.
    """

    def __init__(self, config: PolicyConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = Flamingo(config.backbone)
        self.pooling = Pooling(config.pooling, self.backbone.width)
        self.head = build_head(
            config.head, self.backbone.width + STATE_SIZES[config.state], config.chunk, config.window
        )
        self.auxiliary: nn.Linear | None = None
        if config.auxiliary_weight > 0:
            self.auxiliary = nn.Linear(self.backbone.visual_size, AUXILIARY_SIZE)

    def loss(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """What to backpropagate ("loss") and its parts, over the steps inside the segments.

        Args:
            batch: rgb_static (B, T, H, W, 3), rgb_gripper (B, T, h, w, 3), robot_obs (B, T, 15), actions
                (B, T, K, 7), action_mask (B, T, K), frame_mask (B, T), instruction (B sentences); scene_obs
                (B, T, 24) for the auxiliary loss.
        """
        static, gripper = batch["rgb_static"], batch["rgb_gripper"]
        if self.training:
            static = random_shift(static, self.config.static_shift)
            gripper = random_shift(gripper, self.config.gripper_shift)
        media = self.backbone.see(static.flatten(0, 1), gripper.flatten(0, 1))
        features = self._fuse(media, batch["robot_obs"], batch["instruction"])
        mask = batch["action_mask"] & batch["frame_mask"].unsqueeze(-1)
        losses = self.head.loss(features, batch["actions"], mask)
        if self.auxiliary is not None and "scene_obs" in batch:
            target = auxiliary_targets(batch["robot_obs"], batch["scene_obs"]).flatten(0, 1)
            error = F.smooth_l1_loss(self.auxiliary(media.flatten(1)), target, beta=0.1, reduction="none").mean(-1)
            weight = batch["frame_mask"].flatten().to(error.dtype)
            losses["auxiliary"] = (error * weight).sum() / weight.sum().clamp(min=1.0)
            losses["loss"] = losses["loss"] + self.config.auxiliary_weight * losses["auxiliary"]
        return losses

    def predict(self, batch: Mapping[str, Any]) -> Prediction:
        """A chunk of actions at every frame of a batch (see `loss`)."""
        return self.head.predict(
            self.features(batch["rgb_static"], batch["rgb_gripper"], batch["robot_obs"], batch["instruction"])
        )

    def features(self, static: Tensor, gripper: Tensor, robot_obs: Tensor, instruction: Sequence[str]) -> Tensor:
        """One fused vector a frame (B, T, D); frames do not depend on each other.

        Args:
            static: (B, T, H, W, 3) uint8.
            gripper: (B, T, h, w, 3) uint8.
            robot_obs: (B, T, 15).
            instruction: B sentences.
        """
        media = self.backbone.see(static.flatten(0, 1), gripper.flatten(0, 1))
        return self._fuse(media, robot_obs, instruction)

    def _fuse(self, media: Tensor, robot_obs: Tensor, instruction: Sequence[str]) -> Tensor:
        """Visual tokens (B*T, R, Dv) and instructions -> (B, T, D), the state appended."""
        window = robot_obs.shape[1]
        ids, is_text = self.backbone.instructions.batch(instruction, media.device)
        ids, is_text = (x.repeat_interleave(window, dim=0) for x in (ids, is_text))
        hidden = self.backbone(media, ids, is_text)
        pooled = self.pooling(hidden, is_text).unflatten(0, (-1, window))
        return torch.cat([pooled, state_vector(robot_obs, self.config.state).to(pooled.dtype)], dim=-1)
