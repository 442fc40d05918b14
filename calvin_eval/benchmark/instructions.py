"""What the robot is told: our own sentences for all 34 tasks, in three splits (data/instructions.yaml), or numbers."""

from __future__ import annotations

from functools import lru_cache
from itertools import product
from pathlib import Path

import yaml

from calvin_eval.benchmark.tasks import TASKS
from calvin_eval.calvin import BLOCKS

FILE = Path(__file__).parent / "data" / "instructions.yaml"
SPLITS = ("training", "validation", "enriched")
NUMBERS = "numbers"
"""The split of policies that get no language: "task 17" says which task it is and nothing about it."""
CHOICES = (*SPLITS, NUMBERS)


@lru_cache(maxsize=1)
def _table() -> dict[str, dict[str, tuple[str, ...]]]:
    """Task -> split -> sentences, with colours and sides filled in."""
    table: dict[str, dict[str, tuple[str, ...]]] = {}
    for family, splits in yaml.safe_load(FILE.read_text()).items():
        colours = [block.removeprefix("block_") for block in BLOCKS] if "{colour}" in family else [""]
        sides = ["left", "right"] if "{side}" in family else [""]
        for colour, side in product(colours, sides):
            sentences = {split: [splits[split]] if split == "validation" else splits[split] for split in SPLITS}
            table[family.format(colour=colour, side=side)] = {
                split: tuple(line.format(colour=colour, side=side) for line in lines)
                for split, lines in sentences.items()
            }
    return {task: {**table[task], NUMBERS: (f"task {number}",)} for number, task in enumerate(TASKS)}


@lru_cache(maxsize=1)
def _tasks_by_sentence() -> dict[str, str]:
    return {
        sentence: task for task, splits in _table().items() for sentences in splits.values() for sentence in sentences
    }


def sentences(task: str, split: str) -> tuple[str, ...]:
    """The sentences of a task in a split; `validation` and `numbers` have one.

    Raises:
        KeyError: no such task or split.
    """
    if task not in TASKS:
        raise KeyError(f"task {task!r} does not exist; the tasks are {', '.join(TASKS)}")
    if split not in CHOICES:
        raise KeyError(f"split {split!r} does not exist; the splits are {', '.join(CHOICES)}")
    return _table()[task][split]


def task_of(sentence: str) -> str:
    """The task that a sentence of any split asks for.

    Raises:
        KeyError: the sentence is not one of ours.
    """
    if sentence not in _tasks_by_sentence():
        raise KeyError(f"no task has the sentence {sentence!r}; `sentences` lists them")
    return _tasks_by_sentence()[sentence]
