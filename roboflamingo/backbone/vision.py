"""The vision encoder: open_clip's ViT, of which only the patch tokens are used."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from open_clip.transformer import QuickGELU, ResidualAttentionBlock, VisionTransformer
from torch import Tensor, nn

from calvin_eval.system.errors import UserError
from calvin_eval.system.ranges import AMOUNT, COUNT, check_ranges
from roboflamingo.backbone.attention import attend

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

IMAGES_IN_CACHE = 16
"""Images that a CPU encodes at once where nothing is kept for a backward pass; more would leave its cache."""


@dataclass
class VisionConfig:
    """Sizes of the vision encoder.

    Attributes:
        source: of published weights: a model of open_clip and its weights, as `ViT-L-14/openai`, or a file.
        image_size: edge (pixels) for which position embeddings exist; other sizes interpolate them.
        patch_size: edge (pixels) of the patch that one token stands for.
        width: of the transformer.
        layers: of the transformer.
        heads: of the transformer.
        stem: convolutional layers instead of one patch projection. Trained from scratch in minutes, early
            convolutions learn far faster (Xiao et al. 2021, arXiv 2106.14881); published encoders have none.
        activation: of the perceptrons; quick_gelu is what OpenAI's CLIP was trained with.
        final_norm: norms the tokens after the last block. OpenFlamingo was trained with open_clip 2.20 and
            before, which did not; open_clip from 2.24 on does.
    """

    source: str | None = None
    image_size: int = 96
    patch_size: int = 8
    width: int = 128
    layers: int = 0
    heads: int = 4
    stem: bool = True
    activation: Literal["gelu", "quick_gelu"] = "gelu"
    final_norm: bool = False

    def __post_init__(self) -> None:
        here = "policy.backbone.vision"
        check_ranges(self, here, image_size=COUNT, patch_size=COUNT, width=COUNT, layers=AMOUNT, heads=COUNT)
        if self.image_size % self.patch_size:
            raise UserError(f"{here}.image_size {self.image_size} is no multiple of patch_size {self.patch_size}")
        if self.width % self.heads:
            raise UserError(f"{here}.width {self.width} is no multiple of heads {self.heads}")
        if self.stem and self.patch_size not in (8, 16):
            raise UserError(
                f"{here}.stem needs patch_size 8 or 16, not {self.patch_size}; change it, or set stem to false"
            )


class Block(ResidualAttentionBlock):
    """open_clip's block, without the copies that its sequence-first attention takes."""

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (N, V, D) -> (N, V, D)."""
        attention = self.attn
        projected = F.linear(self.ln_1(tokens), attention.in_proj_weight, attention.in_proj_bias)
        queries, keys, values = projected.chunk(3, dim=-1)
        tokens = tokens + attention.out_proj(attend(queries, keys, values, attention.num_heads))
        return tokens + self.mlp(self.ln_2(tokens))


class VisionEncoder(VisionTransformer):
    """open_clip's VisionTransformer, giving patch tokens for images of any size."""

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
            self.conv1 = convolutional_stem(config.width, config.patch_size)
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


def convolutional_stem(width: int, patch_size: int) -> nn.Sequential:
    """Overlapping convolutions down to one token a patch of 8 or 16 pixels."""
    half = width // 2
    return nn.Sequential(
        nn.Conv2d(3, half, 8, stride=4, padding=2),
        nn.GELU(),
        nn.Conv2d(half, width, 3, stride=2, padding=1),
        nn.GELU(),
        nn.Conv2d(width, width, 3, stride=patch_size // 8, padding=1),
    )
