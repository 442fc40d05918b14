"""How the backbone is configured."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from calvin_eval.system.errors import UserError
from calvin_eval.system.ranges import AMOUNT, COUNT, FINITE, check_ranges
from roboflamingo.backbone.adapters import LoRAConfig
from roboflamingo.backbone.encoders import VisionConfig
from roboflamingo.backbone.language import LanguageConfig

Fusion = Literal["post", "pre", "two_way", "vit_concat", "first_only"]
PRESETS = (
    "scratch",
    "tiny",
    "smollm2-135m",
    "mpt-1b",
    "mpt-1b-dolly",
    "rpj-3b",
    "rpj-3b-instruct",
    "mpt-7b",
    "llama-7b",
)
"""The models by name: a small one that learns from nothing, ours, published ones; `weights/presets.py` makes them."""


@dataclass
class ResamplerConfig:
    """Sizes of the resampler.

    Attributes:
        latents: tokens that a camera's image becomes.
        depth: layers.
        heads: of the attention.
        head_width: of the attention.
        separate: every camera after the first has a resampler of its own; else all share one.
    """

    latents: int = 8
    depth: int = 1
    heads: int = 4
    head_width: int = 32
    separate: bool = True

    def __post_init__(self) -> None:
        check_ranges(self, "policy.backbone.resampler", latents=COUNT, depth=COUNT, heads=COUNT, head_width=COUNT)


@dataclass
class CrossAttentionConfig:
    """Sizes of the gated cross-attention.

    Attributes:
        every: language layers from one to the next.
        heads: of the attention.
        head_width: of the attention.
        gate: the gates' initial value. Flamingo's 0 suits a pre-trained language model; one that learns from
            nothing learns faster with open gates.
        residual: a frozen copy of the initial cross-attention follows the trained one, and the two are averaged.
    """

    every: int = 1
    heads: int = 4
    head_width: int = 32
    gate: float = 1.0
    residual: bool = False

    def __post_init__(self) -> None:
        check_ranges(self, "policy.backbone.cross_attention", every=COUNT, heads=COUNT, head_width=COUNT, gate=FINITE)


@dataclass
class BackboneConfig:
    """The vision-language model.

    Attributes:
        preset: the name of the model (see `weights/presets.py`) that the other keys come from: `tiny`, which is small
            and comes pre-trained, a published one, or `scratch`, which is small and learns from nothing.
        weights: published ones are read from the `source` of vision encoder and language model and from
            `checkpoint` when a policy is first made; random ones need no file.
        checkpoint: OpenFlamingo's weights of resampler and cross-attention: a name on the Hugging Face hub, or a
            file; None begins with random ones. Or a folder that `roboflamingo pretrain` wrote, which has all weights.
        vision: the vision encoder.
        language: the language model.
        resampler: what turns an image's tokens into a few.
        cross_attention: how the text looks at them.
        fusion: of the cameras. post resamples each and joins the tokens; pre joins the patches and resamples
            once; two_way lets the text look at each in a pass of its own; vit_concat shows it all frames of a
            window at once; first_only leaves out all cameras but the first.
        adapter_width: of a bottleneck perceptron after every language layer (Houlsby et al. 2019,
            arXiv 1902.00751); 0 for none.
        lora: low-rank updates of frozen matrices.
    """

    preset: str = "scratch"
    weights: Literal["random", "published"] = "random"
    checkpoint: str | None = None
    vision: VisionConfig = field(default_factory=VisionConfig)
    language: LanguageConfig = field(default_factory=LanguageConfig)
    resampler: ResamplerConfig = field(default_factory=ResamplerConfig)
    cross_attention: CrossAttentionConfig = field(default_factory=CrossAttentionConfig)
    fusion: Fusion = "post"
    adapter_width: int = 0
    lora: LoRAConfig = field(default_factory=LoRAConfig)

    def __post_init__(self) -> None:
        check_ranges(self, "policy.backbone", adapter_width=AMOUNT)
        self._check_preset()
        if self.weights == "random":  # the layers of published models are known when their folder is read
            self.check_that_it_sees()
        if self.resampler.separate and self.fusion in ("pre", "first_only"):
            self.resampler = replace(self.resampler, separate=False)  # these resample but once

    def check_that_it_sees(self) -> None:
        """Makes sure that a layer that runs has cross-attention.

        Raises:
            UserError: none has.
        """
        run = self.language.layers - (self.language.output == "penultimate")
        if self.cross_attention.every > run:
            raise UserError(
                f"policy.backbone.cross_attention.every is {self.cross_attention.every}, but only {run} language "
                f"layers run, so that none would look at an image; it must be at least 1 and at most {run}"
            )

    def _check_preset(self) -> None:
        """Makes sure that a preset's name does not stand alone, where it would change nothing."""
        if self.preset not in PRESETS:
            raise UserError(
                f"policy.backbone.preset {self.preset!r} does not exist; choose one of {', '.join(PRESETS)}"
            )
        if self.preset != "scratch" and (self.vision == VisionConfig() or self.language == LanguageConfig()):
            raise UserError(
                f"BackboneConfig(preset={self.preset!r}) has the sizes of scratch, as a name alone changes nothing; in "
                f"Python, roboflamingo.weights.presets.preset({self.preset!r}) makes the whole policy"
            )
