"""Folders of pictures with texts and states, as `calvin_eval.captions` records them.

A folder holds `shard_*` folders, each with one array of pictures a camera (`static.npy`, (n, S, S, 3) uint8),
`states.npy` (n, m) float32, `texts.jsonl` (a line a picture, a list of `[kind, question, answer]`) and `index.json`,
which names the states. Arrays are mapped, not read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from calvin_eval.system.errors import UserError
from calvin_eval.system.files import read_json

INDEX, STATES, TEXTS = "index.json", "states.npy", "texts.jsonl"
CAMERAS = ("static", "gripper")
Asked = tuple[str, str, str]
"""Kind, question and answer."""


@dataclass(frozen=True)
class Picture:
    """What is known of one moment.

    Attributes:
        images: (S, S, 3) uint8 by camera.
        state: (m,) float32.
        texts: kind, question and answer of each.
    """

    images: dict[str, np.ndarray]
    state: np.ndarray
    texts: list[Asked]


class Pictures:
    """One folder.

    Args:
        folder: where it lies.

    Raises:
        UserError: it is no such folder, or a damaged one. Names the file.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        shards = sorted(each.parent for each in folder.glob(f"shard_*/{INDEX}"))
        if not shards:
            raise UserError(f"{folder} has no shards; it should be a folder of pictures with texts")
        indices = [read_json(shard / INDEX, "what a shard of pictures holds") for shard in shards]
        first = indices[0]
        try:
            self.settings: dict[str, Any] = first["settings"]
            self.states: tuple[str, ...] = tuple(first["states"])
            self.scenes = sorted({scene for index in indices for scene in index["scenes"]})
            expected = self.settings["frames"]
        except (KeyError, TypeError) as error:
            raise UserError(f"{shards[0] / INDEX} lacks {error}; record the folder again") from error
        self.cameras = tuple(name for name in CAMERAS if (shards[0] / f"{name}.npy").is_file())
        self._arrays = [self._opened(shard) for shard in shards]
        self._ends = np.cumsum([len(states) for _, states, _ in self._arrays])
        if len(self) != expected:
            raise UserError(f"{folder} holds {len(self)} of {expected} pictures; finish recording it")

    def _opened(self, shard: Path) -> tuple[dict[str, np.ndarray], np.ndarray, list[list[Asked]]]:
        try:
            images = {name: np.load(shard / f"{name}.npy", mmap_mode="r") for name in self.cameras}
            states = np.load(shard / STATES, mmap_mode="r")
            lines = (shard / TEXTS).read_text(encoding="utf-8").splitlines()
            texts = [[(str(k), str(q), str(a)) for k, q, a in json.loads(line)] for line in lines]
        except (OSError, ValueError, TypeError) as error:
            raise UserError(f"{shard} is damaged: {error}; record the folder again") from error
        counts = {len(states), len(texts), *map(len, images.values())}
        if len(counts) > 1 or states.shape[1:] != (len(self.states),) or not all(texts):
            raise UserError(f"{shard} is damaged: its files are of {sorted(counts)} pictures; record the folder again")
        return images, states, texts

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, number: int) -> Picture:
        shard = int(np.searchsorted(self._ends, number, side="right"))
        images, states, texts = self._arrays[shard]
        row = number - int(self._ends[shard]) + len(states)
        return Picture({name: each[row] for name, each in images.items()}, states[row], texts[row])

    def sentences(self) -> Iterator[str]:
        """Every text."""
        for _, _, texts in self._arrays:
            for asked in texts:
                for kind, question, answer in asked:
                    yield written(kind, question, answer)

    @cached_property
    def digest(self) -> str:
        """By which its content is known: that of its texts and states. Pictures are a function of the same seeds."""
        digest = hashlib.sha256(repr(self.settings).encode())
        for _, states, texts in self._arrays:
            digest.update(np.ascontiguousarray(states).tobytes() + repr(texts).encode())
        return digest.hexdigest()[:16]

    @property
    def described(self) -> dict[str, Any]:
        """What the folder says of itself, and how many pictures it holds."""
        return {"settings": self.settings, "digest": self.digest, "pictures": len(self)}

    @cached_property
    def sizes(self) -> dict[str, int]:
        """Edge (pixels) of each camera's pictures."""
        images, _, _ = self._arrays[0]
        return {name: each.shape[1] for name, each in images.items()}


class Joined:
    """Several folders in a row.

    Args:
        folders: each of the same cameras, sizes and states.

    Raises:
        UserError: they differ.
    """

    def __init__(self, folders: Sequence[Pictures]) -> None:
        self.folders = list(folders)
        first = self.folders[0]
        for each in self.folders[1:]:
            if (each.sizes, each.states) != (first.sizes, first.states):
                raise UserError(f"{each.folder} has pictures or states of another kind than {first.folder}")
        self._ends = np.cumsum([len(each) for each in self.folders])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, number: int) -> Picture:
        folder = int(np.searchsorted(self._ends, number, side="right"))
        return self.folders[folder][number - int(self._ends[folder]) + len(self.folders[folder])]


def written(kind: str, question: str, answer: str) -> str:
    """A text as the model reads it."""
    return f"{given(kind, question)} {answer}".strip()


def given(kind: str, question: str) -> str:
    """The part of a text that the model is given, and answers."""
    return f"question {question} answer" if question else ""


def order(count: int, seed: int) -> Iterator[int]:
    """Numbers below `count` for ever, each once before any comes again; a pure function of seed and position."""
    epoch = 0
    while True:
        yield from np.random.default_rng([seed, epoch]).permutation(count).tolist()
        epoch += 1
