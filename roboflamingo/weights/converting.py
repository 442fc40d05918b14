"""Turns OpenFlamingo and RoboFlamingo checkpoints into policy folders."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from calvin_eval.system.errors import UserError
from roboflamingo.backbone.config import CrossAttentionConfig, ResamplerConfig
from roboflamingo.backbone.decoders import DECODERS
from roboflamingo.backbone.language import LanguageConfig
from roboflamingo.policy.config import PolicyConfig
from roboflamingo.policy.roboflamingo import RoboFlamingo
from roboflamingo.weights.checkpoint import check_replaceable, save_policy
from roboflamingo.weights.files import WeightsError, read_tensors
from roboflamingo.weights.key_names import Problem, assign, flamingo_names
from roboflamingo.weights.language_files import open_language
from roboflamingo.weights.making import make_policy, without_unused_norm
from roboflamingo.weights.vision_files import clip_sizes, read_vision


def convert(
    checkpoint: Path,
    out: Path,
    config: PolicyConfig,
    allow: Collection[Problem] = (),
    *,
    overwrite: bool = False,
) -> RoboFlamingo:
    """Writes a policy folder that holds everything.

    What the checkpoint's tensors say about the policy (head, chunk, resamplers, cross-attention) is taken from them,
    the rest from `config`. Frozen weights that the checkpoint lacks come from the sources that `config` names. An
    OpenFlamingo checkpoint, which has no head, gives a policy with a random one, to begin training from.

    Args:
        checkpoint: of OpenFlamingo (`checkpoint.pt`) or RoboFlamingo (`.pth`).
        out: the policy folder to write.
        config: what the checkpoint does not say.
        allow: problems that are no error.
        overwrite: replaces a policy that is in the folder.

    Returns:
        The policy.

    Raises:
        WeightsError: a file is missing, broken, or does not fit.
        UserError: the folder holds a policy already, or something else.
    """
    check_replaceable(out)
    if out.is_dir() and any(out.iterdir()) and not overwrite:
        raise UserError(f"{out} holds a policy already; choose another folder, or say --overwrite true to replace it")
    if not checkpoint.exists():  # said before anything is downloaded
        raise WeightsError(f"{checkpoint} does not exist; give OpenFlamingo's or RoboFlamingo's file")
    if config.backbone.weights == "published":
        config = replace(config, backbone=replace(config.backbone, language=_architecture(config.backbone.language)))
    kind = config.backbone.language.kind
    tensors = flamingo_names(read_tensors(checkpoint), kind)
    if not any(name.startswith("head.") for name in tensors):
        policy = make_policy(
            replace(config, backbone=replace(config.backbone, checkpoint=str(checkpoint))), allow=allow
        )
    else:
        if config.backbone.weights == "random" and "backbone.vision_encoder.conv1.weight" not in tensors:
            raise WeightsError(
                f"{checkpoint} holds trained tensors only; name the model that they belong to "
                "(policy.backbone.preset), or set policy.backbone.weights to published, and language.source and "
                "vision.source to folder and file"
            )
        try:
            config = described(tensors, config, kind)
        except (KeyError, IndexError, ValueError, ArithmeticError) as error:
            if isinstance(error, UserError):  # of another file
                raise
            reason = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
            raise WeightsError(f"{checkpoint} cannot be converted: {reason}") from error
        policy = make_policy(config)
        tensors = without_unused_norm(policy, tensors)
        assign(policy, tensors, _needed(policy, tensors), checkpoint, allow)
    save_policy(policy.eval(), out)
    return policy


def _architecture(config: LanguageConfig) -> LanguageConfig:
    """With the kind that the folder says; of MPT-1B, the hidden states that its remote code gave the reference."""
    files = open_language(config.source or "")
    kind = files.settings()["model_type"]
    if kind != "mosaic_gpt" and kind not in DECODERS:
        raise WeightsError(
            f"{files.config} is of model_type {kind!r}; choose one of {', '.join(DECODERS)} or mosaic_gpt"
        )
    return replace(config, kind="mpt", output="penultimate") if kind == "mosaic_gpt" else replace(config, kind=kind)


def described(tensors: Mapping[str, Tensor], config: PolicyConfig, kind: str) -> PolicyConfig:
    """The config with what a RoboFlamingo checkpoint's tensors say.

    Args:
        tensors: by our names.
        config: the rest.
        kind: of the language model.

    Raises:
        ValueError: the head is not RoboFlamingo's LSTM, or tensors contradict each other.
        KeyError: a tensor that says a size is missing.
    """
    if "head.rnn.weight_hh_l0" not in tensors or "head.output.parts.gripper.0.weight" not in tensors:
        raise ValueError("of RoboFlamingo's heads the LSTM can be converted; this checkpoint has another, or a part")
    linear = sorted(
        (int(match[1]), len(tensor))
        for name, tensor in tensors.items()
        if (match := re.fullmatch(r"head\.output\.parts\.gripper\.(\d+)\.weight", name))
    )
    widths = [width for _, width in linear]
    hidden = tensors["head.rnn.weight_hh_l0"].shape[1]
    head = replace(
        config.head.as_kind("lstm"),
        hidden=hidden,
        layers=sum(name.startswith("head.rnn.weight_hh_l") for name in tensors),
        perceptrons=tuple(widths[:-1]),
    )
    backbone = config.backbone
    resampler = replace(backbone.resampler, separate=any(".perceiver_further." in name for name in tensors))
    if "backbone.perceiver.latents" in tensors:
        depth = {name.split(".")[3] for name in tensors if name.startswith("backbone.perceiver.layers.")}
        resampler = replace(resampler, latents=len(tensors["backbone.perceiver.latents"]), depth=len(depth))
        heads, width = _attention(tensors["backbone.perceiver.layers.0.0.to_q.weight"], resampler)
        resampler = replace(resampler, heads=heads, head_width=width)
    cross = backbone.cross_attention
    gates = [name for name in tensors if name.endswith(".gated_cross_attn_layer.attn.to_q.weight")]
    place = DECODERS[kind].layers_name.count(".") + 3  # of the layer's number in a name
    gated = sorted({int(name.split(".")[place]) for name in gates})
    if gated:
        heads, width = _attention(tensors[gates[0]], cross)
        cross = replace(cross, heads=heads, head_width=width)
    if len(gated) > 1:
        cross = replace(cross, every=gated[1] - gated[0])
    vision = (
        read_vision(backbone.vision)[1] if backbone.weights == "published" else clip_sizes(tensors, backbone.vision)
    )
    backbone = replace(backbone, resampler=resampler, cross_attention=cross, vision=vision)
    return replace(
        config, backbone=backbone, head=head, chunk=widths[-1], pool_padding=True, robot_obs="none", vectors=(),
        cameras={name: replace(camera, size=vision.image_size) for name, camera in config.cameras.items()},
        auxiliary_weight=0.0,
    )  # fmt: skip


def _attention(queries: Tensor, config: ResamplerConfig | CrossAttentionConfig) -> tuple[int, int]:
    """Heads and their width; open_flamingo's heads are 64 wide, which no tensor says."""
    inner = len(queries)
    if inner == config.heads * config.head_width:
        return config.heads, config.head_width
    return inner // 64, 64


def _needed(policy: RoboFlamingo, tensors: Mapping[str, Tensor]) -> list[str]:
    """What a RoboFlamingo checkpoint must hold: what was trained; and the rest, if there is nothing to read it from."""
    from_files = policy.config.backbone.weights == "published"
    trained = ("head.", "backbone.perceiver")
    return [
        name
        for name in policy.state_dict()
        if not from_files or name.startswith(trained) or "gated_cross_attn_layer" in name
    ]
