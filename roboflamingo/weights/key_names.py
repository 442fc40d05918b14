"""Puts published weights in their places by their own key names: language models, CLIP, OpenFlamingo, RoboFlamingo.

What a file lacks, what it has besides, and what has another shape is listed by name
and is an error unless allowed. Key names are described where they are translated.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from roboflamingo.backbone.decoders import DECODERS, Decoder
from roboflamingo.backbone.mpt import MOSAIC_NAMES
from roboflamingo.weights.files import FLOATS, WeightsError

Problem = Literal["missing", "unexpected", "shape"]
SHOWN = 20
"""Names of each problem that a message lists."""

_HEAD_NAMES = {
    "lm_head.rnn.": "head.rnn.",
    "lm_head.actions.mlp.": "head.output.parts.pose.",
    "lm_head.gripper.mlp.": "head.output.parts.gripper.",
}
"""Beginnings of the names of RoboFlamingo's LSTM head, and of ours."""


def language_names(tensors: Mapping[str, Tensor], decoder: Decoder) -> dict[str, Tensor]:
    """A published language model's tensors by our names; logits and buffers that are computed anew left out."""
    named = {}
    for key, tensor in tensors.items():
        if key.startswith(("lm_head.", "embed_out.")) or key.endswith(_COMPUTED):
            continue
        name = key.removeprefix(decoder.prefix)
        for theirs, ours in MOSAIC_NAMES.items():
            name = name.replace(theirs, ours)
        number, _, rest = name.removeprefix(f"{decoder.layers_name}.").partition(".")
        if name.startswith(f"{decoder.layers_name}.") and rest:
            name = f"{decoder.layers_name}.{number}.decoder_layer.{rest}"
        named[f"backbone.lang_encoder.{name}"] = tensor
    return named


_COMPUTED = ("attn_bias", "rotary_emb.inv_freq", "attention.bias", "attention.masked_bias")
"""Ends of the names of buffers that some published files hold."""


def vision_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A CLIP model's, or its vision encoder's, tensors by our names; what only the pooled embedding needs left out."""
    prefix = "visual." if any(key.startswith("visual.") for key in tensors) else ""
    return {
        f"backbone.vision_encoder.{key.removeprefix(prefix)}": tensor
        for key, tensor in tensors.items()
        if key.startswith(prefix) and key != f"{prefix}proj"
    }


def flamingo_names(tensors: Mapping[str, Tensor], kind: str) -> dict[str, Tensor]:
    """An OpenFlamingo or RoboFlamingo state dict by our names; keys that mean nothing here keep theirs.

    Both hold `perceiver.*` and the cross-attention, which appears inside the language model's layers, in a list of
    its own (`gated_cross_attn_layers`), or in both; so do the decoder layers (`old_decoder_blocks`). RoboFlamingo
    puts `module.` before everything, and may have a second resampler, `perceiver_gripper.*`.

    Args:
        tensors: by their names.
        kind: of the language model, a key of `DECODERS`.
    """
    decoder = DECODERS[kind]
    tensors = {key.removeprefix("module."): tensor for key, tensor in tensors.items()}
    clip = any(key.startswith("vision_encoder.visual.") for key in tensors)
    named = {}
    for key, tensor in tensors.items():
        name = _flamingo_name(key, decoder, clip)
        if name is not None:
            named[name] = tensor
    return named


def _flamingo_name(key: str, decoder: Decoder, clip: bool) -> str | None:
    """Our name for one key, None for what is not needed."""
    layers = f"backbone.lang_encoder.{decoder.layers_name}"
    for theirs, ours in _HEAD_NAMES.items():
        if key.removeprefix("lang_encoder.").startswith(theirs):
            return ours + key.removeprefix("lang_encoder.").removeprefix(theirs)
    if key in ("lang_encoder.lm_head.weight", "lang_encoder.embed_out.weight") or key.endswith(_COMPUTED):
        return None
    if clip and key.startswith("vision_encoder.") and not key.startswith("vision_encoder.visual."):
        return None  # CLIP's text encoder
    if key.startswith("vision_encoder."):
        part = key.removeprefix("vision_encoder.").removeprefix("visual.")
        return None if part == "proj" else f"backbone.vision_encoder.{part}"
    if match := re.match(r"lang_encoder\.(gated_cross_attn_layers|old_decoder_blocks)\.(\d+)\.(.*)", key):
        part = "gated_cross_attn_layer" if match[1] == "gated_cross_attn_layers" else "decoder_layer"
        return f"{layers}.{match[2]}.{part}.{_ours(match[3])}"
    if key.startswith("lang_encoder."):
        return f"backbone.lang_encoder.{_ours(key.removeprefix('lang_encoder.').removeprefix(decoder.prefix))}"
    if key.startswith("perceiver_gripper."):
        return f"backbone.perceiver_further.0.{key.removeprefix('perceiver_gripper.')}"
    return f"backbone.{key}" if key.startswith("perceiver.") else key


def _ours(name: str) -> str:
    """A name inside MPT-1B as ours; the cross-attention's own names never match."""
    for theirs, ours in MOSAIC_NAMES.items():
        name = name.replace(theirs, ours)
    return name


