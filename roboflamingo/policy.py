"""RoboFlamingo: frames and an instruction in, chunks of actions out.

backbone -> one vector a frame (pooled hidden states, low-dimensional inputs) -> head. Shapes: B batch, T window,
K chunk, D width. The module keeps nothing of an episode; `roboflamingo.control` does, in explicit memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from calvin_eval.system.errors import UserError
from calvin_eval.system.ranges import AMOUNT, BELOW_ONE, COUNT, check_ranges
from roboflamingo.actions import ActionKind, Statistics, action_space
from roboflamingo.backbone import BackboneConfig, Flamingo, Text
from roboflamingo.backbone.language import words_of
from roboflamingo.heads import Draws, HeadConfig, Prediction, build_head
from roboflamingo.inputs import AUXILIARY_SIZE, STATE_SIZES, auxiliary_targets, random_shift, state_vector
from roboflamingo.pooling import Pooling, PoolingKind


@dataclass
class PolicyConfig:
    """A policy.

    Attributes:
        backbone: the vision-language model.
        head: what predicts actions from its output.
        pooling: how the text tokens' hidden states become one vector: max, mean, or attention with a learned query.
        pool_padding: pools padding along with text, as RoboFlamingo did in training, where a sentence's vector
            then depends on the longest sentence of its batch. In training only: acting, it had one sentence and no
            padding.
        word_dropout: share of an instruction's words left out at random in training, so that no single wording is
            relied on.
        window: T, frames that the head sees.
        stride: control steps (30 Hz) from one frame of the window to the next. Training fills it in from
            `data.stride`, so that acting shows the head what training did.
        chunk: K, actions predicted at each frame.
        static_size: edge (pixels) of the static camera's image as the policy is shown it.
        gripper_size: the same of the gripper camera's.
        static_shift: largest random shift (pixels) of training images.
        gripper_shift: the same of the gripper camera's.
        state: what of robot_obs the head reads: none; pose (tool pose and opening, its first 7 numbers); full
            (all 15, with joints and the last gripper command).
        vectors: further arrays of the data set's frames that the head reads, such as force or tactile features.
        actions: relative ones as CALVIN has them, absolute poses, or tcp_relative: relative in the tool's frame.
        statistics: of `vectors`, and of `actions` where they are absolute. Training fills them in.
        auxiliary_weight: of the loss of a linear layer that predicts the table's and the robot's state from
            the visual tokens, in training only; 0 for none.
    """

    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    head: HeadConfig = field(default_factory=HeadConfig)
    pooling: PoolingKind = "max"
    pool_padding: bool = False
    word_dropout: float = 0.0
    window: int = 1
    stride: int = 1
    chunk: int = 8
    static_size: int = 96
    gripper_size: int = 64
    static_shift: int = 3
    gripper_shift: int = 3
    state: Literal["none", "pose", "full"] = "pose"
    vectors: tuple[str, ...] = ()
    actions: ActionKind = "relative"
    statistics: dict[str, Statistics] = field(default_factory=dict)
    auxiliary_weight: float = 0.5

    def __post_init__(self) -> None:
        self.vectors = tuple(self.vectors)
        check_ranges(
            self,
            "policy",
            word_dropout=BELOW_ONE,
            window=COUNT,
            chunk=COUNT,
            stride=COUNT,
            static_size=COUNT,
            gripper_size=COUNT,
            static_shift=AMOUNT,
            gripper_shift=AMOUNT,
            auxiliary_weight=AMOUNT,
        )
        for name in ("static_size", "gripper_size"):
            size, patch = getattr(self, name), self.backbone.vision.patch_size
            if size % patch:
                raise UserError(f"policy.{name} {size} is no multiple of policy.backbone.vision.patch_size {patch}")

    @property
    def grows(self) -> bool:
        """Whether windows at an episode's start hold the frames there are, and not the first one repeated before."""
        return not (self.backbone.fusion == "vit_concat" or self.head.last_step_only)

    @property
    def features(self) -> int:
        """D of the vectors that the head reads."""
        passes = 2 if self.backbone.fusion == "two_way" else 1
        vectors = sum(len(self._statistics_of(name).centre) for name in self.vectors)
        return passes * self.backbone.language.width + STATE_SIZES[self.state] + vectors

    def _statistics_of(self, name: str) -> Statistics:
        if name not in self.statistics:
            raise UserError(f"policy.statistics has no {name!r}, which policy.vectors names; training fills it in")
        return self.statistics[name]

    def with_words(self, sentences: Iterable[str]) -> PolicyConfig:
        """The same policy with the words of these sentences as vocabulary, unless it has one."""
        language = self.backbone.language
        if language.words or self.backbone.weights == "published":
            return self
        language = replace(language, words=words_of(sentences))
        return replace(self, backbone=replace(self.backbone, language=language))


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
        self.head = build_head(config.head, config.features, config.chunk, 1 if self.joins_window else config.window)
        # Tokens of different frames look alike to the text but for these.
        self.frame_embedding: nn.Parameter | None = None
        if self.joins_window:
            self.frame_embedding = nn.Parameter(torch.zeros(config.window, 1, config.backbone.vision.width))
        self.action_space = action_space(config.actions, config.statistics.get("actions"))
        self.auxiliary: nn.Linear | None = None
        if config.auxiliary_weight > 0:
            self.auxiliary = nn.Linear(self.backbone.visual_size, AUXILIARY_SIZE)

    def loss(self, batch: Mapping[str, Any], draws: Draws | None = None) -> dict[str, Tensor]:
        """What to backpropagate ("loss") and its parts, over the steps inside the segments.

        Args:
            batch: rgb_static (B, T, H, W, 3), rgb_gripper (B, T, h, w, 3) unless fusion is static_only,
                robot_obs (B, T, 15), actions (B, T, K, 7), action_mask (B, T, K), frame_mask (B, T), instruction
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

        Heads that sample do so from noise (B, T, K, 7), drawn anew where it is None.
        """
        if noise is not None and self.joins_window:
            noise = noise[:, -1:]
        return self.head.predict(self.features(batch), noise)

    def features(self, batch: Mapping[str, Any]) -> Tensor:
        """What the head reads of a batch (see `fuse`)."""
        media = self.see(batch["rgb_static"], batch.get("rgb_gripper"))
        return self.fuse(media, self.low_dimensional(batch), self.read(batch["instruction"]))

    def targets(self, batch: Mapping[str, Any]) -> Tensor:
        """What the head is to predict (B, T, K, 7)."""
        return self.action_space.encode(batch["actions"], batch["robot_obs"])

    def commands(self, prediction: Prediction, robot_obs: Tensor) -> Tensor:
        """Relative actions (..., K, 7) from predictions at frames with robot states (..., 15); gripper in [-1, 1]."""
        gripper = prediction.gripper_logits.sigmoid().mul(2).sub(1)
        values = torch.cat([prediction.pose, gripper.unsqueeze(-1)], dim=-1)
        return self.action_space.decode(values.double(), robot_obs.double())

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
