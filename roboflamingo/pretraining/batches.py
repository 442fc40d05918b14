"""Batches of pictures and texts; a pure function of seed and position, so that a run continues bit for bit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from roboflamingo.backbone.language import END, IMAGE
from roboflamingo.policy.inputs import random_shift
from roboflamingo.pretraining.pictures import Asked, Picture, given, written

Texts = tuple[list[list[int]], list[int], list[int]]
"""Token ids of each text, where what the model is to say begins, and which picture it is about."""


class Batches:
    """Makes batches of pictures.

    Args:
        tokenizer: of the language model.
        cameras: whose pictures, in this order.
        max_tokens: longest text; longer ones are cut.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, cameras: Sequence[str], max_tokens: int) -> None:
        self._tokenizer, self._cameras, self._longest = tokenizer, tuple(cameras), max_tokens

    def training(self, pictures: Sequence[Picture], texts: int, shift: float, seed: Sequence[int]) -> dict[str, Any]:
        """A batch to learn from: some texts of each picture, its images shifted at random.

        Args:
            pictures: N.
            texts: of each, drawn without repetition as far as there are so many.
            shift: largest (share of the edge).
            seed: of the draws.
        """
        rng = np.random.default_rng(seed)
        drawn = [
            [each.texts[i] for i in rng.choice(len(each.texts), min(texts, len(each.texts)), replace=False)]
            for each in pictures
        ]
        batch = self._batch(pictures, drawn)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(rng.integers(2**62)))
            batch["images"] = [
                random_shift(each.unsqueeze(1), round(shift * each.shape[1])).squeeze(1) for each in batch["images"]
            ]
        return batch

    def whole(self, pictures: Sequence[Picture]) -> dict[str, Any]:
        """A batch with all texts of each picture, as it is."""
        return self._batch(pictures, [each.texts for each in pictures])

    def _batch(self, pictures: Sequence[Picture], texts: Sequence[Sequence[Asked]]) -> dict[str, Any]:
        images = [torch.from_numpy(np.stack([each.images[name] for each in pictures])) for name in self._cameras]
        state = torch.from_numpy(np.stack([each.state for each in pictures])).float()
        return {"images": images, "state": state, "texts": self.tokens(texts)}

    def tokens(self, texts: Sequence[Sequence[Asked]]) -> Texts:
        """The texts of each picture as tokens: image, what is given, what is to be said, end."""
        flat = [asked for several in texts for asked in several]
        picture = [number for number, several in enumerate(texts) for _ in several]
        eos = self._tokenizer.eos_token or ""
        whole = self._tokenizer([f"{IMAGE}{written(*asked)}{END}{eos}" for asked in flat])["input_ids"]
        begin = self._tokenizer([f"{IMAGE}{given(kind, question)}" for kind, question, _ in flat])["input_ids"]
        return [row[: self._longest] for row in whole], [len(row) for row in begin], picture
