"""The backbone: images and an instruction in, the language model's hidden states out.

Frames do not see each other here unless `vit_concat` joins them; time is the head's business. Shapes: N frames,
B texts, R visual tokens of a frame, L text tokens, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from calvin_eval.system.errors import UserError
from roboflamingo.backbone.adapters import Adapter, add_lora
from roboflamingo.backbone.attention import GatedCrossAttentionBlock, PerceiverResampler
from roboflamingo.backbone.config import BackboneConfig
from roboflamingo.backbone.decoders import DECODERS, language_model
from roboflamingo.backbone.language import Instructions, word_tokenizer
from roboflamingo.backbone.vision import VisionEncoder


class Text(NamedTuple):
    """Instructions as far as the language model reads them without seeing an image.

    Attributes:
        hidden: (B, L, D) hidden states before the first cross-attention.
        shared: what every layer is given besides; of it `attention_mask` is (B or 1, ..., L, L).
        is_text: (B, L), False for padding.
        sees: (B, L) which tokens come after the image; None for all.
    """

    hidden: Tensor
    shared: dict[str, Any]
    is_text: Tensor
    sees: Tensor | None

    def repeat(self, times: int) -> Text:
        """Every text so many times in a row."""
        if times == 1:
            return self

        def repeated(x: Tensor) -> Tensor:
            return x if len(x) == 1 and x.ndim == 4 else x.repeat_interleave(times, dim=0)

        shared = self.shared | {"attention_mask": repeated(self.shared["attention_mask"])}
        hidden, is_text = repeated(self.hidden), repeated(self.is_text)
        return Text(hidden, shared, is_text, None if self.sees is None else repeated(self.sees))


def stack(texts: Sequence[Text]) -> Text:
    """Texts of equally many tokens as one."""
    masks = torch.cat([text.shared["attention_mask"] for text in texts])
    return Text(
        torch.cat([text.hidden for text in texts]),
        texts[0].shared | {"attention_mask": masks},
        torch.cat([text.is_text for text in texts]),
        None if texts[0].sees is None else torch.cat([text.sees for text in texts if text.sees is not None]),
    )


class FlamingoLayer(nn.Module):
    """A decoder layer of the language model with gated cross-attention before it and, perhaps, an adapter after.

    `Flamingo` calls the parts one by one.
    """

    def __init__(
        self,
        gated_cross_attn_layer: GatedCrossAttentionBlock | None,
        decoder_layer: nn.Module,
        res_layer: GatedCrossAttentionBlock | None = None,
        adapter: Adapter | None = None,
    ) -> None:
        super().__init__()
        self.gated_cross_attn_layer = gated_cross_attn_layer
        self.res_layer = res_layer
        self.decoder_layer = decoder_layer
        self.adapter = adapter

    def look(self, hidden: Tensor, media: Tensor, sees: Tensor | None) -> Tensor:
        """Hidden states (N, L, D) after cross-attention to visual tokens (N, R, Dv)."""
        assert self.gated_cross_attn_layer is not None
        hidden = self.gated_cross_attn_layer(hidden, media, sees)
        return hidden if self.res_layer is None else (hidden + self.res_layer(hidden, media, sees)) / 2

    def read(self, hidden: Tensor, shared: dict[str, Any]) -> Tensor:
        """Hidden states (N, L, D) after the decoder layer."""
        out = self.decoder_layer(hidden, **shared)
        hidden = out[0] if isinstance(out, tuple) else out
        return hidden if self.adapter is None else self.adapter(hidden)


class Flamingo(nn.Module):
    """Vision encoder, resampler and a causal language model with gated cross-attention.

    Args:
        config: sizes of all parts.
        tokenizer: of the language model, which knows OpenFlamingo's tokens; None for one token a word.
        empty: leaves vision encoder and language model without memory (on the meta device) and without low-rank
            updates, so that large ones are only ever made once; see `filling.py`.
    """

    def __init__(
        self, config: BackboneConfig, tokenizer: PreTrainedTokenizerBase | None = None, *, empty: bool = False
    ) -> None:
        super().__init__()
        config.check_that_it_sees()
        self.config = config
        vision, language, resampler = config.vision, config.language, config.resampler
        tokenizer = word_tokenizer(language.words) if tokenizer is None else tokenizer
        self.instructions = Instructions(tokenizer, language.max_tokens)
        self._decoder = DECODERS[language.kind]
        with torch.device("meta") if empty else nullcontext():
            self.vision_encoder = VisionEncoder(vision)
            self.lang_encoder = language_model(language, len(tokenizer))
        sizes = (vision.width, resampler.depth, resampler.head_width, resampler.heads, resampler.latents)
        self.perceiver = PerceiverResampler(*sizes)
        self.perceiver_gripper = PerceiverResampler(*sizes) if resampler.separate else None
        layers = self._decoder.layers(self.lang_encoder)
        for index, layer in enumerate(layers):
            looks = (index + 1) % config.cross_attention.every == 0
            layers[index] = FlamingoLayer(
                self._cross_attention() if looks else None,
                layer,
                self._cross_attention() if looks and config.cross_attention.residual else None,
                Adapter(language.width, config.adapter_width) if config.adapter_width else None,
            )
        self.copy_residual()
        if not empty:
            self.add_low_rank_updates()

    def _cross_attention(self) -> GatedCrossAttentionBlock:
        config, cross = self.config, self.config.cross_attention
        return GatedCrossAttentionBlock(
            config.language.width, config.vision.width, cross.head_width, cross.heads, gate=cross.gate
        )

    def add_low_rank_updates(self) -> None:
        """Lays the low-rank updates that the config asks for around linear layers."""
        lora = self.config.lora
        if lora.language:
            for layer in self.layers:
                add_lora(layer.decoder_layer, lora.language, lora)
        if lora.vision:
            add_lora(self.vision_encoder.transformer, lora.vision, lora)

    def copy_residual(self) -> None:
        """Makes the copies of the cross-attention what the cross-attention is now."""
        for layer in self.layers:
            if layer.res_layer is not None and layer.gated_cross_attn_layer is not None:
                layer.res_layer.load_state_dict(layer.gated_cross_attn_layer.state_dict())

    @property
    def layers(self) -> list[FlamingoLayer]:
        """All layers of the language model."""
        return [layer for layer in self._decoder.layers(self.lang_encoder) if isinstance(layer, FlamingoLayer)]

    @property
    def width(self) -> int:
        """D of the hidden states."""
        return self.config.language.width

    @property
    def visual_size(self) -> int:
        """Numbers in the visual tokens of one frame."""
        tokens = self.config.resampler.latents * self.config.vision.width
        return tokens if self.config.fusion in ("pre", "static_only") else 2 * tokens

    def see(self, static: Tensor, gripper: Tensor | None) -> Tensor:
        """Images (N, H, W, 3) and (N, h, w, 3) uint8 -> visual tokens (N, R, Dv), both cameras' joined.

        Raises:
            UserError: there are no images of the gripper camera, and fusion is not static_only.
        """
        if self.config.fusion == "static_only":
            return self.perceiver(self.vision_encoder(static))
        if gripper is None:
            raise UserError(
                f"the policy sees the gripper camera (backbone.fusion {self.config.fusion}), and there are no images "
                "of it (rgb_gripper)"
            )
        if static.shape == gripper.shape:
            static_tokens, gripper_tokens = self.vision_encoder(torch.cat([static, gripper])).chunk(2)
        else:
            static_tokens, gripper_tokens = self.vision_encoder(static), self.vision_encoder(gripper)
        if self.config.fusion == "pre":
            return self.perceiver(torch.cat([static_tokens, gripper_tokens], dim=1))
        if self.perceiver_gripper is not None:
            return torch.cat([self.perceiver(static_tokens), self.perceiver_gripper(gripper_tokens)], dim=1)
        if static_tokens.shape == gripper_tokens.shape:
            return torch.cat(self.perceiver(torch.cat([static_tokens, gripper_tokens])).chunk(2), dim=1)
        return torch.cat([self.perceiver(static_tokens), self.perceiver(gripper_tokens)], dim=1)

    def read(self, ids: Tensor, is_text: Tensor, sees: Tensor | None = None) -> Text:
        """Token ids, their mask, and which come after the image, (B, L) each, read up to the first cross-attention."""
        hidden, shared = self._decoder.begin(self.lang_encoder, ids, is_text)
        for layer in self.layers[: self.config.cross_attention.every - 1]:
            hidden = layer.read(hidden, shared)
        return Text(hidden, shared, is_text, sees)

    def forward(self, media: Tensor, text: Text) -> Tensor:
        """Visual tokens (N, R, Dv) and B texts, each of N / B frames in a row -> hidden states (N, L, D)."""
        text = text.repeat(len(media) // len(text.hidden))
        layers, first = self.layers, self.config.cross_attention.every - 1
        hidden = text.hidden
        penultimate = self.config.language.output == "penultimate"
        for layer in layers[first : len(layers) - penultimate]:
            if layer.gated_cross_attn_layer is not None:
                hidden = layer.look(hidden, media, text.sees)
            hidden = layer.read(hidden, text.shared)
        return hidden if penultimate else self._decoder.end(self.lang_encoder, hidden)
