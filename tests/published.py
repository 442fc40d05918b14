"""Small models in the published formats, made by the very libraries that publish: what ours must read and equal."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from open_clip.transformer import VisionTransformer
from open_flamingo.src import flamingo, flamingo_lm
from open_flamingo.src.utils import extend_instance
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from policies import SENTENCES
from roboflamingo.backbone.config import BackboneConfig, CrossAttentionConfig, ResamplerConfig
from roboflamingo.backbone.language import LanguageConfig, with_special_tokens
from roboflamingo.backbone.vision import CLIP_MEAN, CLIP_STD, VisionConfig
from roboflamingo.heads import HeadConfig
from roboflamingo.policy.config import PolicyConfig, calvin_cameras

WIDTH, LAYERS, HEADS, EVERY = 32, 4, 4, 2
VISION = VisionConfig(image_size=28, patch_size=14, width=32, layers=1, heads=2, stem=False)
LANGUAGE_MODELS = {
    "mpt": {"d_model": WIDTH, "n_layers": LAYERS, "n_heads": HEADS, "max_seq_len": 64},
    "gpt_neox": {"hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
                 "intermediate_size": 64, "use_parallel_residual": False, "rotary_pct": 1.0},
    "opt": {"hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "ffn_dim": 64,
            "word_embed_proj_dim": WIDTH, "max_position_embeddings": 64, "dropout": 0.0},
    "llama": {"hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
              "intermediate_size": 64, "max_position_embeddings": 64},
}  # fmt: skip
LAYERS_NAMES = {
    "mpt": "transformer.blocks",
    "gpt_neox": "gpt_neox.layers",
    "opt": "model.decoder.layers",
    "llama": "model.layers",
}


class Clip(nn.Module):
    """What open_flamingo takes of a CLIP model."""

    def __init__(self) -> None:
        super().__init__()
        self.visual = VisionTransformer(
            VISION.image_size, VISION.patch_size, VISION.width, VISION.layers, VISION.heads, 4.0, output_dim=16,
            output_tokens=True,
        )  # fmt: skip


@dataclass
class Published:
    """A model of theirs and the files in which it is published.

    Attributes:
        model: open_flamingo's Flamingo.
        tokenizer: with OpenFlamingo's tokens.
        language: the folder of the language model.
        vision: the file of CLIP.
        checkpoint: OpenFlamingo's file, of what it trained.
    """

    model: Any
    tokenizer: Any
    language: Path
    vision: Path
    checkpoint: Path

    def config(self, **changed: Any) -> PolicyConfig:
        """A policy that reads them."""
        backbone = BackboneConfig(
            weights="published",
            checkpoint=str(self.checkpoint),
            vision=VisionConfig(**vars(VISION) | {"source": str(self.vision), "final_norm": True}),
            language=LanguageConfig(source=str(self.language)),
            resampler=ResamplerConfig(latents=64, depth=6, heads=8, head_width=64, separate=False),
            cross_attention=CrossAttentionConfig(every=EVERY, heads=8, head_width=64, gate=0.0),
        )
        values = {
            "backbone": backbone, "head": HeadConfig(hidden=16), "window": 3, "chunk": 2,
            "cameras": calvin_cameras(28, 28, 0, 0), "robot_obs": "none", "auxiliary_weight": 0.0,
        } | changed  # fmt: skip
        return PolicyConfig(**values)


def a_tokenizer(first: str | None = None) -> PreTrainedTokenizerFast:
    """A word-level tokenizer as a language model is published with: without padding, with an end of text.

    Args:
        first: a token that it begins every text with, as Llama's does.
    """
    words = ["</s>", "<unk>", "<s>", *sorted({word for sentence in SENTENCES for word in sentence.split()})]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    if first is not None:
        from tokenizers.processors import TemplateProcessing

        tokenizer.post_processor = TemplateProcessing(
            single=f"{first} $A", special_tokens=[(first, words.index(first))]
        )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", unk_token="<unk>")


def publish(folder: Path, kind: str, *, first: str | None = None) -> Published:
    """Makes a random model of theirs and writes its files."""
    torch.manual_seed(0)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = a_tokenizer(first)
    rows = len(tokenizer) + 5  # published tables have more rows than tokens
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, vocab_size=rows, **LANGUAGE_MODELS[kind]))
    randomise(model, 0.1)
    model.save_pretrained(folder / "language")
    tokenizer.save_pretrained(folder / "language")
    clip = Clip()
    torch.save(clip.state_dict(), folder / "clip.pt")

    with_special_tokens(tokenizer)
    extend_instance(model, flamingo_lm.FlamingoLMMixin)
    model.set_decoder_layers_attr_name(LAYERS_NAMES[kind])
    model.resize_token_embeddings(len(tokenizer))
    image, end = tokenizer.convert_tokens_to_ids(["<image>", "<|endofchunk|>"])
    theirs = flamingo.Flamingo(clip, model, end, image, VISION.width, EVERY)
    added = [p for name, p in theirs.named_parameters() if "perceiver" in name or "gated_cross_attn" in name]
    for parameter in added:
        nn.init.normal_(parameter, std=0.2)
    trained = {
        name: tensor
        for name, tensor in theirs.state_dict().items()
        if "perceiver" in name or "gated_cross_attn_layer." in name or name.endswith(("wte.weight", "embed_in.weight"))
        or "embed_tokens" in name
    }  # fmt: skip
    torch.save(trained, folder / "checkpoint.pt")
    return Published(theirs.eval(), tokenizer, folder / "language", folder / "clip.pt", folder / "checkpoint.pt")


def randomise(module: nn.Module, scale: float) -> None:
    """Weights that are all of a size, so that no part of the model hides behind another."""
    for parameter in module.parameters():
        nn.init.normal_(parameter, mean=float(parameter.ndim == 1), std=scale)


def pixels(images: torch.Tensor) -> torch.Tensor:
    """Images (N, H, W, 3) uint8 as CLIP takes them (N, 3, H, W)."""
    mean, std = (torch.tensor(value).view(3, 1, 1) for value in (CLIP_MEAN, CLIP_STD))
    return (images.permute(0, 3, 1, 2) / 255 - mean) / std


def as_mosaic(folder: Path, target: Path) -> None:
    """Rewrites the folder of an mpt as one of MPT-1B's type: other keys in config.json, other parameter names."""
    from safetensors.torch import load_file, save_file

    target.mkdir()
    settings = json.loads((folder / "config.json").read_text())
    mosaic = {key: settings[key] for key in ("d_model", "n_layers", "n_heads", "vocab_size")}
    mosaic |= {"model_type": "mosaic_gpt", "mlp_ratio": 4, "attn_qk_ln": True, "alibi": True, "no_bias": True}
    (target / "config.json").write_text(json.dumps(mosaic))
    for file in folder.glob("*token*"):
        (target / file.name).write_bytes(file.read_bytes())
    theirs = {
        "norm_1": "ln_1",
        "norm_2": "ln_2",
        "ffn.up_proj": "mlp.mlp_up",
        "ffn.down_proj": "mlp.mlp_down",
        "norm_f": "ln_f",
    }
    tensors = {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        for ours, other in theirs.items():
            name = name.replace(ours, other)
        tensors[name] = tensor
        if name.endswith("attn.Wqkv.weight"):
            for norm in ("q_ln", "k_ln"):
                tensors[name.replace("Wqkv", norm)] = 1 + 0.1 * torch.randn(settings["d_model"])
    save_file(tensors, target / "model.safetensors")
