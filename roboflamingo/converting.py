"""Turns OpenFlamingo and RoboFlamingo checkpoints into policy folders."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from roboflamingo.backbone.decoders import DECODERS
from roboflamingo.backbone.language import LanguageConfig
from roboflamingo.backbone.vision import VisionConfig
from roboflamingo.checkpoint import save_policy
from roboflamingo.hub import language_folder
from roboflamingo.making import make_policy, without_unused_norm
from roboflamingo.policy import PolicyConfig, RoboFlamingo
from roboflamingo.weights import Problem, WeightsError, assign, flamingo_names, read_tensors


def convert(checkpoint: Path, out: Path, config: PolicyConfig, allow: Collection[Problem] = ()) -> RoboFlamingo:
    """Writes a policy folder that holds everything.

    What the checkpoint's tensors say about the policy (head, chunk, resamplers, cross-attention) is taken from them,
    the rest from `config`. Frozen weights that the checkpoint lacks come from the sources that `config` names. An
    OpenFlamingo checkpoint, which has no head, gives a policy with a random one, to begin training from.

    Args:
        checkpoint: of OpenFlamingo (`checkpoint.pt`) or RoboFlamingo (`.pth`).
        out: the policy folder to write.
        config: what the checkpoint does not say.
        allow: problems that are no error.

    Returns:
        The policy.

    Raises:
        WeightsError: a file is missing, broken, or does not fit.
    """
    if config.backbone.weights == "published":
        config = replace(config, backbone=replace(config.backbone, language=_architecture(config.backbone.language)))
    kind = config.backbone.language.kind
    tensors = flamingo_names(read_tensors(checkpoint), kind)
    if not any(name.startswith("head.") for name in tensors):
        policy = make_policy(
            replace(config, backbone=replace(config.backbone, checkpoint=str(checkpoint))), allow=allow
        )
    else:
        policy = make_policy(described(tensors, config, kind))
        tensors = without_unused_norm(policy, tensors)
        assign(policy, tensors, _needed(policy, tensors), checkpoint, allow)
    save_policy(policy.eval(), out)
    return policy


def _architecture(config: LanguageConfig) -> LanguageConfig:
    """With the kind that the folder says; of MPT-1B, the hidden states that its remote code gave the reference."""
    folder = language_folder(config.source or "")
    path = folder / "config.json"
    if not path.is_file():
        raise WeightsError(f"{path} does not exist; {folder} is no language model's folder")
    kind = json.loads(path.read_text(encoding="utf-8")).get("model_type")
    return replace(config, kind="mpt", output="penultimate") if kind == "mosaic_gpt" else replace(config, kind=kind)


def described(tensors: Mapping[str, Tensor], config: PolicyConfig, kind: str) -> PolicyConfig:
    """The config with what a RoboFlamingo checkpoint's tensors say.

    Args:
        tensors: by our names.
        config: the rest.
        kind: of the language model.

    Raises:
        WeightsError: the head is not RoboFlamingo's LSTM.
    """
    if "head.rnn.weight_hh_l0" not in tensors or "head.output.gripper.0.weight" not in tensors:
        raise WeightsError("of RoboFlamingo's heads the LSTM can be converted; this checkpoint has another")
    linear = sorted(
        (int(match[1]), len(tensor))
        for name, tensor in tensors.items()
        if (match := re.fullmatch(r"head\.output\.gripper\.(\d+)\.weight", name))
    )
    widths = [width for _, width in linear]
    hidden = tensors["head.rnn.weight_hh_l0"].shape[1]
    head = replace(
        config.head,
        kind="lstm",
        hidden=hidden,
        layers=sum(name.startswith("head.rnn.weight_hh_l") for name in tensors),
        perceptrons=tuple(widths[:-1]),
    )
    backbone = config.backbone
    resampler = replace(backbone.resampler, separate=any(".perceiver_gripper." in name for name in tensors))
    if "backbone.perceiver.latents" in tensors:
        depth = {name.split(".")[3] for name in tensors if name.startswith("backbone.perceiver.layers.")}
        resampler = replace(resampler, latents=len(tensors["backbone.perceiver.latents"]), depth=len(depth))
    cross = backbone.cross_attention
    layers = DECODERS[kind].layers_name.count(".") + 2
    gated = sorted({int(name.split(".")[layers + 1]) for name in tensors if ".gated_cross_attn_layer." in name})
    if len(gated) > 1:
        cross = replace(cross, every=gated[1] - gated[0])
    vision = _vision(tensors, backbone.vision)
    backbone = replace(backbone, resampler=resampler, cross_attention=cross, vision=vision)
    return replace(config, backbone=backbone, head=head, chunk=widths[-1], pool_padding=True)


def _vision(tensors: Mapping[str, Tensor], config: VisionConfig) -> VisionConfig:
    """Sizes of a vision encoder whose weights are in the checkpoint; heads are as wide as CLIP's."""
    names = {name.removeprefix("backbone.vision_encoder.") for name in tensors if ".vision_encoder." in name}
    if "conv1.weight" not in names:
        return config
    projection = tensors["backbone.vision_encoder.conv1.weight"]
    width, patch = projection.shape[0], projection.shape[-1]
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


def _needed(policy: RoboFlamingo, tensors: Mapping[str, Tensor]) -> list[str]:
    """What a RoboFlamingo checkpoint must hold: what was trained; and the rest, if there is nothing to read it from."""
    from_files = policy.config.backbone.weights == "published"
    trained = ("head.", "backbone.perceiver")
    return [
        name
        for name in policy.state_dict()
        if not from_files or name.startswith(trained) or "gated_cross_attn_layer" in name
    ]
