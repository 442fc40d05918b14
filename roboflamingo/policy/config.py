"""How the RoboFlamingo policy is configured."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Literal

from calvin_eval.specs import ActionPart
from calvin_eval.system.errors import UserError
from calvin_eval.system.ranges import AMOUNT, BELOW_ONE, COUNT, check_ranges
from roboflamingo.backbone.config import BackboneConfig
from roboflamingo.backbone.language import words_of
from roboflamingo.heads import HeadConfig
from roboflamingo.policy.actions import ActionKind, Statistics
from roboflamingo.policy.inputs import STATE_SIZES
from roboflamingo.policy.pooling import PoolingKind


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
        actions: recorded as the data set has them, of any robot; or CALVIN's: relative ones, absolute poses, or
            tcp_relative: relative in the tool's frame.
        action_parts: what recorded actions are made of, and how each part is normalised. Training takes them from the
            data set where none are given, and fills in their centre and scale.
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
    action_parts: tuple[ActionPart, ...] = ()
    statistics: dict[str, Statistics] = field(default_factory=dict)
    auxiliary_weight: float = 0.5

    def __post_init__(self) -> None:
        self.vectors, self.action_parts = tuple(self.vectors), tuple(self.action_parts)
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
        if self.action_parts and self.actions != "recorded":
            raise UserError(f"policy.action_parts does nothing with policy.actions {self.actions}; it is of recorded")
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
