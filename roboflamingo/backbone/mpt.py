"""MPT's decoder on scaled_dot_product_attention, with and without norms of queries and keys.

transformers' MPT computes attention step by step and lacks the norms over the whole width that MPT-1B (model type
`mosaic_gpt`) was trained with, and MPT-1B's own remote code does not run on transformers 5. This class takes the
weights of both: its parameter names are those of transformers' MptModel, and `MOSAIC_NAMES` translates the others.
Shapes: N texts, L tokens, H heads, D width.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import MptConfig, PreTrainedModel

from roboflamingo.backbone.attention import attend

MOSAIC_NAMES = {
    "ln_1.": "norm_1.",
    "ln_2.": "norm_2.",
    "mlp.mlp_up.": "ffn.up_proj.",
    "mlp.mlp_down.": "ffn.down_proj.",
    "ln_f.": "norm_f.",
}
"""Parts of parameter names in `mosaic_gpt` folders, and here."""


def mosaic_config(settings: dict[str, Any]) -> MptConfig:
    """The configuration for the config.json of a `mosaic_gpt` folder.

    Raises:
        ValueError: a setting that this class does not have; names it.
    """
    wanted = {"alibi": True, "no_bias": True, "attn_clip_qkv": None, "attn_softmax_scale": None, "prefix_lm": False}
    for key, value in wanted.items():
        if settings.get(key, value) != value:
            raise ValueError(f"mosaic_gpt with {key}: {settings[key]} does not exist here; MPT-1B has {value}")
    return MptConfig(
        d_model=settings["d_model"],
        n_heads=settings["n_heads"],
        n_layers=settings["n_layers"],
        expansion_ratio=settings.get("mlp_ratio", 4),
        vocab_size=settings["vocab_size"],
        attn_config={
            "qk_ln": settings.get("attn_qk_ln", False),
            "alibi_bias_max": settings.get("alibi_bias_max", 8),
        },
    )


class MPTAttention(nn.Module):
    """Self-attention; queries and keys may be normed before they are split into heads."""

    def __init__(self, config: MptConfig) -> None:
        super().__init__()
        width, self.heads = config.d_model, config.n_heads
        self.Wqkv = nn.Linear(width, 3 * width, bias=False)
        normed = config.attn_config.qk_ln
        self.q_ln = nn.LayerNorm(width, bias=False) if normed else None
        self.k_ln = nn.LayerNorm(width, bias=False) if normed else None
        self.out_proj = nn.Linear(width, width, bias=False)

    def forward(self, hidden: Tensor, bias: Tensor) -> Tensor:
        """Hidden states (N, L, D), bias of the scores (1 or N, H, L, L) -> (N, L, D)."""
        queries, keys, values = self.Wqkv(hidden).chunk(3, dim=-1)
        if self.q_ln is not None and self.k_ln is not None:
            # The norms compute in float32 under autocast; attention takes one type.
            queries, keys = self.q_ln(queries).to(values.dtype), self.k_ln(keys).to(values.dtype)
        return self.out_proj(attend(queries, keys, values, self.heads, bias))


class MPTPerceptron(nn.Module):
    """Two layers with GELU between."""

    def __init__(self, width: int, ratio: int) -> None:
        super().__init__()
        self.up_proj = nn.Linear(width, ratio * width, bias=False)
        self.down_proj = nn.Linear(ratio * width, width, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        """(N, L, D) -> (N, L, D)."""
        return self.down_proj(F.gelu(self.up_proj(hidden)))


class MPTBlock(nn.Module):
    """A decoder layer: norm, attention, norm, perceptron."""

    def __init__(self, config: MptConfig) -> None:
        super().__init__()
        self.norm_1 = nn.LayerNorm(config.d_model, bias=False)
        self.attn = MPTAttention(config)
        self.norm_2 = nn.LayerNorm(config.d_model, bias=False)
        self.ffn = MPTPerceptron(config.d_model, config.expansion_ratio)

    def forward(self, hidden: Tensor, attention_mask: Tensor) -> Tensor:
        """Hidden states (N, L, D), bias of the scores (1 or N, H, L, L) -> (N, L, D)."""
        hidden = hidden + self.attn(self.norm_1(hidden), attention_mask)
        return hidden + self.ffn(self.norm_2(hidden))


class MPTModel(PreTrainedModel):
    """The embedding, the blocks and the last norm; `Flamingo` runs them."""

    config_class = MptConfig
    base_model_prefix = "transformer"
    _no_split_modules = ["MPTBlock"]  # noqa: RUF012 (transformers reads it so)

    def __init__(self, config: MptConfig) -> None:
        super().__init__(config)
        self.wte = nn.Embedding(config.vocab_size, config.d_model)
        self.blocks = nn.ModuleList(MPTBlock(config) for _ in range(config.n_layers))
        self.norm_f = nn.LayerNorm(config.d_model, bias=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The token embedding."""
        return self.wte

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Another token embedding."""
        assert isinstance(value, nn.Embedding)
        self.wte = value


def alibi_bias(config: MptConfig, is_text: Tensor, dtype: torch.dtype) -> Tensor:
    """Linear position bias (Press et al. 2022, arXiv 2108.12409), causality and padding: (1 or N, H, L, L).

    Args:
        config: of the model.
        is_text: (N, L); keys where it is False are not looked at.
        dtype: of the result.
    """
    length, heads, device = is_text.shape[1], config.n_heads, is_text.device
    distance = torch.arange(1 - length, 1, device=device)  # to the last key; softmax sees differences only
    bias = _slopes(heads, config.attn_config.alibi_bias_max, device)[:, None, None] * distance
    hidden = torch.ones(length, length, dtype=torch.bool, device=device).triu(1) | ~is_text[:, None, None]
    return bias.to(dtype).masked_fill(hidden, torch.finfo(dtype).min)


def _slopes(heads: int, largest: int, device: torch.device) -> Tensor:
    """How steeply each head's bias falls; heads beyond a power of two take slopes from between."""
    power = 2 ** math.ceil(math.log2(heads))
    slopes = 2.0 ** (-torch.arange(1, power + 1, device=device) * (largest / power))
    return slopes if power == heads else torch.cat([slopes[1::2], slopes[::2]])[:heads]
