"""What pre-training can be told. These fields are the command line's and the YAML file's keys."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from calvin_eval.system.errors import UserError
from calvin_eval.system.ranges import ABOVE_ZERO, AMOUNT, COUNT, SEED, check_ranges
from roboflamingo.backbone.config import BackboneConfig


@dataclass
class PretrainConfig:
    """A vision-language model learns from pictures and text.

    Attributes:
        run: folder of the run; the model that comes out is its `vlm/`.
        data: folders of pictures with texts to learn from.
        held_out: such folders, whose accuracy is reported for each kind of question.
        backbone: sizes of the model; its vocabulary is made of the texts.
        shift: largest random shift of training pictures (share of their edge).
        texts: of every picture in a batch.
        question_weight: of the loss on words that are given to the model in use: questions.
        state_weight: of the loss of a linear layer that predicts the pictures' states from the visual tokens; 0 for
            none. The layer is not part of the model.
        max_steps: optimizer steps.
        batch_size: pictures in a batch.
        learning_rate: at its highest; it falls to zero as a cosine.
        warmup_steps: over which it rises.
        weight_decay: of matrices.
        clip: largest norm of the gradient.
        precision: of arithmetic; auto is bf16 where the processor computes in it.
        accelerator: cpu or cuda; auto takes what is there.
        seed: of initial weights, order and shifts.
        log_every_steps: that a line of metrics.jsonl averages over.
        validate_every_steps: from one look at the held-out pictures to the next; one always comes at the end.
        held_out_pictures: of each folder that are looked at before the end; then all are.
        save_every_minutes: between saves of last.ckpt.
    """

    run: str
    data: list[str] = field(default_factory=list)
    held_out: list[str] = field(default_factory=list)
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    shift: float = 0.04
    texts: int = 6
    question_weight: float = 0.1
    state_weight: float = 1.0
    max_steps: int = 10000
    batch_size: int = 64
    learning_rate: float = 1e-3
    warmup_steps: int = 200
    weight_decay: float = 0.02
    clip: float = 1.0
    precision: Literal["fp32", "bf16", "auto"] = "auto"
    accelerator: Literal["auto", "cpu", "cuda"] = "auto"
    seed: int = 0
    log_every_steps: int = 20
    validate_every_steps: int = 1000
    held_out_pictures: int = 512
    save_every_minutes: float = 2.0

    def __post_init__(self) -> None:
        check_ranges(
            self,
            "",
            UserError,
            shift=AMOUNT,
            texts=COUNT,
            question_weight=AMOUNT,
            state_weight=AMOUNT,
            max_steps=COUNT,
            batch_size=COUNT,
            learning_rate=ABOVE_ZERO,
            warmup_steps=AMOUNT,
            weight_decay=AMOUNT,
            clip=ABOVE_ZERO,
            seed=SEED,
            log_every_steps=COUNT,
            validate_every_steps=COUNT,
            held_out_pictures=COUNT,
            save_every_minutes=ABOVE_ZERO,
        )
        if self.shift >= 0.5:
            raise UserError(f"shift is {self.shift}, a share of the picture's edge; it must be below 0.5")
        if self.backbone.weights != "random":
            raise UserError("backbone.weights is published; pre-training begins from nothing: set it to random")
