"""The backbone: images and an instruction in, the language model's hidden states out.

Frames do not see each other here; time is the head's business. Both cameras' tokens are resampled each on its own
and joined ("post" fusion). Shapes: N frames, R latents of both cameras together, L text tokens, D width.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from roboflamingo.backbone.attention import GatedCrossAttentionBlock, PerceiverResampler
from roboflamingo.backbone.language import (
    SPECIAL,
    Instructions,
    LanguageConfig,
    tiny_language_model,
    word_tokenizer,
)
from roboflamingo.backbone.vision import VisionConfig, VisionEncoder


@dataclass
class ResamplerConfig:
    """Sizes of the resampler.

    Attributes:
        latents: tokens that a camera's image becomes.
        depth: layers.
        heads: of the attention.
        head_width: of the attention.
        separate: a second resampler of its own for the gripper camera.
    """

    latents: int = 8
    depth: int = 1
    heads: int = 4
    head_width: int = 32
    separate: bool = True


@dataclass
class CrossAttentionConfig:
    """Sizes of the gated cross-attention.

    Attributes:
        every: language layers from one to the next.
        heads: of the attention.
        head_width: of the attention.
        gate: the gates' initial value. Flamingo's 0 suits a pre-trained language model; one that learns from
            nothing learns faster with open gates.
    """

    every: int = 1
    heads: int = 4
    head_width: int = 32
    gate: float = 1.0


@dataclass
class BackboneConfig:
    """The vision-language model.

    Attributes:
        vision: the vision encoder.
        language: the language model.
        resampler: what turns an image's tokens into a few.
        cross_attention: how the text looks at them.
    """

    vision: VisionConfig = field(default_factory=VisionConfig)
    language: LanguageConfig = field(default_factory=LanguageConfig)
    resampler: ResamplerConfig = field(default_factory=ResamplerConfig)
    cross_attention: CrossAttentionConfig = field(default_factory=CrossAttentionConfig)


class FlamingoLayer(nn.Module):
    """A decoder layer of the language model with gated cross-attention before it.

    The language model calls it as it would its own layer, so the visual tokens wait in `media`, which
    `Flamingo.forward` fills and empties around each call.
    """

    def __init__(self, gated_cross_attn_layer: GatedCrossAttentionBlock | None, decoder_layer: nn.Module) -> None:
        super().__init__()
        self.gated_cross_attn_layer = gated_cross_attn_layer
        self.decoder_layer = decoder_layer
        self.media: Tensor | None = None

    def forward(self, hidden: Tensor, *arguments: Any, **keywords: Any) -> Any:
        """Hidden states (N, L, D) -> whatever the decoder layer returns."""
        if self.gated_cross_attn_layer is not None:
            if self.media is None:
                raise RuntimeError("the language model was called on its own; call Flamingo, which brings the images")
            hidden = self.gated_cross_attn_layer(hidden, self.media)
        return self.decoder_layer(hidden, *arguments, **keywords)


class Flamingo(nn.Module):
    """Vision encoder, resampler and a causal language model with gated cross-attention.

    Args:
        config: sizes of all parts.
    """

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.config = config
        vision, language, resampler = config.vision, config.language, config.resampler
        self.vision_encoder = VisionEncoder(vision)
        sizes = (vision.width, resampler.depth, resampler.head_width, resampler.heads, resampler.latents)
        self.perceiver = PerceiverResampler(*sizes)
        self.perceiver_gripper = PerceiverResampler(*sizes) if resampler.separate else None
        self.instructions = Instructions(word_tokenizer(language.words), language.max_tokens)
        self.lang_encoder = tiny_language_model(language, len(SPECIAL) + len(language.words))
        cross = config.cross_attention
        self._layers: list[FlamingoLayer] = []
        blocks = self.lang_encoder.blocks
        for index, layer in enumerate(blocks):
            gated = None
            if (index + 1) % cross.every == 0:
                gated = GatedCrossAttentionBlock(
                    language.width, vision.width, cross.head_width, cross.heads, gate=cross.gate
                )
            self._layers.append(FlamingoLayer(gated, layer))
            blocks[index] = self._layers[-1]

    @property
    def width(self) -> int:
        """D of the hidden states."""
        return self.config.language.width

    @property
    def visual_size(self) -> int:
        """Numbers in the resampled tokens of one frame, both cameras."""
        return 2 * self.config.resampler.latents * self.config.vision.width

    def see(self, static: Tensor, gripper: Tensor) -> Tensor:
        """Images (N, H, W, 3) and (N, h, w, 3) uint8 -> visual tokens (N, R, Dv)."""
        if static.shape == gripper.shape:
            seen = self.vision_encoder(torch.cat([static, gripper]))
            static_tokens, gripper_tokens = seen[: len(static)], seen[len(static) :]
        else:
            static_tokens, gripper_tokens = self.vision_encoder(static), self.vision_encoder(gripper)
        return torch.cat(
            [self.perceiver(static_tokens), (self.perceiver_gripper or self.perceiver)(gripper_tokens)], dim=1
        )

    def forward(self, media: Tensor, ids: Tensor, is_text: Tensor) -> Tensor:
        """Visual tokens (N, R, Dv), token ids and mask (N, L) -> hidden states (N, L, D)."""
        for layer in self._layers:
            layer.media = media
        try:
            return self.lang_encoder(input_ids=ids, attention_mask=is_text).last_hidden_state
        finally:
            for layer in self._layers:
                layer.media = None
