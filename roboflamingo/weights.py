"""Reads published weights by their own key names: language models, CLIP, OpenFlamingo, RoboFlamingo.

Nothing is unpickled but tensors. What a file lacks, what it has besides, and what has another shape is listed by name
and is an error unless allowed. Key names are described where they are translated.
"""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from calvin_eval.system.errors import UserError
from roboflamingo.backbone.decoders import DECODERS, Decoder
from roboflamingo.backbone.mpt import MOSAIC_NAMES

Problem = Literal["missing", "unexpected", "shape"]
SHOWN = 20
"""Names of each problem that a message lists."""

_HEAD_NAMES = {
    "lm_head.rnn.": "head.rnn.",
    "lm_head.actions.mlp.": "head.output.pose.",
    "lm_head.gripper.mlp.": "head.output.gripper.",
}
"""Beginnings of the names of RoboFlamingo's LSTM head, and of ours."""


class WeightsError(UserError):
    """A file of weights cannot be read, or does not fit. The message names file and tensors."""


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a file (.safetensors, .pt, .pth, .bin) or of a transformers folder, by name.

    What stands around the state dict in a training checkpoint is left out.

    Raises:
        WeightsError: the file is missing, broken, or holds more than tensors and plain values.
    """
    if path.is_dir():
        return _read_folder(path)
    if not path.is_file():
        raise WeightsError(f"{path} does not exist; give a file of weights, or a folder in transformers' layout")
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except SafetensorError as error:
            raise WeightsError(f"{path} is not a whole safetensors file: {error}") from error
    try:
        held = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        raise WeightsError(f"{path} holds more than tensors and plain values and is not read: {error}") from error
    except (OSError, RuntimeError, EOFError, ValueError) as error:
        raise WeightsError(f"{path} is not a whole PyTorch file: {error}") from error
    return _state_dict(held, path)


def _state_dict(held: Any, path: Path) -> dict[str, Tensor]:
    """The state dict in what a file held: bare, or under the key that training scripts give it."""
    for key in ("model_state_dict", "state_dict"):
        if isinstance(held, Mapping) and isinstance(held.get(key), Mapping):
            held = held[key]
    if not isinstance(held, Mapping) or not all(isinstance(value, Tensor) for value in held.values()):
        raise WeightsError(f"{path} holds no state dict, neither bare nor under model_state_dict")
    return dict(held)


def _read_folder(folder: Path) -> dict[str, Tensor]:
    """The weights of a transformers folder, in one file or in several."""
    for single in ("model.safetensors", "pytorch_model.bin"):
        index = folder / f"{single}.index.json"
        if (folder / single).is_file():
            return read_tensors(folder / single)
        if index.is_file():
            parts = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
            return {name: tensor for part in parts for name, tensor in read_tensors(folder / part).items()}
    raise WeightsError(f"{folder} has neither model.safetensors nor pytorch_model.bin, nor an index of their parts")


def language_names(tensors: Mapping[str, Tensor], decoder: Decoder) -> dict[str, Tensor]:
    """A published language model's tensors by our names; logits and buffers that are computed anew left out."""
    named = {}
    for key, tensor in tensors.items():
        if key.startswith(("lm_head.", "embed_out.")) or key.endswith(_COMPUTED):
            continue
        name = key.removeprefix(decoder.prefix)
        for theirs, ours in MOSAIC_NAMES.items():
            name = name.replace(theirs, ours)
        if name.startswith(f"{decoder.layers_name}."):
            number, rest = name.removeprefix(f"{decoder.layers_name}.").split(".", 1)
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
    puts `module.` before everything.

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
    return f"backbone.{key}" if key.startswith("perceiver") else key


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
) -> None:
    """Puts tensors into a module: copies them, or takes them over where it has no memory yet.

    A token embedding may have more or fewer rows than the module's, as tokens were added: what is there is taken.

    Args:
        module: what to fill.
        tensors: by the module's names.
        needed: names that must be there.
        source: where the tensors came from, for messages.
        allow: problems that are no error.

    Raises:
        WeightsError: something is missing, unexpected or of the wrong shape; lists it by name.
    """
    own = module.state_dict(keep_vars=True)
    tables = {f"{name}.weight" for name, part in module.named_modules() if isinstance(part, nn.Embedding)}
    fitting = {
        name: tensor
        for name, tensor in tensors.items()
        if name in own and tensor.shape[name in tables :] == own[name].shape[name in tables :]
    }
    wrong = [name for name in tensors if name in own and name not in fitting]
    problems: dict[Problem, list[str]] = {
        "missing": sorted(set(needed) - tensors.keys()),
        "unexpected": sorted(tensors.keys() - own.keys()),
        "shape": [f"{name} {tuple(tensors[name].shape)}, here {tuple(own[name].shape)}" for name in sorted(wrong)],
    }
    message = [_listed(problem, names) for problem, names in problems.items() if names and problem not in allow]
    if message:
        raise WeightsError(f"{source} does not fit. {'; '.join(message)}")
    taken = {}
    with torch.no_grad():
        for name, tensor in fitting.items():
            if own[name].is_meta:
                taken[name] = _with_rows(tensor, own[name].shape).to(own[name].dtype)
            else:
                rows = slice(min(len(own[name]), len(tensor))) if tensor.ndim else ...
                own[name].data[rows].copy_(tensor[rows])
    module.load_state_dict(taken, strict=False, assign=True)


def _listed(problem: str, names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{problem}: {', '.join(names[:SHOWN])}{more}"


def _with_rows(table: Tensor, shape: torch.Size) -> Tensor:
    """A table with its last rows cut, or with random ones as the others are added."""
    if table.shape == shape:
        return table
    more = shape[0] - len(table)
    if more <= 0:
        return table[: shape[0]]
    return torch.cat([table, table.std() * torch.randn(more, *shape[1:], dtype=table.dtype)])
