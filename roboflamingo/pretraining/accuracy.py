"""How many questions a model answers rightly, kind by kind, and how well it reads states."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch

from roboflamingo.pretraining.batches import Batches
from roboflamingo.pretraining.model import Pretraining
from roboflamingo.pretraining.pictures import Pictures

TOGETHER = 32
"""Pictures that are looked at together."""


def accuracy(
    model: Pretraining,
    pictures: Pictures,
    batches: Batches,
    arithmetic: Callable[[], AbstractContextManager[Any]],
    most: int | None = None,
) -> dict[str, float]:
    """The share of right answers by kind of question, of all (`answers`), and the mean error of states (`state`).

    An answer is right where the model, given picture and question, would say it word for word and then end. Captions
    are left out: there are many right ones.

    Args:
        model: in evaluation mode.
        pictures: to ask about.
        batches: makes batches of them.
        arithmetic: makes the context of the precision.
        most: looks at so many of them, spread over the folder; None for all.
    """
    count = len(pictures)
    chosen = range(count) if most is None or most >= count else np.linspace(0, count - 1, most).astype(int).tolist()
    right: dict[str, list[bool]] = defaultdict(list)
    errors = []
    device = next(model.parameters()).device
    for first in range(0, len(chosen), TOGETHER):
        few = [pictures[number] for number in chosen[first : first + TOGETHER]]
        batch = batches.whole(few)
        batch["images"] = [each.to(device) for each in batch["images"]]
        kinds = [kind for each in few for kind, _, _ in each.texts]
        with torch.inference_mode(), arithmetic():
            hits = model.right(batch).tolist()
            states = model.read_states(batch["images"])
        for kind, hit in zip(kinds, hits, strict=True):
            right[kind].append(hit)
        if states is not None:
            errors.append((states.float().cpu() - batch["state"]).abs().mean(1))
    right = {kind: hits for kind, hits in right.items() if kind != "caption"}
    found = {kind: float(np.mean(hits)) for kind, hits in sorted(right.items())}
    if right:
        found["answers"] = float(np.mean([hit for hits in right.values() for hit in hits]))
    if errors:
        found["state"] = float(torch.cat(errors).mean())
    return found
