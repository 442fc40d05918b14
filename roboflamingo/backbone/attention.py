"""OpenFlamingo's resampler and gated cross-attention, on scaled_dot_product_attention.

Mathematics and parameter names are those of OpenFlamingo (Awadalla et al. 2023, arXiv 2308.01390; after Alayrac et
al. 2022), so its checkpoints load by name; tests hold the outputs equal. Shapes: N images or texts, V visual tokens,
R resampler latents, L text tokens, D width.
"""

from __future__ import annotations

from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def feed_forward(width: int, factor: int = 4) -> nn.Sequential:
    """LayerNorm and a two-layer perceptron without biases."""
    return nn.Sequential(
        nn.LayerNorm(width),
        nn.Linear(width, factor * width, bias=False),
        nn.GELU(),
        nn.Linear(factor * width, width, bias=False),
    )


def _split_heads(x: Tensor, heads: int) -> Tensor:
    return x.unflatten(-1, (heads, -1)).transpose(-2, -3)  # (N, L, H*d) -> (N, H, L, d)


def attend(queries: Tensor, keys: Tensor, values: Tensor, heads: int, bias: Tensor | None = None) -> Tensor:
    """Multi-head attention (N, L, H*d) over (N, V, H*d), scaled by 1 / sqrt(d).

    Args:
        queries: (N, L, H*d).
        keys: (N, V, H*d).
        values: (N, V, H*d).
        heads: H.
        bias: added to the scores, (1 or N, 1 or H, L, V).
    """
    dtype = values.dtype
    # On a CPU torch's attention is slower in bf16 than in fp32, its backward pass by more than ten times; autocast
    # would choose bf16.
    on_cpu = values.device.type == "cpu"
    compute = torch.float32 if on_cpu else dtype
    q, k, v = (_split_heads(x, heads).to(compute) for x in (queries, keys, values))
    with torch.autocast("cpu", enabled=False) if on_cpu else nullcontext():
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=None if bias is None else bias.to(compute))
    return out.transpose(-2, -3).flatten(-2).to(dtype)


class PerceiverAttention(nn.Module):
    """Latents attend to visual tokens and to each other.

    Args:
        width: D of tokens and latents.
        head_width: of one attention head. heads: how many.
    """

    def __init__(self, width: int, head_width: int = 64, heads: int = 8) -> None:
        super().__init__()
        self.heads = heads
        inner = head_width * heads
        self.norm_media = nn.LayerNorm(width)
        self.norm_latents = nn.LayerNorm(width)
        self.to_q = nn.Linear(width, inner, bias=False)
        self.to_kv = nn.Linear(width, 2 * inner, bias=False)
        self.to_out = nn.Linear(inner, width, bias=False)

    def forward(self, tokens: Tensor, latents: Tensor) -> Tensor:
        """Tokens (N, V, D) and latents (N, R, D) -> (N, R, D)."""
        latents = self.norm_latents(latents)
        keys, values = self.to_kv(torch.cat([self.norm_media(tokens), latents], dim=1)).chunk(2, dim=-1)
        queries = self.to_q(latents)
        return self.to_out(attend(queries, keys, values, self.heads))


class PerceiverResampler(nn.Module):
    """Turns any number of visual tokens into a fixed number of latents.

    Args:
        width: D. depth: layers. head_width, heads: of the attention. latents: R. factor: of the perceptrons.
    """

    def __init__(
        self,
        width: int,
        depth: int = 6,
        head_width: int = 64,
        heads: int = 8,
        latents: int = 64,
        factor: int = 4,
    ) -> None:
        super().__init__()
        self.latents = nn.Parameter(torch.randn(latents, width))
        self.layers = nn.ModuleList(
            nn.ModuleList([PerceiverAttention(width, head_width, heads), feed_forward(width, factor)])
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (N, V, D) -> (N, R, D)."""
        latents = self.latents.expand(len(tokens), -1, -1)
        for layer in self.layers:
            assert isinstance(layer, nn.ModuleList)
            latents = layer[0](tokens, latents) + latents
            latents = layer[1](latents) + latents
        return self.norm(latents)


class MaskedCrossAttention(nn.Module):
    """Text attends to the visual latents of its image.

    Args:
        width: D of the text. visual_width: of the latents. head_width, heads: of the attention.
    """

    def __init__(self, width: int, visual_width: int, head_width: int = 64, heads: int = 8) -> None:
        super().__init__()
        self.heads = heads
        inner = head_width * heads
        self.norm = nn.LayerNorm(width)
        self.to_q = nn.Linear(width, inner, bias=False)
        self.to_kv = nn.Linear(visual_width, 2 * inner, bias=False)
        self.to_out = nn.Linear(inner, width, bias=False)

    def forward(self, text: Tensor, media: Tensor, sees_media: Tensor | None = None) -> Tensor:
        """Text (N, L, D), media (N, R, Dv) -> (N, L, D); zero where `sees_media` (N, L) is False.

        Text before its image's token sees nothing; None says that all of it comes after.
        """
        queries = self.to_q(self.norm(text))
        keys, values = self.to_kv(media).chunk(2, dim=-1)
        out = attend(queries, keys, values, self.heads)
        if sees_media is not None:
            out = out * sees_media.unsqueeze(-1)
        return self.to_out(out)


class GatedCrossAttentionBlock(nn.Module):
    """Cross-attention and a perceptron, each behind a tanh gate.

    Args:
        width: D of the text. visual_width: of the latents. head_width, heads: of the attention.
        factor: of the perceptron. gate: the gates' initial value; 0 (Flamingo's) hides the block at first.
    """

    def __init__(
        self,
        width: int,
        visual_width: int,
        head_width: int = 64,
        heads: int = 8,
        factor: int = 4,
        gate: float = 0.0,
    ) -> None:
        super().__init__()
        self.attn = MaskedCrossAttention(width, visual_width, head_width, heads)
        self.attn_gate = nn.Parameter(torch.tensor([gate]))
        self.ff = feed_forward(width, factor)
        self.ff_gate = nn.Parameter(torch.tensor([gate]))

    def forward(self, text: Tensor, media: Tensor, sees_media: Tensor | None = None) -> Tensor:
        """Text (N, L, D), media (N, R, Dv) -> (N, L, D)."""
        text = text + self.attn_gate.tanh() * self.attn(text, media, sees_media)
        return text + self.ff_gate.tanh() * self.ff(text)
