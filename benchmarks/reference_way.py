"""The reference system's way of computing, for benchmarks: the same policy with the same weights, computed as it does.

Switches say what differs:
    cameras        open_clip's own vision encoder, a pass for each camera; pixels are normed before the step
    attention      open_flamingo's own resampler: scores as tensors
    language       transformers' MPT with open_flamingo's own cross-attention: scores as tensors, masks rebuilt in each
                   layer, every layer's output kept, the instruction read anew for every frame
    logits         the language model's output layer, which MPT-1B's code computes and no policy reads
    optimizer      AdamW tensor by tensor
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from open_clip.transformer import QuickGELU, VisionTransformer
from open_flamingo.src import flamingo_lm, helpers
from open_flamingo.src.utils import extend_instance
from torch import Tensor, nn
from transformers import MptForCausalLM

from calvin_eval.system.machine import cores
from roboflamingo.backbone.config import PRESETS, BackboneConfig, CrossAttentionConfig, ResamplerConfig
from roboflamingo.backbone.encoders import VisionConfig
from roboflamingo.backbone.flamingo import Flamingo, Text
from roboflamingo.backbone.language import LanguageConfig
from roboflamingo.heads import HeadConfig
from roboflamingo.policy.config import PolicyConfig, calvin_cameras
from roboflamingo.policy.roboflamingo import RoboFlamingo
from roboflamingo.training.precision import computes_in_bf16
from roboflamingo.weights.making import make_policy
from roboflamingo.weights.presets import preset

SWITCHES = ("cameras", "attention", "language", "logits", "optimizer")
SENTENCES = ("push the red block to the left", "open the drawer", "pull the handle of the sliding door to the right")
MPT_VOCABULARY = 50432
FROZEN = ("vision_encoder", "decoder_layer", "embed", "wte", "norm_f")


def small_policy(vocabulary: int = MPT_VOCABULARY) -> PolicyConfig:
    """The small case."""
    words = tuple(f"word{number}" for number in range(vocabulary - 50))  # the rest is for the sentences
    backbone = BackboneConfig(
        vision=VisionConfig(image_size=112, patch_size=14, width=128, layers=4, heads=4, stem=False),
        language=LanguageConfig(width=128, layers=4, heads=4, words=words),
        resampler=ResamplerConfig(latents=16, depth=1, heads=4, head_width=16, separate=False),
        cross_attention=CrossAttentionConfig(every=1, heads=4, head_width=16, gate=0.5),
    )
    return PolicyConfig(
        backbone=backbone,
        head=HeadConfig(hidden=128, layers=4, dropout=0.0),
        window=12,
        chunk=1,
        cameras=calvin_cameras(112, 112),
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What every comparison with the reference's way can be told."""
    names = ("small", *(name for name in PRESETS if name not in ("scratch", "tiny", "smollm2-135m")))
    parser.add_argument("--preset", choices=names, default="small", help="with random weights")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument(
        "--precision", choices=("auto", "fp32", "bf16"), default="auto", help="of ours; auto as trained"
    )
    parser.add_argument("--reference_precision", choices=("fp32", "bf16"), default="fp32", help="its own is fp32")
    parser.add_argument("--threads", type=int, default=int(os.environ.get("OMP_NUM_THREADS", cores())))


