"""Makes policies: with random weights, or with published ones read from a folder, a file, a package or the hub."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from calvin_eval.system.errors import UserError
from roboflamingo.backbone.decoders import DECODERS, NOT_READ, transformers_config
from roboflamingo.backbone.filling import complete, halve, randomise
from roboflamingo.backbone.flamingo import Flamingo
from roboflamingo.backbone.language import LanguageConfig
from roboflamingo.backbone.mpt import mosaic_settings
from roboflamingo.policy.config import PolicyConfig
from roboflamingo.policy.roboflamingo import RoboFlamingo
from roboflamingo.weights.files import WeightsError, read_tensors
from roboflamingo.weights.hub import checkpoint_file
from roboflamingo.weights.key_names import Problem, assign, flamingo_names, language_names
from roboflamingo.weights.language_files import LanguageFiles, find_language, read_tokenizer
from roboflamingo.weights.vision_files import read_vision
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
    files = find_language(backbone)
    seen, vision, seen_in = read_vision(backbone.vision)
    tokenizer, added = read_tokenizer(files)
    language = read_language(files, backbone.language, len(tokenizer))
    config = replace(config, backbone=replace(backbone, language=language, vision=vision))
    policy = RoboFlamingo(config, tokenizer, empty=True)
    if half:
        _halve_frozen(policy.backbone, trained)
    fill_language(policy, files, added)
    if seen_in is not None:
        fill_vision(policy, seen, seen_in)
    if config.backbone.checkpoint is not None:
        fill_flamingo(policy, checkpoint_file(config.backbone.checkpoint), allow)
    policy.backbone.copy_residual()
    complete(policy.backbone)
    return policy


def read_language(files: LanguageFiles, config: LanguageConfig, tokens: int) -> LanguageConfig:
    """The same with the sizes and settings that the files say, and a row for every token.

    Raises:
        WeightsError: config.json is missing or damaged, of an architecture that does not exist here, or asks for
            what is not run here. Names file and key.
    """
    path, settings = files.config, files.settings()
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


def fill_language(policy: RoboFlamingo, files: LanguageFiles, added: int) -> None:
    """Reads the language model's weights.

    Args:
        policy: with memory for them, or without.
        files: of the language model.
        added: tokens that its tokenizer was given here: rows that the table need not have. They begin randomly.
    """
    language = policy.config.backbone.language
    tensors = language_names(files.tensors(), DECODERS[language.kind])
    _fill_part(policy, "lang_encoder", tensors, files.path, added)


def fill_vision(policy: RoboFlamingo, tensors: dict[str, torch.Tensor], source: Path) -> None:
    """Takes the vision encoder's weights, by our names."""
    _fill_part(policy, "vision_encoder", without_unused_norm(policy, tensors), source)


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
