"""Reads GGUF files, in which llama.cpp keeps language models: settings, tokenizer, tensors, as transformers has them.

The gguf package reads the file and dequantises; here are the names, the order of rows in queries and keys, and the
tokenizer. Architecture: llama; tokenizers: byte-level BPE (docs/gguf.md of github.com/ggml-org/ggml).
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from calvin_eval.system.errors import MissingExtraError
from roboflamingo.weights.files import WeightsError

MAGIC = b"GGUF"
PARTS = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
"""Names of tensors outside the layers, less `.weight`, and transformers'."""
LAYER_PARTS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
"""Those of a layer, `blk.N.` before them, and transformers', `model.layers.N.` before them."""
SIZES = {
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "attention.head_count": "num_attention_heads",
    "feed_forward_length": "intermediate_size",
    "context_length": "max_position_embeddings",
}
"""Keys that a llama must have, and transformers'."""
SPLITS = {
    "gpt-2": pre_tokenizers.ByteLevel(add_prefix_space=False),
    "smollm": pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    ),
}
"""How text is split before pairs of bytes are merged, by `tokenizer.ggml.pre`."""
CONTROL, USER_DEFINED = 3, 4
"""Types of tokens that are found in a text as a whole: those that no text should hold, and others."""


def is_gguf(path: Path) -> bool:
    """Whether a path is such a file, by its first bytes."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def check_gguf(path: Path) -> None:
    """Makes sure that such a file can be read.

    Raises:
        MissingExtraError: the gguf package is missing.
    """
    if find_spec("gguf") is None:
        raise MissingExtraError(f"{path} is read with the gguf package: pip install 'roboflamingo[smollm2]'")


class GGUF:
    """An open file.

    Raises:
        MissingExtraError: the gguf package is missing.
        WeightsError: the file is damaged, or of an architecture that is not read here.
    """

    def __init__(self, path: Path) -> None:
        check_gguf(path)
        from gguf import GGUFReader

        self.path = self.config = path
        try:
            self._reader = GGUFReader(path)
        except Exception as error:  # whatever the reader meets in a damaged file
            raise WeightsError(
                f"{path} is not a whole GGUF file: {type(error).__name__}: {error}; bring it anew"
            ) from error
        self.architecture = self._value("general.architecture", str)
        if self.architecture != "llama":
            raise WeightsError(f"{path} holds a {self.architecture}; of GGUF files only llama is read")

    def settings(self) -> dict[str, Any]:
        """What a `config.json` of transformers would say.

        Raises:
            WeightsError: a key is missing, or asks for what is not run here. Names file and key.
        """
        sizes = {theirs: self._value(f"llama.{key}", int) for key, theirs in SIZES.items()}
        heads = sizes["num_attention_heads"]
        head_dim = self._value("llama.attention.key_length", int, sizes["hidden_size"] // heads)
        if self._value("llama.rope.dimension_count", int, head_dim) != head_dim:
            raise WeightsError(f"{self.path}: llama.rope.dimension_count is not the {head_dim} of a head")
        if self._value("llama.rope.scaling.type", str, "none") != "none":
            raise WeightsError(f"{self.path}: llama.rope.scaling is not run here")
        return sizes | {
            "model_type": "llama",
            "num_key_value_heads": self._value("llama.attention.head_count_kv", int, heads),
            "head_dim": head_dim,
            "rms_norm_eps": _shortest(self._value("llama.attention.layer_norm_rms_epsilon", float)),
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": _shortest(self._value("llama.rope.freq_base", float, 10000.0)),
            },
            "vocab_size": len(self._value("tokenizer.ggml.tokens", list)),
        }

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor in fp32, by transformers' names; names that mean nothing here stay as they are.

        Raises:
            WeightsError: a tensor is of a type that cannot be read, or misshapen. Names it.
        """
        from gguf.quants import dequantize

        heads = self._value("llama.attention.head_count", int)
        groups = {"attn_q": heads, "attn_k": self._value("llama.attention.head_count_kv", int, heads)}
        named = {}
        for found in self._reader.tensors:
            part = found.name.split(".")[2] if found.name.startswith("blk.") else ""
            try:
                values = np.array(dequantize(found.data, found.tensor_type), dtype=np.float32)  # a copy, not the file
                tensor = torch.from_numpy(values)
                if part in groups:
                    tensor = half_by_half(tensor, groups[part])
            except (NotImplementedError, ValueError, RuntimeError) as error:
                raise WeightsError(
                    f"{self.path}: {found.name} of type {found.tensor_type.name} cannot be read: {error}"
                ) from error
            named[_name(found.name)] = tensor
        return named

    def tokenizer(self) -> PreTrainedTokenizerFast:
        """Byte-level BPE with the file's tokens, merges and special tokens.

        Raises:
            WeightsError: the file has another kind of tokenizer, or a damaged one.
        """
        kind, split = self._value("tokenizer.ggml.model", str), self._value("tokenizer.ggml.pre", str, "gpt-2")
        if kind != "gpt2" or split not in SPLITS:
            raise WeightsError(
                f"{self.path} has a tokenizer {kind} that splits as {split}; of GGUF files only gpt2 that splits as "
                f"{' or '.join(SPLITS)} is read"
            )
        tokens = self._value("tokenizer.ggml.tokens", list)
        merges = [tuple(merge.split(" ", 1)) for merge in self._value("tokenizer.ggml.merges", list)]
        try:
            tokenizer = Tokenizer(models.BPE({token: number for number, token in enumerate(tokens)}, merges))
        except Exception as error:  # the tokenizers package raises bare ones
            raise WeightsError(f"{self.path}: tokenizer.ggml.merges do not fit its tokens: {error}") from error
        tokenizer.pre_tokenizer, tokenizer.decoder = SPLITS[split], decoders.ByteLevel()
        types = self._value("tokenizer.ggml.token_type", list, [])
        whole = [
            (token, type_) for token, type_ in zip(tokens, types, strict=False) if type_ in (CONTROL, USER_DEFINED)
        ]
        tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t, k in whole if k == CONTROL])
        tokenizer.add_tokens([AddedToken(t, normalized=False) for t, k in whole if k == USER_DEFINED])
        special = {
            f"{name}_token": tokens[number]
            for name, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding"))
            if (number := self._value(f"tokenizer.ggml.{key}_token_id", int, -1)) in range(len(tokens))
        }
        if self._value("tokenizer.ggml.add_bos_token", bool, False) and "bos_token" in special:
            first = special["bos_token"]
            tokenizer.post_processor = processors.TemplateProcessing(
                single=f"{first} $A", special_tokens=[(first, tokens.index(first))]
            )
        return PreTrainedTokenizerFast(
            tokenizer_object=tokenizer,
            clean_up_tokenization_spaces=False,
            **special,
        )

    def _value(self, key: str, kind: type, default: Any = None) -> Any:
        """What stands under a key.

        Raises:
            WeightsError: nothing does, and there is no default; or it is of another kind.
        """
        field = self._reader.get_field(key)
        value = default if field is None else field.contents()
        if value is None:
            raise WeightsError(f"{self.path} has no {key}; it is no whole language model")
        if not isinstance(value, kind):
            raise WeightsError(f"{self.path}: {key} is {str(value)[:50]!r}, not {kind.__name__}")
        return value


def half_by_half(weight: Tensor, heads: int) -> Tensor:
    """Rows of queries or keys in transformers' order.

    Positions turn the rows of a head in pairs. In transformers the first of all pairs come before the second of all;
    in llama.cpp the two of a pair stand side by side.

    Args:
        weight: (heads * d, ...).
        heads: of queries or of keys.
    """
    return weight.unflatten(0, (heads, -1, 2)).transpose(1, 2).flatten(0, 2).contiguous()


def _name(name: str) -> str:
    """The name in transformers for one tensor."""
    stem, _, ending = name.rpartition(".")
    if stem in PARTS:
        return f"{PARTS[stem]}.{ending}"
    first, _, rest = stem.partition(".")
    number, _, part = rest.partition(".")
    if first == "blk" and part in LAYER_PARTS:
        return f"model.layers.{number}.{LAYER_PARTS[part]}.{ending}"
    return name


def _shortest(value: float) -> float:
    """A number that the file has in fp32, with no more digits than tell it from others."""
    return float(str(np.float32(value)))