def parsed(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The arguments, with a precision in place of `auto`."""
    given = parser.parse_args()
    if given.precision == "auto":
        given.precision = "bf16" if computes_in_bf16(given.device) else "fp32"
    return given


def policy_of(name: str, vocabulary: int = MPT_VOCABULARY) -> PolicyConfig:
    """The small case, or a preset with random weights."""
    if name == "small":
        return small_policy(vocabulary)
    config = preset(name)
    return replace(config, backbone=replace(config.backbone, weights="random"))


def policy_for(config: PolicyConfig, switches: Collection[str], *, half: bool) -> RoboFlamingo:
    """A policy with what the reference does not train frozen, computed in the reference's way as the switches say.

    Args:
        config: what it is like.
        switches: see the head of this file.
        half: frozen matrices are stored as bf16.
    """
    torch.manual_seed(0)
    still = {name: replace(camera, shift=0) for name, camera in config.cameras.items()}
    changed = replace(config, cameras=still, auxiliary_weight=0.0)
    policy = make_policy(changed.with_words(SENTENCES), half=half)
    if switches:
        policy.backbone = ReferenceFlamingo(policy.backbone, switches)  # type: ignore[assignment]
    for name, parameter in policy.named_parameters():
        parameter.requires_grad = "gated_cross_attn_layer" in name or not any(part in name for part in FROZEN)
    return policy


class ReferenceFlamingo(nn.Module):
    """Takes the place of a policy's `Flamingo`, with its weights, and computes what it does in the reference's way.

    Args:
        ours: whose weights it takes over; not to be used any more.
        switches: the differences, see the head of this file.
    """

    def __init__(self, ours: Flamingo, switches: Collection[str]) -> None:
        super().__init__()
        self.ours, self._switches = ours, switches
        self._pixels: dict[int, Tensor] = {}
        self.width, self.visual_size, self.instructions = ours.width, ours.visual_size, ours.instructions
        self.cameras = ours.cameras
        if "cameras" in switches:
            self.their_vision_encoder = _their_vision_encoder(ours)
        if "attention" in switches:
            ours.perceiver = _their_resampler(ours.perceiver, ours.config)  # type: ignore[assignment]
            for number, further in enumerate(ours.perceiver_further):
                ours.perceiver_further[number] = _their_resampler(further, ours.config)  # type: ignore[arg-type]
        if "language" in switches:
            self.theirs = _their_language_model(ours)

    def see(self, images: Sequence[Tensor]) -> Tensor:
        """Images (N, H, W, 3) uint8 of both cameras -> visual tokens (N, R, Dv)."""
        ours = self.ours
        if "cameras" in self._switches:
            seen = [self._encoded(camera, each) for camera, each in enumerate(images)]
        else:
            seen = list(ours.vision_encoder(torch.cat(list(images))).chunk(len(images)))
        resamplers = (ours.perceiver, *(ours.perceiver_further or [ours.perceiver]))
        if "attention" in self._switches:  # theirs want media and frames apart, (N, 1, 1, V, D)
            tokens = [resample(x[:, None, None])[:, 0] for resample, x in zip(resamplers, seen, strict=True)]
        else:
            tokens = [resample(x) for resample, x in zip(resamplers, seen, strict=True)]
        return torch.cat(tokens, dim=1)

    def _encoded(self, camera: int, images: Tensor) -> Tensor:
        """Patch tokens by open_clip's own encoder, of pixels that the reference's loader has normed before."""
        if camera not in self._pixels:
            ours = self.ours.vision_encoder
            self._pixels[camera] = (images.permute(0, 3, 1, 2).to(ours.mean.dtype) - ours.mean) / ours.std
        encoder = self.their_vision_encoder
        return encoder.transformer(encoder._embeds(self._pixels[camera]))[:, 1:]

    def read(self, ids: Tensor, is_text: Tensor, sees: Tensor | None) -> Text:
        """Nothing is read before the images are there: ids in place of hidden states, padded to the longest."""
        if "language" not in self._switches:
            return self.ours.read(ids, is_text, sees)
        longest = int(is_text.sum(1).max())
        ids, is_text = ids[:, :longest], is_text[:, :longest]
        return Text(ids, {"attention_mask": is_text}, is_text, None)

    def forward(self, media: Tensor, text: Text) -> Tensor:
        """Visual tokens (N, R, Dv) and instructions -> hidden states (N, L, D)."""
        if "language" not in self._switches:
            hidden = self.ours(media, text)
        else:
            ids, is_text = (x.repeat_interleave(len(media) // len(x), dim=0) for x in (text.hidden, text.is_text))
            for layer in self.theirs._get_decoder_layers():
                layer.condition_vis_x(media[:, None])
            output = self.theirs(input_ids=ids, attention_mask=is_text, output_hidden_states=True)
            hidden = output.hidden_states[-2 if self.ours.config.language.output == "penultimate" else -1]
        if "logits" in self._switches:
            self.logits = F.linear(hidden, self.ours.lang_encoder.get_input_embeddings().weight)  # type: ignore[arg-type]
        return hidden


def _their_vision_encoder(ours: Flamingo) -> VisionTransformer:
    sizes = ours.config.vision
    with torch.device("meta"):
        theirs = VisionTransformer(
            sizes.image_size, sizes.patch_size, sizes.width, sizes.layers, sizes.heads, 4.0, output_dim=sizes.width,
            act_layer=QuickGELU if sizes.activation == "quick_gelu" else nn.GELU,
        )  # fmt: skip
    theirs.ln_post, theirs.proj = nn.Identity(), None
    theirs.load_state_dict(ours.vision_encoder.state_dict(), assign=True)
    return theirs


def _their_resampler(ours: nn.Module, config: BackboneConfig) -> nn.Module:
    sizes = config.resampler
    theirs = helpers.PerceiverResampler(
        dim=config.vision.width,
        depth=sizes.depth,
        dim_head=sizes.head_width,
        heads=sizes.heads,
        num_latents=sizes.latents,
    )
    theirs.load_state_dict(ours.state_dict(), assign=True)
    return theirs


def _their_language_model(ours: Flamingo) -> Any:
    """Transformers' MPT with open_flamingo's layers; norms of queries and keys, which it lacks, left out."""
    sizes, cross = ours.lang_encoder.config, ours.config.cross_attention
    with torch.device("meta"):
        theirs: Any = MptForCausalLM(sizes)
        extend_instance(theirs, flamingo_lm.FlamingoLMMixin)
        theirs.set_decoder_layers_attr_name("transformer.blocks")
        image = int(ours.instructions.ids("")[0])
        theirs.init_flamingo(image, sizes.d_model, ours.config.vision.width, cross.every, gradient_checkpointing=False)
        for layer in theirs._get_decoder_layers():
            if layer.gated_cross_attn_layer is not None:
                layer.gated_cross_attn_layer = helpers.GatedCrossAttentionBlock(
                    dim=sizes.d_model, dim_visual=ours.config.vision.width, dim_head=cross.head_width, heads=cross.heads
                )
    del theirs.old_decoder_blocks, theirs.gated_cross_attn_layers  # the same modules, a second time
    theirs.lm_head = nn.Identity()  # what the reference puts there
    weights = {f"transformer.{name}": tensor for name, tensor in ours.lang_encoder.state_dict().items()}
    theirs.load_state_dict({k: v for k, v in weights.items() if "_ln." not in k}, strict=True, assign=True)
    return theirs
