"""Policies without weights, and a play table without images, for tests of evaluation."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from calvin_eval.demonstrations.experts import Expert
from calvin_eval.evaluation.chains import ChainSettings
from calvin_eval.evaluation.runner import run_episodes
from calvin_eval.protocol import Env, EpisodeResult, Memory, Observation, Policy
from calvin_eval.worlds.playtable.world import PlayTable

BLIND = partial(PlayTable, "D", renderer="none")
EXPERT = partial(Expert, "D")
IDLE = np.array([0.0, 0, 0, 0, 0, 0, 1])


class Stubborn(Policy):
    """Does the same for ever, in chunks of a length, and notes instructions and batch sizes."""

    def __init__(self, chunk: int = 1, action: np.ndarray = IDLE) -> None:
        self.chunk, self.action = np.tile(action, (chunk, 1)), action
        self.instructions: list[str] = []
        self.batches: list[int] = []

    def start(self, instruction: str) -> Memory:
        self.instructions.append(instruction)
        return len(self.instructions)

    def act(
        self, observations: Sequence[Observation], memories: Sequence[Memory]
    ) -> tuple[np.ndarray, Sequence[Memory]]:
        self.batches.append(len(observations))
        return np.stack([self.chunk] * len(observations)), memories


def run_chains(
    policy: Policy, envs: Sequence[Env], indices: Iterable[int], settings: ChainSettings, videos: Path
) -> Iterator[EpisodeResult]:
    """Runs CALVIN's chains of these indices in this process; the first `settings.videos` are filmed."""
    return run_episodes(
        policy,
        envs,
        map(settings.benchmark().episode, indices),
        lambda e: videos / f"chain_{e.index:03d}.mp4" if e.index < settings.videos else None,
    )
