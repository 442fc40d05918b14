"""MPT's decoder on scaled_dot_product_attention, with and without norms of queries and keys.

transformers' MPT computes attention step by step and lacks the norms over the whole width that MPT-1B (model type
`mosaic_gpt`) was trained with, and MPT-1B's own remote code does not run on transformers 5. This class takes the
weights of both: its parameter names are those of transformers' MptModel, and `MOSAIC_NAMES` translates the others.
Biases, learned positions and a perceptron of another width, which transformers' ignores, are MosaicML's llm-foundry's.
Shapes: N texts, L tokens, H heads, D width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import MptConfig, PreTrainedConfig, PreTrainedModel

from calvin_eval.system.errors import UserError
from roboflamingo.backbone.attention import attend

MOSAIC_NAMES = {
    "ln_1.": "norm_1.",
    "ln_2.": "norm_2.",
    "mlp.mlp_up.": "ffn.up_proj.",
    "mlp.mlp_down.": "ffn.down_proj.",
    "ln_f.": "norm_f.",
}
"""Parts of parameter names in `mosaic_gpt` folders, and here."""


_MOSAIC_KEYS = {
    "mlp_ratio": "expansion_ratio",
    "attn_qk_ln": "attn_config.qk_ln",
    "attn_clip_qkv": "attn_config.clip_qkv",
    "attn_softmax_scale": "attn_config.softmax_scale",
    "softmax_scale": "attn_config.softmax_scale",
    "attn_pdrop": "attn_config.attn_pdrop",
    "attn_uses_sequence_id": "attn_config.attn_uses_sequence_id",
    "prefix_lm": "attn_config.prefix_lm",
    "alibi": "attn_config.alibi",
    "alibi_bias_max": "attn_config.alibi_bias_max",
}
"""What `mosaic_gpt` folders call MPT's keys; the rest have the same names."""

_ONLY: dict[str, tuple[Any, ...]] = {
    "emb_pdrop": (0,),
    "resid_pdrop": (0,),
    "embedding_fraction": (1,),
    "norm_type": ("low_precision_layernorm", "layernorm"),
    "ffn_config": (None, {"ffn_type": "mptmlp"}),
    "fc_type": (None, "torch"),
    "attn_config.attn_type": ("multihead_attention",),
    "attn_config.attn_pdrop": (0,),
    "attn_config.prefix_lm": (False,),
    "attn_config.attn_uses_sequence_id": (False,),
    "attn_config.rope": (False,),
    "attn_config.kv_n_heads": (None,),
    "attn_config.sliding_window_size": (-1,),
}
"""Keys that change the result and have but these values here."""

_ATTENTION = {"attn_impl", "qk_ln", "clip_qkv", "softmax_scale", "alibi", "alibi_bias_max"}
"""Keys of `attn_config` that are followed, or change nothing (`attn_impl`)."""
_ANYWHERE = frozenset(PreTrainedConfig().to_dict())
"""Keys that transformers writes into every configuration."""


def mosaic_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """The config.json of a `mosaic_gpt` folder (MPT-1B) in the terms of an `mpt` one."""
    named: dict[str, Any] = {}
    attention: dict[str, Any] = {}
    for key, value in settings.items():
        part, _, name = _MOSAIC_KEYS.get(key, key).rpartition(".")
        (attention if part else named)[name] = value
    return named | {"attn_config": attention}


def check_settings(settings: Mapping[str, Any]) -> None:
    """Refuses what an MPT's configuration asks for and this class does not have.

    Raises:
        UserError: names the key and its value.
    """
    attention = settings.get("attn_config") or {}
    if not isinstance(attention, Mapping):
        raise UserError(f"attn_config is {attention!r}, not a mapping")
    given = dict(settings) | {f"attn_config.{key}": value for key, value in attention.items()}
    for key, values in _ONLY.items():
        if key in given and given[key] not in values:
            raise UserError(f"{key} {given[key]!r} does not exist here, only {' or '.join(map(repr, values))}")
    for key in attention:
        known = key in _ATTENTION | _ANYWHERE or f"attn_config.{key}" in _ONLY
        if not known and not key.startswith("rope_"):  # those are for `rope`, which is refused
            raise UserError(f"attn_config.{key} is not known here; take it away if it changes nothing")


def has_positions(config: MptConfig) -> bool:
    """Whether a table of learned positions is added to the tokens, as MosaicML's class has it without ALiBi."""
    return config.learned_pos_emb and not config.attn_config.alibi


def _norm(config: MptConfig) -> nn.LayerNorm:
    return nn.LayerNorm(config.d_model, eps=config.layer_norm_epsilon, bias=not config.no_bias)


