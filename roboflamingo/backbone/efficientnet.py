"""EfficientNet-lite0 as a vision encoder (Tan and Le 2019, arXiv 1905.11946; lite: ReLU6, no squeeze-and-excitation).

Its batch norms keep the statistics that they were trained with, so each is a part of the convolution before it: weights
that were published with batch norms are folded when they are read (`weights/vision_files.py`). Shapes: N images,
C channels, V tokens of a grid, D width.
"""

from __future__ import annotations

import math
from dataclasses import fields

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from calvin_eval.system.errors import UserError
from roboflamingo.backbone.encoders import EFFICIENTNET, ImageEncoder, VisionConfig, register_vision

STEM = 32
STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
"""Blocks, edge of the depthwise kernel, stride of the first block, expansion, channels that come out."""
ENDS = {8: 3, 16: 5, 32: 7}
"""How many stages give features of that stride (pixels)."""
OF_OTHERS = ("image_size", "patch_size", "layers", "heads", "stem", "activation", "final_norm")
"""Keys of `VisionConfig` that are not used."""
STRIDE, POSITIONS = 16, 16
"""Defaults of the settings."""
MEAN, STD = 127.0, 128.0
"""Pixels were trained on as (x - 127) / 128."""
IMAGES_IN_CACHE = 4
"""Images that a CPU encodes at once where nothing is kept for a backward pass; more would leave its cache."""


def features_of(config: VisionConfig) -> tuple[int, int]:
    """The settings `stride` and `positions`: pixels from token to token, and numbers that say where a token lies.

    Raises:
        UserError: a setting is unknown, its value cannot be, or a key of other encoders would do nothing.
    """
    for field in fields(config):
        if field.name in OF_OTHERS and getattr(config, field.name) != field.default:
            raise UserError(f"policy.backbone.vision.{field.name} does nothing with kind {config.kind}; leave it out")
    here = "policy.backbone.vision.settings"
    if unknown := config.settings.keys() - {"stride", "positions"}:
        raise UserError(f"{here} {min(unknown)!r} does nothing with kind {config.kind}; it has stride and positions")
    stride, positions = config.settings.get("stride", STRIDE), config.settings.get("positions", POSITIONS)
    if stride not in ENDS:
        raise UserError(f"{here}.stride is {stride!r}; choose one of {', '.join(map(str, ENDS))}")
    if type(positions) is not int or positions < 0 or positions % 4:
        raise UserError(f"{here}.positions is {positions!r}; it must be 0 or a multiple of 4")
    return stride, positions


def width_of(config: VisionConfig) -> int:
    """D: channels and positions.

    Raises:
        UserError: see `features_of`.
    """
    stride, positions = features_of(config)
    return STAGES[ENDS[stride] - 1][-1] + positions


def blocks_of(config: VisionConfig) -> int:
    """How many blocks there are up to the stride.

    Raises:
        UserError: see `features_of`.
    """
    return sum(repeats for repeats, *_ in STAGES[: ENDS[features_of(config)[0]]])


