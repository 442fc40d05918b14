"""Trains from kept vision tokens in the place of images, where the vision encoder is frozen."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from rich.console import Console

from roboflamingo.data.places import cache_beside, folder_at, is_packed
from roboflamingo.data.store.index import read_sealed, write_sealed
from roboflamingo.data.tokens.caching import WantedTokens, cache_tokens
from roboflamingo.data.tokens.shifts import Shift, shifts_of
from roboflamingo.data.windows import Windows
from roboflamingo.policy.base import LearnedPolicy, Vision
from roboflamingo.training.config import TrainConfig
from roboflamingo.training.config_parts import ConfigError
from roboflamingo.training.datamodule import DATA
from roboflamingo.training.launching import is_main_process
from roboflamingo.training.precision import device_for

IMAGES_AT_ONCE = 64
"""That the encoder is shown: always as many, but for the last, so that tokens do not depend on where a kill fell."""
FP16_BYTES = 2


class FrozenEncoder:
    """A policy's vision encoder as what makes tokens of images, in the precision that training computes with.

    Args:
        vision: of the policy.
        config: the run's, its precision settled.
    """

    def __init__(self, vision: Vision, config: TrainConfig) -> None:
        self._encoder, self._settings = vision.encoder, vision.settings
        self._home = next((each.device for each in self._encoder.parameters()), torch.device("cpu"))
        self._device, self._bf16 = device_for(config.accelerator), config.precision == "bf16"

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of class, settings, weights and precision."""
        kind = f"{type(self._encoder).__module__}.{type(self._encoder).__qualname__}"
        told = json.dumps([kind, self._settings, self._bf16], sort_keys=True, default=str)
        digest = hashlib.sha256(told.encode())
        for name, tensor in self._encoder.state_dict().items():
            plain = tensor.detach().cpu().contiguous()
            digest.update(f"{name} {plain.dtype} {tuple(plain.shape)}\0".encode())
            digest.update(plain.reshape(-1).view(torch.uint8).numpy())
        return digest.hexdigest()

    @torch.no_grad()
    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Images (N, H, W, 3) uint8 -> tokens (N, V, D) float32."""
        encoder, modes = self._encoder, [(module, module.training) for module in self._encoder.modules()]
        encoder.eval().to(self._device)  # where it is already, but for the first time
        with torch.autocast(self._device, torch.bfloat16, enabled=self._bf16):
            parts = [
                encoder(torch.from_numpy(images[first : first + IMAGES_AT_ONCE]).to(self._device)).float().cpu()
                for first in range(0, len(images), IMAGES_AT_ONCE)
            ]
        for module, trained in modes:
            module.training = trained
        return torch.cat(parts).numpy()

    def shape(self, edge: int) -> tuple[int, int]:
        """(V, D) of the tokens of a square image of that edge (pixels)."""
        _, count, width = self(np.zeros((1, edge, edge, 3), np.uint8)).shape
        return count, width

    def leave(self) -> None:
        """Puts the encoder back to where it was; training moves the policy to the device itself."""
        self._encoder.to(self._home)


def obstacle(policy: LearnedPolicy, config: TrainConfig) -> str | None:
    """Why a policy cannot be trained from vision tokens, if so; what of it trains has been chosen."""
    vision = policy.vision()
    if vision is None:
        return f"policy.kind {config.policy.kind} has no vision encoder whose tokens could be kept"
    trained = next((name for name, p in vision.encoder.named_parameters() if p.requires_grad), None)
    if trained is None:
        return None
    return (
        f"the vision encoder trains ({trained}); set trainable.everything and trainable.vision to false and "
        "policy.backbone.lora.vision to 0"
    )


def check_vision_tokens(policy: LearnedPolicy, config: TrainConfig) -> None:
    """Refuses `data.vision_tokens: always` where it cannot be.

    Raises:
        ConfigError: the policy has no vision encoder, or it trains.
    """
    hindered = obstacle(policy, config)
    if config.data.vision_tokens == "always" and hindered is not None:
        raise ConfigError(f"data.vision_tokens is always, and {hindered}; or set data.vision_tokens to auto")


@dataclass(frozen=True)
class Demand:
    """What decides how many shifts of each image are kept. It is known from sizes alone.

    Attributes:
        image_bytes: that one image's tokens take, by camera.
        possible: how many shifts there are, by camera.
        training: frames of all data sets.
        held_out: frames to validate on, whose images are not shifted.
        looked_at: frames that training looks at, one as often as it does; None where minutes limit it.
    """

    image_bytes: Mapping[str, int]
    possible: Mapping[str, int]
    training: int
    held_out: int
    looked_at: int | None

    def bytes(self, shifts: int) -> int:
        """That the tokens take."""
        return sum(
            size * (self.training * min(shifts, self.possible[camera]) + self.held_out)
            for camera, size in self.image_bytes.items()
        )

    def encoded(self, shifts: int) -> int:
        """Training frames that are encoded, one as often as its images are shifted."""
        return self.training * max(min(shifts, most) for most in self.possible.values())

    def choose(self, shifts: int, most_bytes: float, *, saves: bool) -> tuple[int, str]:
        """How many shifts are kept, 0 for no tokens at all, and why not as many as are asked for.

        Args:
            shifts: asked for.
            most_bytes: that the tokens may take.
            saves: whether no more frames may be encoded than training looks at.
        """
        why = ""
        for count in range(min(shifts, max(self.possible.values())), 0, -1):
            which = "the images" if count == 1 else f"{count} shifts of each image"
            if self.bytes(count) > most_bytes:
                why = f"{which} would take {_gigabytes(self.bytes(count))}, and data.token_gb is {most_bytes / 1e9:g}"
            elif saves and self.looked_at is not None and self.encoded(count) > self.looked_at:
                why = f"training looks at {self.looked_at} frames, and {which} are {self.encoded(count)} to encode"
            else:
                return count, why
        return 0, why


def with_vision_tokens(
    policy: LearnedPolicy,
    config: TrainConfig,
    windows: tuple[Windows, Windows | None],
    console: Console,
    *,
    continued: bool,
) -> tuple[Windows, Windows | None]:
    """The windows with kept tokens in the place of images, made where they are missing, or as they are.

    A run that is continued does what it began with.

    Args:
        policy: whose trained parameters have been chosen.
        config: the run's, its precision settled.
        windows: to train on, and held-out ones.
        console: for what is done, and why.
        continued: whether the run goes on from a saved state.

    Raises:
        ConfigError: `data.vision_tokens` is always, and cannot be.
        DataError: tokens are not finite, or the disk is too small or cannot be written to.
    """
    check_vision_tokens(policy, config)
    began = (read_sealed(Path(config.run) / DATA) or {}).get("token_shifts", 0) if continued else None
    vision, wish = policy.vision(), config.data.vision_tokens
    if wish == "never" or vision is None or obstacle(policy, config) is not None or began == 0:
        return windows
    encoder = FrozenEncoder(vision, config)
    cameras = {name: policy.config.cameras[name] for name in policy.config.seen}
    shapes = {name: encoder.shape(camera.size) for name, camera in cameras.items()}
    demand = _demand(config, windows, shapes, {name: camera.shift for name, camera in cameras.items()})
    count, why, most_bytes = began or 0, "", config.data.token_gb * 1e9
    if began is None:
        count, why = demand.choose(config.data.token_shifts, most_bytes, saves=wish == "auto")
        _note(config, count)
    if count == 0 and wish == "always":
        raise ConfigError(f"data.vision_tokens is always, and {why}; raise data.token_gb, or set it to auto")
    root = _root(config)
    _say(console, f"vision tokens are not kept: {why}" if count == 0 else _what(demand, count, root, why))
    if count == 0:
        encoder.leave()
        return windows
    shifts = {name: shifts_of(camera.shift, count) for name, camera in cameras.items()}
    tokens = cache_tokens(_wanted(windows, shapes, shifts), root, encoder, most_bytes, console)
    encoder.leave()
    training, held_out = windows
    split = len(training.folders)
    seen = training.with_tokens(tokens[:split], config.seed)
    return seen, None if held_out is None else held_out.with_tokens(tokens[split:])


def _demand(
    config: TrainConfig,
    windows: tuple[Windows, Windows | None],
    shapes: Mapping[str, tuple[int, int]],
    largest: Mapping[str, int],
) -> Demand:
    """See `Demand`."""
    training, held_out = (sum(folder.frames for folder in each.folders) if each else 0 for each in windows)
    frames = None if config.max_steps is None else config.max_steps * config.windows_a_step * windows[0].window
    sizes = {name: count * width * FP16_BYTES for name, (count, width) in shapes.items()}
    return Demand(sizes, {name: (2 * pixels + 1) ** 2 for name, pixels in largest.items()}, training, held_out, frames)


def _wanted(
    windows: tuple[Windows, Windows | None],
    shapes: Mapping[str, tuple[int, int]],
    shifts: Mapping[str, Sequence[Shift]],
) -> list[WantedTokens]:
    """The tokens of all folders, those of training first; held-out images are not moved."""
    training, held_out = windows
    still = {name: some[:1] for name, some in shifts.items()}
    wanted = [WantedTokens(folder, shapes, shifts) for folder in training.folders]
    return wanted + [WantedTokens(folder, shapes, still) for folder in (held_out.folders if held_out else ())]


def _root(config: TrainConfig) -> Path:
    """Where tokens go: below `data.cache`, or in the first data set."""
    if config.data.cache:
        return folder_at(config.data.cache) / "tokens"
    first = folder_at(next(iter(config.data.folders)))
    return (first if is_packed(first) else cache_beside(first)) / "tokens"


def _note(config: TrainConfig, count: int) -> None:
    """Notes in the run what it begins with, whatever its length or limits become later."""
    path = Path(config.run) / DATA
    before = read_sealed(path) or {}
    if is_main_process() and before.get("token_shifts") != count:
        write_sealed(path, before | {"token_shifts": count})


def _what(demand: Demand, count: int, root: Path, why: str) -> str:
    """What is kept, as a sentence."""
    which = "the images" if count == 1 else f"up to {count} shifts of each image"
    fewer = f"; of no more, as {why}" if why else ""
    return f"training from vision tokens of {which}: {_gigabytes(demand.bytes(count))} in {root}{fewer}"


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.3g} GB"


def _say(console: Console, text: str) -> None:
    console.print(f"{text} (data.vision_tokens decides otherwise)", soft_wrap=True, markup=False, highlight=False)