class MPTAttention(nn.Module):
    """Self-attention; queries and keys may be normed before they are split into heads."""

    def __init__(self, config: MptConfig) -> None:
        super().__init__()
        width, self.heads = config.d_model, config.n_heads
        settings, bias = config.attn_config, not config.no_bias
        self.clip = settings.clip_qkv
        # `attend` divides by the root of a head's width.
        self.scale = None if settings.softmax_scale is None else settings.softmax_scale * (width / self.heads) ** 0.5
        self.Wqkv = nn.Linear(width, 3 * width, bias=bias)
        self.q_ln = _norm(config) if settings.qk_ln else None
        self.k_ln = _norm(config) if settings.qk_ln else None
        self.out_proj = nn.Linear(width, width, bias=bias)

    def forward(self, hidden: Tensor, bias: Tensor) -> Tensor:
        """Hidden states (N, L, D), bias of the scores (1 or N, H, L, L) -> (N, L, D)."""
        projected = self.Wqkv(hidden)
        if self.clip:
            projected = projected.clamp(-self.clip, self.clip)
        queries, keys, values = projected.chunk(3, dim=-1)
        if self.q_ln is not None and self.k_ln is not None:
            # The norms compute in float32 under autocast; attention takes one type.
            queries, keys = self.q_ln(queries).to(values.dtype), self.k_ln(keys).to(values.dtype)
        if self.scale is not None:
            queries = queries * self.scale
        return self.out_proj(attend(queries, keys, values, self.heads, bias))


class MPTPerceptron(nn.Module):
    """Two layers with GELU between."""

    def __init__(self, config: MptConfig) -> None:
        super().__init__()
        width, wide = config.d_model, int(config.expansion_ratio * config.d_model)
        self.up_proj = nn.Linear(width, wide, bias=not config.no_bias)
        self.down_proj = nn.Linear(wide, width, bias=not config.no_bias)

    def forward(self, hidden: Tensor) -> Tensor:
        """(N, L, D) -> (N, L, D)."""
        return self.down_proj(F.gelu(self.up_proj(hidden)))


class MPTBlock(nn.Module):
    """A decoder layer: norm, attention, norm, perceptron."""

    def __init__(self, config: MptConfig) -> None:
        super().__init__()
        self.norm_1 = _norm(config)
        self.attn = MPTAttention(config)
        self.norm_2 = _norm(config)
        self.ffn = MPTPerceptron(config)

    def forward(self, hidden: Tensor, attention_mask: Tensor) -> Tensor:
        """Hidden states (N, L, D), bias of the scores (1 or N, H, L, L) -> (N, L, D)."""
        hidden = hidden + self.attn(self.norm_1(hidden), attention_mask)
        return hidden + self.ffn(self.norm_2(hidden))


class MPTModel(PreTrainedModel):
    """The embeddings, the blocks and the last norm; `Flamingo` runs them."""

    config_class = MptConfig
    base_model_prefix = "transformer"
    _no_split_modules = ["MPTBlock"]  # noqa: RUF012 (transformers reads it so)

    def __init__(self, config: MptConfig) -> None:
        super().__init__(config)
        self.wte = nn.Embedding(config.vocab_size, config.d_model)
        self.wpe = nn.Embedding(config.max_seq_len, config.d_model) if has_positions(config) else None
        self.blocks = nn.ModuleList(MPTBlock(config) for _ in range(config.n_layers))
        self.norm_f = _norm(config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The token embedding."""
        return self.wte

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Another token embedding."""
        assert isinstance(value, nn.Embedding)
        self.wte = value


def score_bias(config: MptConfig, is_text: Tensor, dtype: torch.dtype) -> Tensor:
    """Causality, padding and, with ALiBi, linear position bias (Press et al. 2022, arXiv 2108.12409).

    Args:
        config: of the model.
        is_text: (N, L); keys where it is False are not looked at.
        dtype: of the result.

    Returns:
        (1 or N, 1 or H, L, L).
    """
    length, device = is_text.shape[1], is_text.device
    bias = torch.zeros(1, 1, length, device=device)
    if config.attn_config.alibi:
        distance = torch.arange(1 - length, 1, device=device)  # to the last key; softmax sees differences only
        bias = _slopes(config.n_heads, config.attn_config.alibi_bias_max, device)[:, None, None] * distance
    hidden = torch.ones(length, length, dtype=torch.bool, device=device).triu(1) | ~is_text[:, None, None]
    return bias.to(dtype).masked_fill(hidden, torch.finfo(dtype).min)


def _slopes(heads: int, largest: int, device: torch.device) -> Tensor:
    """How steeply each head's bias falls; heads beyond a power of two take slopes from between."""
    power = 2 ** math.ceil(math.log2(heads))
    slopes = 2.0 ** (-torch.arange(1, power + 1, device=device) * (largest / power))
    return slopes if power == heads else torch.cat([slopes[1::2], slopes[::2]])[:heads]
