"""RoboFlamingo: frames and an instruction in, chunks of actions out.

backbone -> one vector a frame (pooled hidden states, low-dimensional inputs) -> head. Shapes: B batch, T window,
K chunk, D width, A numbers in an action, C in its code. The module keeps nothing of an episode;
`roboflamingo.policy.control` does, in explicit memory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from roboflamingo.backbone import Flamingo, Text
from roboflamingo.heads import Draws, Prediction, build_head
from roboflamingo.policy.actions import action_space
from roboflamingo.policy.config import PolicyConfig
from roboflamingo.policy.inputs import AUXILIARY_SIZE, auxiliary_targets, random_shift, state_vector
from roboflamingo.policy.pooling import Pooling


class RoboFlamingo(nn.Module):
    """The policy as a module.

    Args:
        config: what it is like.
        tokenizer: of the language model; None for one token a word.
        empty: see `Flamingo`.
    """

    def __init__(
        self, config: PolicyConfig, tokenizer: PreTrainedTokenizerBase | None = None, *, empty: bool = False
    ) -> None:
        super().__init__()
        self.config = config
        self.backbone = Flamingo(config.backbone, tokenizer, empty=empty)
        self.pooling = Pooling(config.pooling, self.backbone.width)
        self.joins_window = config.backbone.fusion == "vit_concat"
        self.action_space = action_space(config.actions, config.statistics.get("actions"), config.action_parts)
        window = 1 if self.joins_window else config.window
        self.head = build_head(config.head, self.action_space.spec, config.features, config.chunk, window)
        # Tokens of different frames look alike to the text but for these.
        self.frame_embedding: nn.Parameter | None = None
        if self.joins_window:
            self.frame_embedding = nn.Parameter(torch.zeros(config.window, 1, config.backbone.vision.width))
        self.auxiliary: nn.Linear | None = None
        if config.auxiliary_weight > 0:
            self.auxiliary = nn.Linear(self.backbone.visual_size, AUXILIARY_SIZE)

    def loss(self, batch: Mapping[str, Any], draws: Draws | None = None) -> dict[str, Tensor]:
        """What to backpropagate ("loss") and its parts, over the steps inside the segments.

        Args:
            batch: rgb_static (B, T, H, W, 3), rgb_gripper (B, T, h, w, 3) unless fusion is static_only,
                robot_obs (B, T, 15), actions (B, T, K, A), action_mask (B, T, K), frame_mask (B, T), instruction
                (B sentences); what `config.vectors` names (B, T, n); scene_obs (B, T, 24) for the auxiliary loss.
            draws: noise of heads that sample (see `Head.loss`), for every frame of the windows.
        """
        static, gripper = batch["rgb_static"], batch.get("rgb_gripper")
        if self.training:
            static = random_shift(static, self.config.static_shift)
            gripper = None if gripper is None else random_shift(gripper, self.config.gripper_shift)
        media = self.see(static, gripper)
        features = self.fuse(media, self.low_dimensional(batch), self.read(batch["instruction"]))
        mask = batch["action_mask"] & batch["frame_mask"].unsqueeze(-1)
        frames = slice(-1, None) if self.joins_window else slice(None)
        drawn = () if draws is None else (Draws(*(part[:, frames] for part in draws)),)
        losses = self.head.loss(features, self.targets(batch)[:, frames], mask[:, frames], *drawn)
        if self.auxiliary is not None and "scene_obs" in batch:
            target = auxiliary_targets(batch["robot_obs"], batch["scene_obs"])
            error = F.smooth_l1_loss(self.auxiliary(media.flatten(2)), target, beta=0.1, reduction="none").mean(-1)
            weight = batch["frame_mask"].to(error.dtype)
            losses["auxiliary"] = (error * weight).sum() / weight.sum().clamp(min=1.0)
            losses["loss"] = losses["loss"] + self.config.auxiliary_weight * losses["auxiliary"]
        return losses

    def predict(self, batch: Mapping[str, Any], noise: Tensor | None = None) -> Prediction:
        """A chunk of actions at every frame of a batch (see `loss`); where fusion joins frames, at the last.

        Heads that sample do so from noise (B, T, K, C), drawn anew where it is None.
        """
        if noise is not None and self.joins_window:
            noise = noise[:, -1:]
        return self.head.predict(self.features(batch), noise)

    def features(self, batch: Mapping[str, Any]) -> Tensor:
        """What the head reads of a batch (see `fuse`)."""
        media = self.see(batch["rgb_static"], batch.get("rgb_gripper"))
        return self.fuse(media, self.low_dimensional(batch), self.read(batch["instruction"]))

    def targets(self, batch: Mapping[str, Any]) -> Tensor:
        """What the head is to predict (B, T, K, A)."""
        return self.action_space.encode(batch["actions"], batch["robot_obs"])

    def commands(self, prediction: Prediction, robot_obs: Tensor) -> Tensor:
        """Soft commands (..., K, C) from predictions at frames with robot states (..., 15).

        They can be averaged; `heads.actions.as_commands` makes commands of them.
        """
        return self.action_space.decode(self.head.actions.soft(prediction).double(), robot_obs.double())

    def see(self, static: Tensor, gripper: Tensor | None) -> Tensor:
        """Images (B, T, H, W, 3) and, unless fusion is static_only, (B, T, h, w, 3) uint8 -> tokens (B, T, R, Dv)."""
        close = None if gripper is None else gripper.flatten(0, 1)
        return self.backbone.see(static.flatten(0, 1), close).unflatten(0, static.shape[:2])

    def read(self, instruction: Sequence[str], length: int | None = None) -> Text:
        """B sentences as far as they can be read without images.

        Args:
            instruction: the sentences.
            length: tokens to which all are padded; None for those of the longest.
        """
        device = next(self.parameters()).device
        dropout = self.config.word_dropout if self.training else 0.0
        ids, is_text, sees = self.backbone.instructions.batch(instruction, device, dropout)
        if length is not None:
            missing = (0, length - ids.shape[1])
            padding = self.backbone.instructions.tokenizer.pad_token_id
            ids, is_text = F.pad(ids, missing, value=padding), F.pad(is_text, missing, value=False)
            sees = None if sees is None else F.pad(sees, missing, value=True)
        return self.backbone.read(ids, is_text, sees)

    def low_dimensional(self, batch: Mapping[str, Any]) -> Tensor:
        """Robot state and named vectors (B, T, n), normalised."""
        parts = [state_vector(batch["robot_obs"], self.config.state)]
        parts += [self.config.statistics[name].normalise(batch[name]) for name in self.config.vectors]
        return torch.cat(parts, dim=-1)

    def fuse(self, media: Tensor, low_dimensional: Tensor, text: Text) -> Tensor:
        """Visual tokens (B, T, R, Dv), (B, T, n) and B instructions -> one vector a frame (B, T, D).

        Where fusion joins frames there is one vector for the window: (B, 1, D).
        """
        window = media.shape[1]
        if self.frame_embedding is not None:
            joined = (media + self.frame_embedding).flatten(1, 2)
            pooled = self._pooled(joined, text).unsqueeze(1)
            return torch.cat([pooled, low_dimensional[:, -1:].to(pooled.dtype)], dim=-1)
        if self.config.backbone.fusion == "two_way":
            cameras = torch.stack(media.chunk(2, dim=2), dim=2).flatten(0, 2)  # both of a frame in a row
            pooled = self._pooled(cameras, text).unflatten(0, (-1, window, 2)).flatten(2)
        else:
            pooled = self._pooled(media.flatten(0, 1), text).unflatten(0, (-1, window))
        return torch.cat([pooled, low_dimensional.to(pooled.dtype)], dim=-1)

    def _pooled(self, media: Tensor, text: Text) -> Tensor:
        """Visual tokens (N, R, Dv) -> (N, D)."""
        hidden = self.backbone(media, text)
        pads = self.config.pool_padding and self.training
        is_text = torch.ones_like(text.is_text) if pads else text.is_text
        return self.pooling(hidden, is_text.repeat_interleave(len(media) // len(is_text), dim=0))
