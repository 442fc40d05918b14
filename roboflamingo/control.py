"""Runs a trained policy as a `calvin_eval.protocol.Policy`: window memory and the execution of chunks.

Closed loop executes one action of each predicted chunk (E = 1), open loop all K; anything between works too. The
temporal ensemble (Zhao et al. 2023, arXiv 2304.13705) predicts at every step and executes the weighted mean of what
the last K chunks say about it. All state of an episode is in its memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from calvin_eval.protocol import ACTION_SIZE, Observation
from roboflamingo.data.images import resize_image
from roboflamingo.policy import RoboFlamingo


@dataclass(frozen=True)
class EpisodeMemory:
    """What is remembered of an episode.

    Attributes:
        instruction: the sentence.
        features: (t, D) of the last T - 1 observed frames at most.
        chunks: past predictions (K, 7) for the temporal ensemble, newest first.
        step: predictions made so far.
    """

    instruction: str
    features: Tensor | None = None
    chunks: tuple[np.ndarray, ...] = field(default=())
    step: int = 0


class PolicyController:
    """A policy that acts.

    Args:
        policy: the trained module.
        execute: E, actions of a chunk that are executed before the next observation; 1..K.
        ensemble: temporal ensemble instead, which needs E = 1: weights exp(-ensemble * age), age 0 being the
            oldest prediction, as in its paper; None for none.
        seed: of the noise that heads which sample act from.

    Raises:
        ValueError: E is not in 1..K, or an ensemble with E > 1.
    """

    def __init__(self, policy: RoboFlamingo, execute: int = 1, ensemble: float | None = None, seed: int = 0) -> None:
        chunk = policy.config.chunk
        if not 1 <= execute <= chunk:
            raise ValueError(f"execute={execute} is not in 1..{chunk}, the length of this policy's chunks")
        if ensemble is not None and execute != 1:
            raise ValueError(f"a temporal ensemble predicts at every step: it needs execute=1, not {execute}")
        self.policy, self.execute, self.ensemble, self.seed = policy.eval(), execute, ensemble, seed

    def start(self, instruction: str) -> EpisodeMemory:
        """The memory of an episode that begins now."""
        return EpisodeMemory(instruction)

    @torch.inference_mode()
    def act(
        self, observations: Sequence[Observation], memories: Sequence[EpisodeMemory]
    ) -> tuple[np.ndarray, list[EpisodeMemory]]:
        """The next E actions of B episodes, (B, E, 7) float64."""
        features = self._features(observations, memories)
        windows = [
            frame if memory.features is None else torch.cat([memory.features, frame])
            for frame, memory in zip(features.split(1), memories, strict=True)
        ]
        chunks = self._chunks(windows, memories)
        kept = self.policy.config.window - 1
        actions, after = [], []
        for memory, window, chunk in zip(memories, windows, chunks, strict=True):
            past = (chunk, *memory.chunks)[: len(chunk)] if self.ensemble is not None else ()
            actions.append(chunk[: self.execute] if self.ensemble is None else self._mean(past)[None])
            after.append(EpisodeMemory(memory.instruction, window[-kept:] if kept else None, past, memory.step + 1))
        return _as_commands(np.stack(actions)), after

    def _features(self, observations: Sequence[Observation], memories: Sequence[EpisodeMemory]) -> Tensor:
        """(B, D) of the present frames."""
        config = self.policy.config
        device = next(self.policy.parameters()).device
        static = np.stack([resize_image(o.rgb_static, config.static_size) for o in observations])
        gripper = np.stack([resize_image(o.rgb_gripper, config.gripper_size) for o in observations])
        robot = np.stack([o.robot_obs for o in observations]).astype(np.float32)
        inputs = {
            name: torch.from_numpy(x).unsqueeze(1).to(device)
            for name, x in (("static", static), ("gripper", gripper), ("robot_obs", robot))
        }
        return self.policy.features(**inputs, instruction=[memory.instruction for memory in memories])[:, 0]

    def _noise(self, memories: Sequence[EpisodeMemory]) -> Tensor | None:
        """Noise (B, 1, K, 7) for heads that sample, drawn by seed and step: an episode repeats itself exactly."""
        if not self.policy.head.samples:
            return None
        rows = []
        for memory in memories:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + memory.step)
            rows.append(torch.randn(1, self.policy.config.chunk, ACTION_SIZE, generator=generator))
        return torch.stack(rows).to(next(self.policy.parameters()).device)

    def _chunks(self, windows: list[Tensor], memories: Sequence[EpisodeMemory]) -> np.ndarray:
        """(B, K, 7) from windows (t, D) of t <= T frames; a window shorter than T begins with its first frame."""
        length = self.policy.config.window
        full = [torch.cat([w[:1].expand(length - len(w), -1), w]) for w in windows]
        pose, gripper = self.policy.head.predict(torch.stack(full), self._noise(memories), last=True)
        chunk = torch.cat([pose[:, -1], gripper[:, -1].sigmoid().mul(2).sub(1).unsqueeze(-1)], dim=-1)
        return chunk.double().cpu().numpy()

    def _mean(self, past: Sequence[np.ndarray]) -> np.ndarray:
        """What the past chunks, newest first, say about the present step, averaged: (7,)."""
        assert self.ensemble is not None
        said = np.stack([chunk[age] for age, chunk in enumerate(past)])
        weights = np.exp(-self.ensemble * np.arange(len(past))[::-1])
        return (weights / weights.sum()) @ said


def _as_commands(actions: np.ndarray) -> np.ndarray:
    """Actions with poses in [-1, 1] and gripper entries of exactly -1 or 1."""
    gripper = ACTION_SIZE - 1
    actions[..., :gripper] = np.clip(actions[..., :gripper], -1.0, 1.0)
    actions[..., gripper] = np.where(actions[..., gripper] > 0, 1.0, -1.0)
    return actions
