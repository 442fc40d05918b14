"""`roboflamingo convert`: turns an OpenFlamingo or RoboFlamingo checkpoint into a policy folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from roboflamingo.cli.arguments import parse_config
from roboflamingo.policy.config import PolicyConfig

EXAMPLES = """
roboflamingo convert --checkpoint checkpoint.pth --out policies/theirs --policy.backbone.preset mpt-1b-dolly
roboflamingo convert --checkpoint checkpoint.pt --out policies/start --policy.backbone.preset rpj-3b
roboflamingo convert --checkpoint checkpoint.pth --out policies/theirs --policy.backbone.preset mpt-1b-dolly \\
    --policy.backbone.language.source models/mpt-1b-dolly --policy.backbone.vision.source clip.safetensors
"""


@dataclass
class ConvertConfig:
    """What is converted.

    Attributes:
        checkpoint: OpenFlamingo's checkpoint.pt or RoboFlamingo's .pth.
        out: the policy folder to write.
        policy: what the checkpoint does not say: sources of frozen weights, fusion, window, image sizes. Head,
            chunk and sizes of resampler and cross-attention come from the checkpoint.
        allow: problems that are no error; tensors that are missing begin randomly.
        overwrite: replaces a policy that is in `out` already.
    """

    checkpoint: str
    out: str
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    allow: list[Literal["missing", "unexpected", "shape"]] = field(default_factory=list)
    overwrite: bool = False


def main(arguments: Sequence[str]) -> None:
    """Converts, and says what was made."""
    summary = "Turns an OpenFlamingo or RoboFlamingo checkpoint into a policy folder that needs no other file."
    config = parse_config(ConvertConfig, "convert", arguments, summary=summary, examples=EXAMPLES)
    from roboflamingo.weights.converting import convert

    checkpoint, out = Path(config.checkpoint).expanduser(), Path(config.out).expanduser()
    policy = convert(checkpoint, out, config.policy, config.allow, overwrite=config.overwrite)
    made = policy.config
    print(
        f"{config.out}: {sum(p.numel() for p in policy.parameters()):,} weights, {made.head.kind} head, "
        f"window {made.window}, chunks of {made.chunk}, {made.backbone.fusion} fusion"
    )
