"""Small language models in GGUF, written by llama.cpp's package, and packages that carry weights."""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

import gguf
import torch
from gguf.quants import quantize
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM

from policies import SENTENCES
from published import randomise

SIZES = {"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2,
         "intermediate_size": 96, "max_position_embeddings": 128, "rms_norm_eps": 1e-5}  # fmt: skip
SPLITS = {
    "gpt-2": [pre_tokenizers.ByteLevel(add_prefix_space=False)],
    "smollm": [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)],
}
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


def a_tokenizer(split: str = "smollm") -> Tokenizer:
    """A byte-level BPE tokenizer of some hundred tokens, as the tokenizers library trains it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Sequence(SPLITS[split]), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=330, initial_alphabet=alphabet, special_tokens=[AddedToken(t) for t in SPECIAL], show_progress=False
    )
    tokenizer.train_from_iterator([*SENTENCES, "a  12  blocks, 345 drawers"] * 3, trainer)
    return tokenizer


def a_llama(rows: int, **changed: Any) -> LlamaForCausalLM:
    """A random one, with fewer heads of keys than of queries."""
    torch.manual_seed(0)
    rope = {"rope_type": "default", "rope_theta": 500.0}
    model = LlamaForCausalLM(
        LlamaConfig(**SIZES | {"vocab_size": rows, "rope_parameters": rope, "tie_word_embeddings": True} | changed)
    )
    randomise(model, 0.1)
    return model.eval()


def write_gguf(path: Path, model: LlamaForCausalLM, tokenizer: Tokenizer, kind: str = "F32", **changed: Any) -> Path:
    """Writes both as llama.cpp's converter does.

    Args:
        path: of the file.
        model: what to write.
        tokenizer: its tokenizer.
        kind: the type of matrices in the layers; the token embedding is Q8_0 unless that is F32.
        changed: values of keys, dots as double underscores; None leaves a key out.
    """
    config, writer = model.config, gguf.GGUFWriter(path, "llama")
    vocabulary = tokenizer.get_vocab()
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    merges = [" ".join(pair) for pair in json.loads(tokenizer.to_str())["model"]["merges"]]
    values: dict[str, Any] = {
        "llama.block_count": config.num_hidden_layers,
        "llama.context_length": config.max_position_embeddings,
        "llama.embedding_length": config.hidden_size,
        "llama.feed_forward_length": config.intermediate_size,
        "llama.attention.head_count": config.num_attention_heads,
        "llama.attention.head_count_kv": config.num_key_value_heads,
        "llama.attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "llama.rope.freq_base": config.rope_parameters["rope_theta"],
        "llama.rope.dimension_count": config.head_dim,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3 if token in SPECIAL else 1 for token in tokens],
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.padding_token_id": 2,
        "tokenizer.ggml.add_bos_token": False,
    } | {key.replace("__", "."): value for key, value in changed.items()}
    for key, value in values.items():
        if isinstance(value, list):
            writer.add_array(key, value)
        elif value is not None:
            add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
            add[type(value)](key, value)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight":
            continue
        count = next((heads[part] for part in heads if part in name), None)
        if count is not None:  # the order in which llama.cpp turns positions
            tensor = tensor.unflatten(0, (count, 2, -1)).transpose(1, 2).flatten(0, 2)
        matrix = kind if "layers" in name or kind == "F32" else "Q8_0"
        type_ = gguf.GGMLQuantizationType[matrix if tensor.ndim > 1 else "F32"]
        target = names.get_name(name, try_suffixes=(".weight",))
        writer.add_tensor(target, quantize(tensor.numpy(), type_), raw_dtype=type_)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def install(site: Path, name: str, version: str, file: Path, licence: str = "Apache-2.0") -> str:
    """Lays a package that carries a file into a folder of packages, as pip does; gives its source."""
    folder = site / name.replace("-", "_")
    info = site / f"{folder.name}-{version}.dist-info"
    folder.mkdir(parents=True)
    info.mkdir()
    content = file.read_bytes()
    (folder / file.name).write_bytes(content)
    digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
    (folder / "__init__.py").write_text("raise AssertionError('a package of weights is never imported')\n")
    (info / "LICENSE").write_text("\nSome Licence 2.0\n\nText.\n")
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\nLicense: {licence}\n")
    record = [f"{folder.name}/{file.name},sha256={digest},{len(content)}", f"{folder.name}/__init__.py,,"]
    (info / "RECORD").write_text("\n".join([*record, f"{info.name}/METADATA,,", f"{info.name}/LICENSE,,", ""]))
    return f"wheel:{name}=={version}"