@register_vision(EFFICIENTNET)
class EfficientNetLite0(ImageEncoder):
    """A feature map as tokens, each followed by its place in the image.

    The language model's cross-attention and the resampler know no places, and a convolutional network's features hardly
    tell theirs, so each token gets sines of its row and column besides, which do not train. Features are brought to
    zero mean and unit variance, as they are no layer's input as they come.

    Settings: `stride` (8, 16 or 32; 16), `positions` (numbers that say where a token lies, a multiple of 4; 16). Of the
    other keys it uses but `width`, which must be the sum of channels (40, 112 or 320) and positions.

    Raises:
        UserError: a setting or the width cannot be.
    """

    without_memory = True

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        stride, self.positions = features_of(config)
        if config.width != width_of(config):
            raise UserError(
                f"policy.backbone.vision.width is {config.width}; {config.kind} of stride {stride} with "
                f"{self.positions} positions is {width_of(config)} wide"
            )
        self.stem = SameConv(3, STEM, 3, stride=2)
        blocks, before = [], STEM
        for repeats, kernel, first, expansion, channels in STAGES[: ENDS[stride]]:
            for number in range(repeats):
                blocks.append(Block(before, channels, kernel, first if number == 0 else 1, expansion))
                before = channels
        self.blocks = nn.Sequential(*blocks)
        for part in self.modules():
            if isinstance(part, nn.Conv2d) and not part.weight.is_meta:
                nn.init.kaiming_normal_(part.weight, nonlinearity="relu")
                nn.init.zeros_(part.bias)  # type: ignore[arg-type]

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, H, W, 3) uint8 -> tokens (N, V, D), row by row; V is (H / stride) (W / stride), rounded up."""
        if images.device.type == "cpu" and not self.stem.weight.requires_grad:
            return torch.cat([self._tokens(few) for few in images.split(IMAGES_IN_CACHE)])
        return self._tokens(images)

    @property
    def dtype(self) -> torch.dtype:
        """Of what is added to the layers' output: their vectors stay as they are where matrices become bf16."""
        assert self.stem.bias is not None
        return self.stem.bias.dtype

    def features(self, images: Tensor) -> Tensor:
        """Images (N, H, W, 3) uint8 -> the feature map (N, C, h, w)."""
        pixels = (images.permute(0, 3, 1, 2).to(self.dtype) - MEAN) / STD
        features: Tensor = self.blocks(F.relu6(self.stem(pixels.contiguous(memory_format=torch.channels_last))))
        return features

    def _tokens(self, images: Tensor) -> Tensor:
        features = self.features(images)
        tokens = features.flatten(2).transpose(1, 2)
        tokens = F.layer_norm(tokens, tokens.shape[-1:])
        places = positions(features.shape[-2], features.shape[-1], self.positions).to(tokens)
        return torch.cat([tokens, places.expand(len(tokens), -1, -1)], dim=-1)


class SameConv(nn.Conv2d):
    """A convolution padded as TensorFlow does: n pixels become ceil(n / stride), an odd pixel of padding at the end."""

    def __init__(self, before: int, after: int, kernel: int, *, stride: int = 1, groups: int = 1) -> None:
        super().__init__(before, after, kernel, stride, padding=kernel // 2 if stride == 1 else 0, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C', h, w)."""
        kernel, stride = self.kernel_size[0], self.stride[0]
        if stride > 1:
            down, across = (max(0, (-(-size // stride) - 1) * stride + kernel - size) for size in x.shape[-2:])
            x = F.pad(x, (across // 2, across - across // 2, down // 2, down - down // 2))
        return super().forward(x)


class Block(nn.Module):
    """Widens (unless expansion is 1), convolves each channel by itself, narrows; added to its input where that fits."""

    def __init__(self, before: int, after: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = before * expansion
        self.expand = SameConv(before, wide, 1) if expansion > 1 else None
        self.depthwise = SameConv(wide, wide, kernel, stride=stride, groups=wide)
        self.project = SameConv(wide, after, 1)
        self.adds = before == after and stride == 1

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C', h, w)."""
        wide = x if self.expand is None else F.relu6(self.expand(x))
        narrow: Tensor = self.project(F.relu6(self.depthwise(wide)))
        return x + narrow if self.adds else narrow


def positions(rows: int, columns: int, count: int) -> Tensor:
    """Where each cell of a grid lies, (rows * columns, count): sines and cosines of 1, 2, 4, ... half turns.

    A cell's place is that of its middle, from 0 to 1, so that images of any size share them.
    """
    turns = math.pi * 2.0 ** torch.arange(count // 4)
    angles = [((torch.arange(size) + 0.5) / size)[:, None] * turns for size in (rows, columns)]
    down, across = (torch.cat([angle.sin(), angle.cos()], dim=-1) for angle in angles)
    grid = [down[:, None].expand(-1, columns, -1), across[None].expand(rows, -1, -1)]
    return torch.cat(grid, dim=-1).flatten(0, 1)
