"""From a hidden state a text token to one vector a frame."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

PoolingKind = Literal["max", "mean", "attention"]


class Pooling(nn.Module):
    """Pools hidden states over an instruction's tokens.

    Args:
        kind: `max` over tokens (the reference's), their `mean`, or `attention`: a mean weighted by how well each
            token answers a learned query.
        width: D.
    """

    def __init__(self, kind: PoolingKind, width: int) -> None:
        super().__init__()
        self.kind = kind
        self.query = nn.Parameter(torch.zeros(width)) if kind == "attention" else None

    def forward(self, hidden: Tensor, is_text: Tensor) -> Tensor:
        """Hidden states (N, L, D) and which of them are text (N, L) -> (N, D)."""
        if self.kind == "max":
            return hidden.masked_fill(~is_text.unsqueeze(-1), torch.finfo(hidden.dtype).min).max(dim=1).values
        scores = hidden.new_zeros(hidden.shape[:2])
        if self.query is not None:
            scores = hidden @ self.query.to(hidden.dtype) / hidden.shape[-1] ** 0.5
        weights = scores.masked_fill(~is_text, float("-inf")).softmax(dim=1)
        return (weights.unsqueeze(1) @ hidden).squeeze(1)
