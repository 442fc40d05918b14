"""The parts of what a training run can be told: its data, its optimizer, what trains, Weights & Biases."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from calvin_eval.system.errors import UserError
from calvin_eval.system.ranges import ABOVE_ZERO, AMOUNT, BELOW_ONE, COUNT, INSIDE_ONE, SHARE, check_ranges
from roboflamingo.data.sources.columns import Columns


class ConfigError(UserError):
    """Values that contradict each other or the run they are to continue. The message says which."""


@dataclass
class DataConfig:
    """Which demonstrations are trained on.

    Attributes:
        folders: data sets of any kind (CALVIN's folders have `training/` and, for held-out windows, `validation/`), or
            what `roboflamingo data pack` made of them; the
            number says how often a window of that folder is drawn relative to the others' (DAgger rounds
            are further folders).
        cache: where packed copies go; None for `packed/` in the first folder.
        images: how a packed copy keeps images: decoded (raw, at the policy's size: quick to read), compressed (JPEG, at
            the recorded size: about a tenth of CALVIN's files), or auto, which decodes up to 32 GB and says so.
        damaged: what happens to a frame that is missing or cannot be read: error names it; leave_out leaves out the
            windows that need it and says how many frames there were.
        stride: recorded frames (30 Hz) from one frame of a window to the next.
        shortest_window: frames of a window, drawn anew each time between this number and policy.window; None for always
            policy.window.
        language: the sub-folder of a CALVIN split that holds `auto_lang_ann.npy`.
        segment_ends: whether the second bound of a CALVIN segment is the frame after its last (exclusive, as CALVIN's
            own loader reads), or its last (inclusive).
        columns: which columns of a recorded vector are which part of an action, and which state, where the data set
            does not say it itself.
        subset: of some of the folders, a file that names the segments of `training/` that are used: their numbers, or
            pairs of first frame and end (JSON, .npy, or text with a segment in a line).
        wordings: a file with further sentences by task (YAML or JSON), each drawn as often as the annotated one.
        only_wordings: those sentences stand in for the annotated ones, also of held-out windows, which get the first.
        fraction: share of the annotated segments of `training/` that is used, drawn by `seed` evenly over tasks.
        balance_tasks: draws every task equally often instead of every window.
        out_of_range: what happens to relative actions beyond [-1, 1], which no head can say: error refuses the data
            and names the frame; clip brings them into the range and says how many there were.
        vision_tokens: whether the tokens of a frozen vision encoder are computed once, kept in the cache and trained
            from in the place of images. auto does where it can and where it saves time: nothing of the encoder trains
            (trainable.everything and trainable.vision are false, policy.backbone.lora.vision is 0), its tokens take at
            most token_gb, and training looks at no fewer frames than would have to be encoded; always does in any
            case, or says what hinders it; never trains from images. A run says which it does.
        token_shifts: of how many random shifts of each image tokens are kept, the image itself included; a window
            draws one for each camera. Fewer where token_gb, or with auto the length of training, leaves room for
            fewer only.
        token_gb: the most that vision tokens may take on the disk (10^9 bytes): those of a run, or it keeps fewer or
            none; and all in its cache, or older ones that no process uses are removed.
        workers: processes that read ahead; 0 reads between two steps, which takes about a millisecond where images lie
            decoded, and some ten where they lie compressed.
        pack_processes: processes that pack; None for one per core.
    """

    folders: dict[str, float]
    cache: str | None = None
    images: Literal["auto", "decoded", "compressed"] = "auto"
    damaged: Literal["error", "leave_out"] = "error"
    stride: int = 1
    shortest_window: int | None = None
    language: str = "lang_annotations"
    segment_ends: Literal["exclusive", "inclusive"] = "exclusive"
    columns: Columns = field(default_factory=Columns)
    subset: dict[str, str] = field(default_factory=dict)
    wordings: str | None = None
    only_wordings: bool = False
    fraction: float = 1.0
    balance_tasks: bool = False
    out_of_range: Literal["error", "clip"] = "error"
    vision_tokens: Literal["auto", "never", "always"] = "auto"
    token_shifts: int = 4
    token_gb: float = 20.0
    workers: int = 0
    pack_processes: int | None = None

    def __post_init__(self) -> None:
        check_ranges(
            self,
            "data",
            ConfigError,
            folders=ABOVE_ZERO,
            stride=COUNT,
            shortest_window=COUNT,
            fraction=SHARE,
            token_shifts=COUNT,
            token_gb=ABOVE_ZERO,
            workers=AMOUNT,
            pack_processes=COUNT,
        )
        if not self.folders:
            raise ConfigError("data.folders is empty; name at least one data set and its weight, 1.0")
        if self.only_wordings and self.wordings is None:
            raise ConfigError("data.only_wordings does nothing without data.wordings; name the file of sentences")
        if strange := self.subset.keys() - self.folders.keys():
            raise ConfigError(f"data.subset names {min(strange)}, which is none of data.folders")


@dataclass
class OptimizerConfig:
    """AdamW, its learning rate over time, and what happens to gradients and weights around a step.

    Attributes:
        kind: adamw, or adamw_8bit, whose two averages a weight take a byte each instead of four (needs
            bitsandbytes).
        learning_rate: at the top of the schedule, before `scale_with`.
        scale_with: `batch` multiplies learning_rate by the windows of an optimizer step (batch_size x
            accumulate x devices x nodes) over reference_batch; `none` leaves it as it is.
        reference_batch: windows of an optimizer step for which learning_rate is meant, where it is scaled.
        schedule: constant, or falling to zero at the end of training (counted in optimizer steps or minutes,
            whichever limits it): linear, cosine, or cosine_restarts, which does so several times.
        cycles: how many times cosine_restarts falls.
        warmup_steps: optimizer steps over which the learning rate rises from zero.
        weight_decay: of matrices; biases, norms, gates, embeddings and latents never decay.
        decay_only: patterns (`*` matches anything) of the parameters' names to which weight_decay is confined;
            `*gated_cross_attn_layer*` is RoboFlamingo's recipe. None for all matrices.
        beta1: memory of the gradient's mean.
        beta2: memory of the gradient's square.
        clip: largest norm of the accumulated gradient; None for no limit.
        ema: decay of the average of the weights, say 0.999, which is then what gets validated and saved as
            policy; None for the weights themselves.
    """

    kind: Literal["adamw", "adamw_8bit"] = "adamw"
    learning_rate: float = 1e-3
    scale_with: Literal["none", "batch"] = "none"
    reference_batch: int | None = None
    schedule: Literal["constant", "linear", "cosine", "cosine_restarts"] = "cosine"
    cycles: int = 1
    warmup_steps: int = 100
    weight_decay: float = 0.02
    decay_only: list[str] | None = None
    beta1: float = 0.9
    beta2: float = 0.999
    clip: float | None = 1.0
    ema: float | None = None

    def __post_init__(self) -> None:
        check_ranges(
            self,
            "optimizer",
            ConfigError,
            learning_rate=AMOUNT,
            reference_batch=COUNT,
            cycles=COUNT,
            warmup_steps=AMOUNT,
            weight_decay=AMOUNT,
            beta1=BELOW_ONE,
            beta2=BELOW_ONE,
            clip=ABOVE_ZERO,
            ema=INSIDE_ONE,
        )
        if (self.scale_with == "batch") != (self.reference_batch is not None):
            raise ConfigError(
                f"optimizer.scale_with is {self.scale_with} and optimizer.reference_batch {self.reference_batch}; "
                "set scale_with to batch and reference_batch to the windows that learning_rate is meant for, or neither"
            )


@dataclass
class TrainableConfig:
    """Which weights are trained. The head, its pooling, adapters and low-rank updates always are.

    Attributes:
        everything: all weights, whatever the other keys say; None for no where weights are published ones.
        resampler: the resamplers.
        cross_attention: its last so many layers; None for all, 0 for none.
        token_embedding: the language model's.
        vision: the vision encoder.
        language: the language model's own layers.
    """

    everything: bool | None = None
    resampler: bool = True
    cross_attention: int | None = None
    token_embedding: bool = False
    vision: bool = False
    language: bool = False

    def __post_init__(self) -> None:
        check_ranges(self, "trainable", ConfigError, cross_attention=AMOUNT)


@dataclass
class WandbConfig:
    """Where Weights & Biases files the run, if `loggers` names it.

    Attributes:
        project: the project's name.
        mode: online, or offline, which writes below the run's folder for a later `wandb sync`.
    """

    project: str = "roboflamingo"
    mode: Literal["online", "offline"] = "online"

    def __post_init__(self) -> None:
        check_ranges(self, "wandb", ConfigError)
