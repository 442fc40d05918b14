"""Makes policies: with random weights, or with published ones read from a folder, a file or the hub."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from calvin_eval.system.errors import UserError
from calvin_eval.system.files import read_json
from roboflamingo.backbone.decoders import DECODERS, NOT_READ, transformers_config
from roboflamingo.backbone.encoders import VIT, VisionConfig
from roboflamingo.backbone.filling import complete, halve, randomise
from roboflamingo.backbone.flamingo import Flamingo
from roboflamingo.backbone.language import LanguageConfig
from roboflamingo.backbone.mpt import mosaic_settings
from roboflamingo.policy.config import PolicyConfig
from roboflamingo.policy.roboflamingo import RoboFlamingo
from roboflamingo.weights.files import WeightsError, read_tensors
from roboflamingo.weights.hub import checkpoint_file, clip_file, language_folder
from roboflamingo.weights.key_names import Problem, assign, flamingo_names, language_names, vision_names
from roboflamingo.weights.tokenizer import read_tokenizer
from roboflamingo.weights.vlm import fill_vlm, vlm_folder, with_vlm

ADDED = ("gated_cross_attn_layer", "res_layer", "adapter", "lora_")
"""Parts of the names of what a Flamingo adds to a language model."""


def make_policy(
    config: PolicyConfig, *, half: bool = False, trained: Collection[str] = (), allow: Collection[Problem] = ()
) -> RoboFlamingo:
    """A new policy. Its config may differ from the given one: sizes come from the language model's folder.

    Args:
        config: what to make; `backbone.weights` says whether published weights are read.
        half: stores the matrices of vision encoder and language model as bf16 (see `halve`), from the start.
        trained: of `vision` and `language`, what will train and so stays fp32.
        allow: what may be wrong with OpenFlamingo's checkpoint.

    Raises:
        WeightsError: published weights are missing, broken or do not fit. Names file and tensors, and what to do.
    """
    backbone = config.backbone
    if backbone.weights == "random" and backbone.language.source is None:
        return RoboFlamingo(config)  # made to learn from nothing: its libraries' own beginnings
    if backbone.weights == "random":
        policy = RoboFlamingo(config, empty=True)
        if half:
            _halve_frozen(policy.backbone, trained)
        randomise(policy.backbone)
        return policy
    if (own := vlm_folder(backbone.checkpoint)) is not None:
        policy = RoboFlamingo(replace(config, backbone=with_vlm(backbone, own)))
        fill_vlm(policy.backbone, own)
        policy.backbone.copy_residual()
        if half:
            _halve_frozen(policy.backbone, trained)
        return policy
    reads_clip = backbone.vision.kind == VIT  # encoders of other packages see to their weights themselves
    if backbone.language.source is None or (reads_clip and backbone.vision.source is None):
        raise WeightsError(
            "backbone.weights is published, but language.source or vision.source is not set; "
            "set both, choose a preset that has them, or set weights to random"
        )
    folder = language_folder(backbone.language.source)
    clip = clip_file(backbone.vision.source or "") if reads_clip else None
    seen = {} if clip is None else vision_names(read_tensors(clip))
    tokenizer, added = read_tokenizer(folder)
    language = read_language(folder, backbone.language, len(tokenizer))
    try:
        vision = vision_sizes(seen, backbone.vision)
    except ValueError as error:
        raise WeightsError(f"{clip}: {error}") from error
    config = replace(config, backbone=replace(backbone, language=language, vision=vision))
    policy = RoboFlamingo(config, tokenizer, empty=True)
    if half:
        _halve_frozen(policy.backbone, trained)
    fill_language(policy, folder, added)
    if clip is not None:
        fill_vision(policy, seen, clip)
    if config.backbone.checkpoint is not None:
        fill_flamingo(policy, checkpoint_file(config.backbone.checkpoint), allow)
    policy.backbone.copy_residual()
    complete(policy.backbone)
    return policy


def read_language(folder: Path, config: LanguageConfig, tokens: int) -> LanguageConfig:
    """The same with sizes and settings of the folder's config.json, and a row for every token.

    Raises:
        WeightsError: config.json is missing or damaged, of an architecture that does not exist here, or asks for
            what is not run here. Names file and key.
    """
    path = folder / "config.json"
    settings = read_settings(folder)
    kind = settings["model_type"]
    if kind == "mosaic_gpt":
        settings, kind = mosaic_settings(settings), "mpt"
    if kind not in DECODERS:
        raise WeightsError(f"{path} is of model_type {kind!r}; choose one of {', '.join(DECODERS)} or mosaic_gpt")
    sizes = [settings.pop(name, None) for name in DECODERS[kind].names]
    for name, value in zip(DECODERS[kind].names, sizes, strict=True):
        if type(value) is not int or value < 1:
            raise WeightsError(f"{path}: {name} is {value!r}, not a whole number above 0")
    width, layers, heads = sizes
    settings = {key: value for key, value in settings.items() if key not in (*NOT_READ, "vocab_size", "use_cache")}
    try:
        language = replace(
            config, kind=kind, width=width, layers=layers, heads=heads, settings=settings, vocabulary=tokens, words=()
        )
        transformers_config(language, tokens)
    except (UserError, ValueError) as error:
        raise WeightsError(f"{path}: {error}") from error
    return language


def read_settings(folder: Path) -> dict[str, Any]:
    """What is in the config.json of a language model's folder; it has a `model_type`.

    Raises:
        WeightsError: there is none, or it is damaged.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise WeightsError(f"{path} does not exist; {folder} is no language model's folder")
    try:
        settings = read_json(path, "the configuration of a language model")
    except UserError as error:
        raise WeightsError(str(error)) from error
    if not isinstance(settings, dict) or not isinstance(settings.get("model_type"), str):
        raise WeightsError(f"{path} names no model_type; it should hold the configuration of a language model")
    return settings


