"""How the RoboFlamingo policy is configured."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar

from calvin_eval.calvin import ROBOT_OBS, SCENE_OBS
from calvin_eval.system.errors import UserError
from calvin_eval.system.ranges import AMOUNT, BELOW_ONE, Range
from roboflamingo.backbone.config import BackboneConfig
from roboflamingo.backbone.language import words_of
from roboflamingo.heads import HeadConfig
from roboflamingo.policy.base_config import (
    ROBOT_OBS_SIZE,
    SCENE_OBS_SIZE,
    BasePolicyConfig,
    CameraConfig,
    calvin_cameras,
)
from roboflamingo.policy.pooling import PoolingKind

__all__ = ["CameraConfig", "PolicyConfig", "calvin_cameras"]


@dataclass
class PolicyConfig(BasePolicyConfig):
    """A vision-language model with a head.

    Attributes:
        backbone: the vision-language model.
        head: what predicts actions from its output.
        pooling: how the text tokens' hidden states become one vector: max, mean, or attention with a learned query.
        pool_padding: pools padding along with text, as RoboFlamingo did in training, where a sentence's vector
            then depends on the longest sentence of its batch. In training only: acting, it had one sentence and no
            padding.
        word_dropout: share of an instruction's words left out at random in training, so that no single wording is
            relied on.
        auxiliary_weight: of the loss of a linear layer that predicts the state of CALVIN's table and robot from the
            visual tokens, in training only; 0 for none, as other data sets need it.
    """

    RANGES: ClassVar[Mapping[str, Range]] = {"word_dropout": BELOW_ONE, "auxiliary_weight": AMOUNT}

    kind: str = "roboflamingo"
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    head: HeadConfig = field(default_factory=HeadConfig)
    pooling: PoolingKind = "max"
    pool_padding: bool = False
    word_dropout: float = 0.0
    auxiliary_weight: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, camera in self.cameras.items():
            self.backbone.vision.check_image(f"policy.cameras.{name}.size", camera.size)

    @property
    def seen(self) -> tuple[str, ...]:
        """The cameras that the policy looks through: all, unless fusion keeps the first only."""
        return tuple(self.cameras)[:1] if self.backbone.fusion == "first_only" else tuple(self.cameras)

    @property
    def grows(self) -> bool:
        """Not where fusion joins frames, nor where the head was trained on full windows only."""
        return not (self.backbone.fusion == "vit_concat" or self.head.last_step_only)

    @property
    def pretrained(self) -> bool:
        """Whether the backbone's weights are published ones."""
        return self.backbone.weights == "published"

    @property
    def taught_by(self) -> Mapping[str, int]:
        """What the auxiliary loss is of."""
        return {ROBOT_OBS: ROBOT_OBS_SIZE, SCENE_OBS: SCENE_OBS_SIZE} if self.auxiliary_weight > 0 else {}

    @property
    def libraries(self) -> Mapping[str, tuple[str, str]]:
        """Of some heads, and of low-rank updates."""
        needed = {"diffusers": ("policy.head.kind diffusion", "diffusion")} if self.head.kind == "diffusion" else {}
        lora = self.backbone.lora
        return needed | ({"peft": ("policy.backbone.lora", "lora")} if lora.language or lora.vision else {})

    @property
    def features(self) -> int:
        """D of the vectors that the head reads."""
        passes = len(self.cameras) if self.backbone.fusion == "two_way" else 1
        return passes * self.backbone.language.width + self.low_dimensional

    def check_teaching(self, states: Mapping[str, int], what: str) -> None:
        """The auxiliary loss is of CALVIN's table and robot."""
        if missing := [name for name, size in self.taught_by.items() if states.get(name) != size]:
            raise UserError(
                f"policy.auxiliary_weight {self.auxiliary_weight} trains on CALVIN's {' and '.join(missing)}, which "
                f"{what} lacks: set it to 0"
            )

    def with_words(self, sentences: Iterable[str]) -> PolicyConfig:
        """The same policy with the words of these sentences as vocabulary, unless it has one."""
        language = self.backbone.language
        if language.words or self.backbone.weights == "published":
            return self
        language = replace(language, words=words_of(sentences))
        return replace(self, backbone=replace(self.backbone, language=language))

    def described(self) -> str:
        """What the policy is, in a few words."""
        backbone = self.backbone
        return (
            f"preset {backbone.preset}, {backbone.language.kind} of {backbone.language.layers} layers, "
            f"{self.head.kind} head"
        )