def assign(
    module: nn.Module,
    tensors: Mapping[str, Tensor],
    needed: Iterable[str],
    source: Path | str,
    allow: Collection[Problem] = (),
    *,
    added: int = 0,
) -> None:
    """Puts tensors into a module: copies them, or takes them over where it has no memory yet.

    The token embedding may have more rows than the module's, as published tables have more rows than tokens; they are
    cut. It may have `added` fewer; those rows begin randomly, as large as the others.

    Args:
        module: what to fill.
        tensors: by the module's names.
        needed: names that must be there.
        source: where the tensors came from, for messages.
        allow: problems that are no error.
        added: tokens that were added to the tokenizer after the tensors were made.

    Raises:
        WeightsError: something is missing, unexpected, of the wrong shape, quantised or not finite; lists it by name.
    """
    own = module.state_dict(keep_vars=True)
    table = _token_embedding(module)
    wrong = {
        name: problem
        for name, tensor in tensors.items()
        if name in own and (problem := _misfit(tensor, own[name], added if name == table else None))
    }
    problems: dict[Problem, list[str]] = {
        "missing": sorted(set(needed) - tensors.keys()),
        "unexpected": sorted(tensors.keys() - own.keys()),
        "shape": [f"{name} {wrong[name]}" for name in sorted(wrong)],
    }
    message = [_listed(problem, names) for problem, names in problems.items() if names and problem not in allow]
    if message:
        raise WeightsError(f"{source} does not fit. {'; '.join(message)}")
    fitting = {name: tensor for name, tensor in tensors.items() if name in own and name not in wrong}
    if infinite := sorted(name for name, tensor in fitting.items() if not _is_finite(tensor, own[name].dtype)):
        raise WeightsError(f"{source} holds numbers that are not finite. {_listed('in', infinite)}")
    taken = {}
    with torch.no_grad():
        for name, tensor in fitting.items():
            if own[name].is_meta:
                taken[name] = _with_rows(tensor, own[name].shape).to(own[name].dtype)
            else:
                rows = slice(min(len(own[name]), len(tensor))) if tensor.ndim else ...
                own[name].data[rows].copy_(tensor[rows])
    module.load_state_dict(taken, strict=False, assign=True)


def _token_embedding(module: nn.Module) -> str | None:
    """The name of the token embedding's table, if the module has a language model."""
    for name, part in module.named_modules():
        if isinstance(part, PreTrainedModel):
            inner = part.get_input_embeddings()
            for inside, candidate in part.named_modules():
                if candidate is inner:
                    return f"{name}.{inside}.weight" if name else f"{inside}.weight"
    return None


def _misfit(tensor: Tensor, own: Tensor, added: int | None) -> str | None:
    """Why a tensor cannot take the place of the module's own, None if it can.

    Args:
        tensor: from a file.
        own: the module's.
        added: rows that it may lack, if it is the token embedding.
    """
    if own.is_floating_point() and tensor.dtype not in FLOATS:
        return f"is {str(tensor.dtype).removeprefix('torch.')}, as quantised weights are; take unquantised ones"
    if tensor.shape == own.shape:
        return None
    if added is None or tensor.shape[1:] != own.shape[1:] or not tensor.ndim:
        return f"{tuple(tensor.shape)}, here {tuple(own.shape)}"
    if len(tensor) < len(own) - added:
        return (
            f"has rows for {len(tensor)} tokens, but the tokenizer knows {len(own)}, of which only {added} were added "
            "here; tokenizer and weights are not of the same model"
        )
    return None


def _is_finite(tensor: Tensor, dtype: torch.dtype) -> bool:
    """Whether all numbers are finite, also as the type in which they will be kept."""
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    low, high = torch.aminmax(tensor)  # NaN where any number is
    return bool(torch.stack([low, high]).to(dtype).isfinite().all())


def _listed(problem: str, names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{problem}: {', '.join(names[:SHOWN])}{more}"


def _with_rows(table: Tensor, shape: torch.Size) -> Tensor:
    """A table with its last rows cut, or with random ones as large as the others added."""
    if table.shape == shape:
        return table
    more = shape[0] - len(table)
    if more <= 0:
        return table[: shape[0]]
    return torch.cat([table, table.std() * torch.randn(more, *shape[1:], dtype=table.dtype)])