def fill_language(policy: RoboFlamingo, folder: Path, added: int) -> None:
    """Reads the language model's weights.

    Args:
        policy: with memory for them, or without.
        folder: of the language model.
        added: tokens that its tokenizer was given here: rows that the table need not have. They begin randomly.
    """
    language = policy.config.backbone.language
    tensors = language_names(read_tensors(folder), DECODERS[language.kind])
    _fill_part(policy, "lang_encoder", tensors, folder, added)


def fill_vision(policy: RoboFlamingo, tensors: dict[str, torch.Tensor], source: Path) -> None:
    """Takes the vision encoder's weights, by our names."""
    _fill_part(policy, "vision_encoder", without_unused_norm(policy, tensors), source)


def vision_sizes(tensors: Mapping[str, torch.Tensor], config: VisionConfig) -> VisionConfig:
    """Sizes of the vision encoder whose weights these are, by our names; the config's where they are none.

    Heads are as wide as CLIP's unless the config knows better, and no tensor tells the activation.

    Raises:
        ValueError: they are not CLIP's.
    """
    names = {name.removeprefix("backbone.vision_encoder.") for name in tensors if ".vision_encoder." in name}
    if "conv1.weight" not in names:
        return config
    projection = tensors["backbone.vision_encoder.conv1.weight"]
    width, patch = projection.shape[0], projection.shape[-1]
    if projection.ndim != 4 or "positional_embedding" not in names:
        raise ValueError(
            "the vision encoder is not CLIP's: conv1.weight or positional_embedding is missing or misshapen"
        )
    patches = len(tensors["backbone.vision_encoder.positional_embedding"]) - 1
    layers = {name.split(".")[2] for name in names if name.startswith("transformer.resblocks.")}
    heads = config.heads if config.width == width else max(1, width // 64)
    return replace(
        config,
        image_size=patch * round(patches**0.5),
        patch_size=patch,
        width=width,
        layers=len(layers),
        heads=heads,
        stem=False,
    )


def without_unused_norm(policy: RoboFlamingo, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same without CLIP's last norm, unless the vision encoder has it (`VisionConfig.final_norm`)."""
    if policy.config.backbone.vision.final_norm:
        return tensors
    return {name: tensor for name, tensor in tensors.items() if ".vision_encoder.ln_post." not in name}


def _fill_part(policy: RoboFlamingo, part: str, tensors: dict[str, torch.Tensor], source: Path, added: int = 0) -> None:
    needed = [
        name
        for name in policy.state_dict()
        if name.startswith(f"backbone.{part}.") and not any(word in name for word in ADDED)
    ]
    assign(policy, tensors, needed, source, added=added)


def fill_flamingo(policy: RoboFlamingo, path: Path, allow: Collection[Problem] = ()) -> None:
    """Reads OpenFlamingo's weights; further resamplers begin as copies of the first, as RoboFlamingo's second does.

    Raises:
        WeightsError: resampler or cross-attention is not whole, or does not fit.
    """
    tensors = flamingo_names(read_tensors(path), policy.config.backbone.language.kind)
    needed = [
        name
        for name in policy.state_dict()
        if name.startswith("backbone.perceiver.") or "gated_cross_attn_layer" in name
    ]
    assign(policy, tensors, needed, path, allow)
    for number, resampler in enumerate(policy.backbone.perceiver_further):
        if not any(name.startswith(f"backbone.perceiver_further.{number}.") for name in tensors):
            resampler.load_state_dict(policy.backbone.perceiver.state_dict())


def _halve_frozen(backbone: Flamingo, trained: Collection[str]) -> None:
    """Vision encoder and decoder layers, not what is added to them, nor those that train."""
    parts: list[nn.Module] = [] if "vision" in trained else [backbone.vision_encoder]
    parts += [] if "language" in trained else [layer.decoder_layer for layer in backbone.layers]
    for part in parts:
        halve(part, also_trained=True)
