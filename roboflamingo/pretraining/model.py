"""The model in pre-training: a backbone, its words as output layer, and a linear layer that reads states."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from roboflamingo.backbone.config import BackboneConfig
from roboflamingo.backbone.flamingo import Flamingo

PARTS = 4
"""Into which the texts of a batch are parted by length, so that short ones are not padded to the longest."""


class Pretraining(nn.Module):
    """See the module.

    Args:
        config: of the backbone.
        cameras: how many.
        states: numbers of the states.
        question_weight: see `PretrainConfig`.
        state_weight: likewise.
    """

    def __init__(
        self, config: BackboneConfig, cameras: int, states: int, question_weight: float, state_weight: float
    ) -> None:
        super().__init__()
        self.backbone = Flamingo(config, cameras=cameras)
        self.state = nn.Linear(self.backbone.visual_size, states) if state_weight > 0 else None
        self.question_weight, self.state_weight = question_weight, state_weight

    def loss(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """What to backpropagate ("loss") and its parts.

        Args:
            batch: images, a list of (N, H, W, 3) uint8 a camera; state (N, m); texts (rows, starts, picture), see
                `texts_of`.
        """
        media = self.backbone.see(batch["images"])
        total = weight = answers = answered = torch.zeros((), device=media.device)
        for loss, given, answer in self._token_losses(media, batch["texts"]):
            total = total + (loss * answer).sum() + self.question_weight * (loss * given).sum()
            weight = weight + answer.sum() + self.question_weight * given.sum()
            answers, answered = answers + (loss * answer).sum().detach(), answered + answer.sum()
        losses = {"text": total / weight.clamp(min=1e-6), "answer": answers / answered.clamp(min=1.0)}
        losses["loss"] = losses["text"]
        if self.state is not None:
            found = self.state(media.flatten(1))
            losses["state"] = F.smooth_l1_loss(found.float(), batch["state"], beta=0.1)
            losses["loss"] = losses["loss"] + self.state_weight * losses["state"]
        return losses

    def right(self, batch: Mapping[str, Any]) -> Tensor:
        """Whether each text's answer (n,) is what the model says, word for word, its end included."""
        media = self.backbone.see(batch["images"])
        rows, starts, _ = batch["texts"]
        right = torch.zeros(len(rows), dtype=torch.bool)
        for part, ids, logits in self._parts(media, batch["texts"]):
            hits = logits.argmax(-1) == ids[:, 1:]
            _, answer = _masks(rows, starts, part, ids)
            right[part] = (hits | ~answer).all(1).cpu()
        return right

    def read_states(self, images: Sequence[Tensor]) -> Tensor | None:
        """States (N, m) as the linear layer reads them, or None where there is none."""
        return None if self.state is None else self.state(self.backbone.see(images).flatten(1))

    def _token_losses(self, media: Tensor, texts: Any) -> Any:
        """Of each part of the texts: the losses of its tokens but the first, and which are given and which answers."""
        rows, starts, _ = texts
        for part, ids, logits in self._parts(media, texts):
            loss = F.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten(), reduction="none")
            yield (loss.view(len(part), -1), *_masks(rows, starts, part, ids))

    def _parts(self, media: Tensor, texts: Any) -> Any:
        """Of each part of the texts: which, their ids (n, L), and the logits of all tokens but the first."""
        rows, _, picture = texts
        pad = self.backbone.instructions.tokenizer.pad_token_id
        by_length = sorted(range(len(rows)), key=lambda number: len(rows[number]))
        size = -(-len(rows) // PARTS)
        table = self.backbone.lang_encoder.get_input_embeddings().weight
        for first in range(0, len(rows), size):
            part = by_length[first : first + size]
            length = max(len(rows[number]) for number in part)
            ids = torch.tensor(
                [rows[number] + [pad] * (length - len(rows[number])) for number in part], device=media.device
            )
            text = self.backbone.read(ids, ids != pad)
            hidden = self.backbone(media[[picture[number] for number in part]], text)
            yield part, ids, F.linear(hidden[:, :-1], table)


def _masks(rows: Sequence[list[int]], starts: Sequence[int], part: Sequence[int], ids: Tensor) -> tuple[Tensor, Tensor]:
    """Which tokens but the first (n, L - 1) are given, and which are to be said."""
    place = torch.arange(1, ids.shape[1])
    start = torch.tensor([starts[number] for number in part])[:, None]
    end = torch.tensor([len(rows[number]) for number in part])[:, None]
    answer = (place >= start) & (place < end)
    return (place < start).to(ids.device), answer.to(ids.device)
