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

from roboflamingo.backbone.adapters import Adapter, add_lora
from roboflamingo.backbone.attention import GatedCrossAttentionBlock, PerceiverResampler
from roboflamingo.backbone.config import BackboneConfig
from roboflamingo.backbone.decoders import DECODERS, language_model
from roboflamingo.backbone.encoders import ImageEncoder, vision_encoder
from roboflamingo.backbone.language import Instructions, word_tokenizer


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
        cameras: how many there are.
        empty: leaves vision encoder and language model without memory (on the meta device) and without low-rank
            updates, so that large ones are only ever made once; see `filling.py`.
    """

    def __init__(
        self,
        config: BackboneConfig,
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        cameras: int = 2,
        empty: bool = False,
    ) -> None:
        super().__init__()
        config.check_that_it_sees()
        self.config = config
        self.cameras = 1 if config.fusion == "first_only" else cameras
        vision, language, resampler = config.vision, config.language, config.resampler
        tokenizer = word_tokenizer(language.words) if tokenizer is None else tokenizer
        self.instructions = Instructions(tokenizer, language.max_tokens)
        self._decoder = DECODERS[language.kind]
        encoder = vision_encoder(vision.kind)
        with torch.device("meta") if empty and encoder.without_memory else nullcontext():
            self.vision_encoder: ImageEncoder = encoder(vision)
        with torch.device("meta") if empty else nullcontext():
            self.lang_encoder = language_model(language, len(tokenizer))
        sizes = (vision.width, resampler.depth, resampler.head_width, resampler.heads, resampler.latents)
        self.perceiver = PerceiverResampler(*sizes)
        further = range(self.cameras - 1) if resampler.separate else ()
        self.perceiver_further = nn.ModuleList(PerceiverResampler(*sizes) for _ in further)
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
            add_lora(self.vision_encoder.adaptable, lora.vision, lora)

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
        return tokens if self.config.fusion == "pre" else self.cameras * tokens

    def see(self, images: Sequence[Tensor]) -> Tensor:
        """Images (N, H, W, 3) uint8 of each camera -> visual tokens (N, R, Dv), one camera's behind the other's.

        In the place of images there may be what the vision encoder has made of them: tokens (N, V, Dv), of any
        precision.
        """
        kept = images[0].is_floating_point()
        tokens = [each.float() for each in images] if kept else self._encoded(images)
        if self.config.fusion == "pre":
            return self.perceiver(torch.cat(tokens, dim=1))
        if self.perceiver_further:
            resamplers = [self.perceiver, *self.perceiver_further]
            return torch.cat([resample(each) for resample, each in zip(resamplers, tokens, strict=True)], dim=1)
        if len(tokens) > 1 and len({each.shape for each in tokens}) == 1:
            return torch.cat(self.perceiver(torch.cat(tokens)).chunk(len(tokens)), dim=1)
        return torch.cat([self.perceiver(each) for each in tokens], dim=1)

    def _encoded(self, images: Sequence[Tensor]) -> list[Tensor]:
        """Every camera's patch tokens (N, V, Dv); images of equal size share a pass."""
        found: list[Tensor] = [torch.empty(0)] * len(images)
        for shape in dict.fromkeys(each.shape for each in images):
            alike = [place for place, each in enumerate(images) if each.shape == shape]
            together = [images[place] for place in alike]
            encoded = self.vision_encoder(torch.cat(together) if len(alike) > 1 else together[0])
            for place, tokens in zip(alike, encoded.chunk(len(alike)), strict=True):
                found[place] = tokens
        return found

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
