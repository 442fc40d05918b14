"""`roboflamingo pretrain`: draws play tables, writes about them; a small vision-language model learns from both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from calvin_eval.benchmark.instructions import SPLITS, sentences
from calvin_eval.benchmark.tasks import TASKS
from calvin_eval.captions.gathering import GatherSettings, gather
from calvin_eval.system.errors import UserError
from calvin_eval.system.ranges import COUNT, check_ranges
from calvin_eval.worlds.playtable.variations import UNSEEN
from roboflamingo.backbone.language import words_of
from roboflamingo.cli.arguments import parse_config
from roboflamingo.pretraining import PretrainConfig, pretrain

EXAMPLES = """
roboflamingo pretrain --config configs/pretrain_tiny.yaml
roboflamingo pretrain --config configs/pretrain_tiny.yaml --training.run runs/mine --training.seed 1
"""


@dataclass
class PretrainVerb:
    """Pictures and training.

    Attributes:
        pictures: what is drawn and written to learn from; scene D never is.
        folder: where pictures go, or lie: `train`, `held_out` (other worlds of the same kind) and `d` (scene D).
        held_out: pictures of each of the two held-out sets.
        workers: processes that draw; one per core by default.
        training: how the model learns from them. Its `data` and `held_out` are what was drawn and cannot be given.
    """

    training: PretrainConfig
    pictures: GatherSettings = field(default_factory=GatherSettings)
    folder: str = "runs/pictures"
    held_out: int = 3000
    workers: int | None = None

    def __post_init__(self) -> None:
        check_ranges(self, "", UserError, held_out=COUNT, workers=COUNT)
        for key in ("data", "held_out"):
            if getattr(self.training, key):
                raise UserError(
                    f"training.{key} does nothing here: pictures are those in folder {self.folder}; leave it out"
                )
        if UNSEEN in self.pictures.scenes:
            raise UserError(f"pictures.scenes has {UNSEEN}, on which models are tested: they never learn from it")


def main(arguments: Sequence[str]) -> None:
    """Records and pre-trains, or what is left of it."""
    summary = "Pre-trains a small vision-language model on drawn pictures and texts; killed, it is continued."
    run(parse_config(PretrainVerb, "pretrain", arguments, summary=summary, examples=EXAMPLES))


def run(config: PretrainVerb) -> Path:
    """The folder of the model.

    Raises:
        UserError: see `gather` and `pretrain`.
    """
    folder, settings = Path(config.folder), config.pictures
    apart = replace(settings, frames=config.held_out, seed=settings.seed + 1001)
    of_d = replace(apart, scenes=(UNSEEN,), varied=False, seed=settings.seed + 1002)
    held_out = [gather(folder / name, each, config.workers) for name, each in (("held_out", apart), ("d", of_d))]
    data = gather(folder / "train", settings, config.workers)
    training = replace(config.training, data=[str(data)], held_out=[str(each) for each in held_out])
    known = words_of(sentence for task in TASKS for split in SPLITS for sentence in sentences(task, split))
    return pretrain(training, known)
