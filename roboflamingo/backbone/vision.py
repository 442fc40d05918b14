"""The vision encoder: open_clip's ViT, of which only the patch tokens are used."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from open_clip.transformer import QuickGELU, ResidualAttentionBlock, VisionTransformer
from torch import Tensor, nn

from roboflamingo.backbone.attention import attend
from roboflamingo.backbone.encoders import VIT, ImageEncoder, VisionConfig, register_vision

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

IMAGES_IN_CACHE = 16
"""Images that a CPU encodes at once where nothing is kept for a backward pass; more would leave its cache."""


class Block(ResidualAttentionBlock):
    """open_clip's block, without the copies that its sequence-first attention takes."""

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (N, V, D) -> (N, V, D)."""
        attention = self.attn
        projected = F.linear(self.ln_1(tokens), attention.in_proj_weight, attention.in_proj_bias)
        queries, keys, values = projected.chunk(3, dim=-1)
        tokens = tokens + attention.out_proj(attend(queries, keys, values, attention.num_heads))
        return tokens + self.mlp(self.ln_2(tokens))


@register_vision(VIT)
class VisionEncoder(VisionTransformer, ImageEncoder):
    """open_clip's VisionTransformer, giving patch tokens for images of any size."""

    without_memory = True
    mean: Tensor
    std: Tensor
    class_embedding: Tensor
    positional_embedding: Tensor
    grid_size: tuple[int, int]
    conv1: Any
    transformer: Any
    ln_pre: Any
    ln_post: Any

    def __init__(self, config: VisionConfig) -> None:
        activation = QuickGELU if config.activation == "quick_gelu" else nn.GELU
        super().__init__(
            image_size=config.image_size,
            patch_size=config.patch_size,
            width=config.width,
            layers=0,
            heads=config.heads,
            mlp_ratio=4.0,
            output_dim=config.width,
        )
        self.transformer.resblocks = nn.ModuleList(
            Block(config.width, config.heads, act_layer=activation) for _ in range(config.layers)
        )
        if config.stem:
            self.conv1 = convolutional_stem(config.width, config.patch_size, config.stem_width)
        self.proj = None  # CLIP's pooled embedding alone needs it
        if not config.final_norm:
            self.ln_post = nn.Identity()
        for name, value in (("mean", CLIP_MEAN), ("std", CLIP_STD)):  # on the CPU also where the rest has no memory yet
            buffer = torch.tensor(value, device="cpu").view(3, 1, 1) * 255
            self.register_buffer(name, buffer, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, H, W, 3) uint8 -> tokens (N, V, D) without the class token."""
        if images.device.type == "cpu" and not self.class_embedding.requires_grad:
            return torch.cat([self._tokens(few) for few in images.split(IMAGES_IN_CACHE)])
        return self._tokens(images)

    @property
    def adaptable(self) -> nn.Module:
        """The blocks."""
        return self.transformer

    def _tokens(self, images: Tensor) -> Tensor:
        """The same for images that are few enough, or on a GPU."""
        patches, grid = self._patches(images)
        tokens = torch.cat([self.class_embedding.expand(len(patches), 1, -1), patches], dim=1)
        tokens = tokens + self._positions(grid)
        tokens = self.ln_pre(tokens)
        for block in self.transformer.resblocks:
            tokens = block(tokens)
        return self.ln_post(tokens)[:, 1:]

    def _patches(self, images: Tensor) -> tuple[Tensor, torch.Size]:
        """Images -> embedded patches (N, V, D), and how many there are down and across."""
        if isinstance(self.conv1, nn.Sequential):
            pixels = (images.permute(0, 3, 1, 2).to(self.mean.dtype) - self.mean) / self.std
            patches = self.conv1(pixels.contiguous(memory_format=torch.channels_last))
            return patches.flatten(2).transpose(1, 2), patches.shape[-2:]
        # A convolution whose patches do not overlap is one matrix product, into which the normalisation goes as well:
        # pixels are touched once as bytes and once as numbers.
        size = self.conv1.kernel_size[0]
        cut = images.unfold(1, size, size).unfold(2, size, size)  # (N, down, across, 3, size, size)
        weight = self.conv1.weight.float() / self.std
        bias = -(weight * self.mean).flatten(1).sum(1)
        pixels = cut.flatten(3).flatten(1, 2).to(weight.dtype)
        return F.linear(pixels, weight.flatten(1), bias), cut.shape[1:3]

    def _positions(self, grid: torch.Size) -> Tensor:
        """Position embeddings (1 + V, D) for a grid of patches."""
        if tuple(grid) == tuple(self.grid_size):
            return self.positional_embedding
        first, rest = self.positional_embedding[:1], self.positional_embedding[1:]
        plane = rest.T.unflatten(1, self.grid_size).unsqueeze(0)
        plane = F.interpolate(plane, size=tuple(grid), mode="bicubic", antialias=True, align_corners=False)
        return torch.cat([first, plane.squeeze(0).flatten(1).T])


def convolutional_stem(width: int, patch_size: int, first: int | None = None) -> nn.Sequential:
    """Overlapping convolutions down to one token a patch of 8 or 16 pixels.

    Args:
        width: of the tokens.
        patch_size: 8 or 16.
        first: channels after the first convolution, twice as many after the second; None for half of `width`.
    """
    few = width // 2 if first is None else first
    many = width if first is None else 2 * first
    return nn.Sequential(
        nn.Conv2d(3, few, 8, stride=4, padding=2),
        nn.GELU(),
        nn.Conv2d(few, many, 3, stride=2, padding=1),
        nn.GELU(),
        nn.Conv2d(many, width, 3, stride=patch_size // 8, padding=1),
    )
