"""RoboFlamingo: frames and an instruction in, chunks of actions out.

backbone -> one vector a frame (pooled hidden states, low-dimensional inputs) -> head. Shapes: B batch, T window,
K chunk, D width, A numbers in an action, C in its code. The module keeps nothing of an episode;
`roboflamingo.policy.control` does, in explicit memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from calvin_eval.calvin import ROBOT_OBS, SCENE_OBS
from roboflamingo.backbone import Flamingo, Text
from roboflamingo.backbone.flamingo import FlamingoLayer, stack
from roboflamingo.heads import Actions, Draws, Prediction, build_head
from roboflamingo.policy.base import LearnedPolicy, Vision
from roboflamingo.policy.config import PolicyConfig
from roboflamingo.policy.inputs import AUXILIARY_SIZE, auxiliary_targets, random_shift
from roboflamingo.policy.pooling import Pooling
from roboflamingo.policy.trainable import PARTS, Wanted, chosen_parameters, idle_parameters

TOKENIZER = "tokenizer"


class RoboFlamingo(LearnedPolicy):
    """The policy as a module.

    Args:
        config: what it is like.
        tokenizer: of the language model; None for one token a word.
        empty: see `Flamingo`.
    """

    PARTS = PARTS

    def __init__(
        self, config: PolicyConfig, tokenizer: PreTrainedTokenizerBase | None = None, *, empty: bool = False
    ) -> None:
        super().__init__(config)
        self.backbone = Flamingo(config.backbone, tokenizer, cameras=len(config.cameras), empty=empty)
        self.pooling = Pooling(config.pooling, self.backbone.width)
        self.joins_window = config.backbone.fusion == "vit_concat"
        window = 1 if self.joins_window else config.window
        self.head = build_head(config.head, self.action_space.spec, config.features, config.chunk, window)
        self.samples = self.head.samples
        # Tokens of different frames look alike to the text but for these.
        self.frame_embedding: nn.Parameter | None = None
        if self.joins_window:
            self.frame_embedding = nn.Parameter(torch.zeros(config.window, 1, config.backbone.vision.width))
        self.auxiliary: nn.Linear | None = None
        if config.auxiliary_weight > 0:
            self.auxiliary = nn.Linear(self.backbone.visual_size, AUXILIARY_SIZE)

    @property
    def actions(self) -> Actions:
        """The head's."""
        return self.head.actions

    def loss(self, batch: Mapping[str, Any], draws: Draws | None = None) -> dict[str, Tensor]:
        """What to backpropagate ("loss") and its parts, over the steps inside the segments.

        Args:
            batch: images (B, T, H, W, 3) uint8 of every camera of `config.seen`, or the vision encoder's tokens
                (B, T, V, Dv) of them, which are not shifted any more; actions (B, T, K, A), action_mask (B, T, K),
                frame_mask (B, T), instruction (B sentences); what `config.vectors` names (B, T, n); robot_obs
                (B, T, 15) where something reads it, and scene_obs (B, T, 24) for the auxiliary loss.
            draws: noise of heads that sample (see `Head.loss`), for every frame of the windows.
        """
        images = self.images(batch)
        if self.training and not images[0].is_floating_point():
            shifts = [self.config.cameras[name].shift for name in self.config.seen]
            images = [random_shift(each, shift) for each, shift in zip(images, shifts, strict=True)]
        media = self.see(images)
        features = self.fuse(media, self.low_dimensional(batch), self.read(batch["instruction"]))
        mask = batch["action_mask"] & batch["frame_mask"].unsqueeze(-1)
        frames = slice(-1, None) if self.joins_window else slice(None)
        drawn = () if draws is None else (Draws(*(part[:, frames] for part in draws)),)
        losses = self.head.loss(features, self.targets(batch)[:, frames], mask[:, frames], *drawn)
        if self.auxiliary is not None and SCENE_OBS in batch:
            target = auxiliary_targets(batch[ROBOT_OBS], batch[SCENE_OBS])
            error = F.smooth_l1_loss(self.auxiliary(media.flatten(2)), target, beta=0.1, reduction="none").mean(-1)
            weight = batch["frame_mask"].to(error.dtype)
            losses["auxiliary"] = (error * weight).sum() / weight.sum().clamp(min=1.0)
            losses["loss"] = losses["loss"] + self.config.auxiliary_weight * losses["auxiliary"]
        return losses

    def look(self, batch: Mapping[str, Any], text: Text) -> Tensor:
        """Vectors of frames (B, n, D), or visual tokens (B, n, R, Dv) where fusion joins frames."""
        media = self.see(self.images(batch))
        return media if self.joins_window else self.fuse(media, self.low_dimensional(batch), text)

    def join(self, frames: Tensor, batch: Mapping[str, Any], text: Text) -> Tensor:
        """Visual tokens of windows (B, T, R, Dv) -> (B, 1, D), with the last frame's low-dimensional inputs."""
        return self.fuse(frames, self.low_dimensional(batch), text)

    def decide(self, frames: Tensor, noise: Tensor | None = None, *, at: Tensor | None = None) -> Prediction:
        """The head's prediction."""
        return self.head.predict(frames, noise, at=at)

    def see(self, images: Sequence[Tensor]) -> Tensor:
        """Images (B, T, H, W, 3) uint8 of every camera, or tokens (B, T, V, Dv) of them -> tokens (B, T, R, Dv)."""
        return self.backbone.see([each.flatten(0, 1) for each in images]).unflatten(0, images[0].shape[:2])

    def read(self, instruction: Sequence[str], *, padded: bool = False) -> Text:
        """B sentences as far as they can be read without images.

        Args:
            instruction: the sentences.
            padded: to `language.max_tokens`; else to the longest.
        """
        device = next(self.parameters()).device
        dropout = self.config.word_dropout if self.training else 0.0
        ids, is_text, sees = self.backbone.instructions.batch(instruction, device, dropout)
        if padded:
            missing = (0, self.config.backbone.language.max_tokens - ids.shape[1])
            padding = self.backbone.instructions.tokenizer.pad_token_id
            ids, is_text = F.pad(ids, missing, value=padding), F.pad(is_text, missing, value=False)
            sees = None if sees is None else F.pad(sees, missing, value=True)
        return self.backbone.read(ids, is_text, sees)

    def stack(self, texts: Sequence[Text]) -> Text:
        """Texts that were padded, as one."""
        return stack(texts)

    def idle(self) -> set[int]:
        """What follows the hidden states that are read."""
        return idle_parameters(self.backbone)

    def chosen(self, wanted: Wanted, *, everything: bool) -> set[int]:
        """What `wanted` names; copies of the cross-attention never train."""
        some = self.parameters() if everything else chosen_parameters(self, self.backbone, wanted)
        copies = {id(p) for layer in self.backbone.layers if layer.res_layer for p in layer.res_layer.parameters()}
        return {id(parameter) for parameter in some} - copies

    def vision(self) -> Vision:
        """The vision encoder, which all cameras share; where its weights came from changes nothing."""
        config = self.config.backbone
        return Vision(self.backbone.vision_encoder, asdict(replace(config.vision, source=None)))

    def large_layers(self) -> Iterator[nn.Module]:
        """The decoder layers of the language model and the cross-attention between them, which run one by one."""
        for module in self.modules():
            if isinstance(module, FlamingoLayer):
                yield from module.children()

    def save_beside(self, folder: Path) -> None:
        """The language model's tokenizer, unless the words in the config make it."""
        if not self.config.backbone.language.words:
            self.backbone.instructions.tokenizer.save_pretrained(folder / TOKENIZER)

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
            count = self.backbone.cameras
            cameras = torch.stack(media.chunk(count, dim=2), dim=2).flatten(0, 2)  # all of a frame in a row
            pooled = self._pooled(cameras, text).unflatten(0, (-1, window, count)).flatten(2)
        else:
            pooled = self._pooled(media.flatten(0, 1), text).unflatten(0, (-1, window))
        return torch.cat([pooled, low_dimensional.to(pooled.dtype)], dim=-1)

    def _pooled(self, media: Tensor, text: Text) -> Tensor:
        """Visual tokens (N, R, Dv) -> (N, D)."""
        hidden = self.backbone(media, text)
        pads = self.config.pool_padding and self.training
        is_text = torch.ones_like(text.is_text) if pads else text.is_text
        return self.pooling(hidden, is_text.repeat_interleave(len(media) // len(is_text), dim=0))
