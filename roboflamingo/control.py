"""Runs a trained policy as a `calvin_eval.protocol.Policy`: window memory and the execution of chunks.

Closed loop executes one action of each predicted chunk (E = 1), open loop all K; anything between works too. The
temporal ensemble (Zhao et al. 2023, arXiv 2304.13705) predicts at every step and executes the weighted mean of what
the last K chunks say about it. All state of an episode is in its memory.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from calvin_eval.protocol import ACTION_SIZE, Observation
from roboflamingo.backbone import Text
from roboflamingo.data.images import resize_image
from roboflamingo.policy import RoboFlamingo

KEPT_TEXTS = 64
"""Sets of instructions whose reading is kept."""


@dataclass(frozen=True)
class EpisodeMemory:
    """What is remembered of an episode.

    Attributes:
        instruction: the sentence.
        frames: of the last T - 1 observed frames at most, (t, D) fused vectors; where fusion joins frames,
            visual tokens (t, R, Dv).
        chunks: past predictions (K, 7) for the temporal ensemble, newest first.
        step: predictions made so far.
    """

    instruction: str
    frames: Tensor | None = None
    chunks: tuple[np.ndarray, ...] = field(default=())
    step: int = 0


class PolicyController:
    """A policy that acts.

    An episode's window grows from its first frame to T frames, as RoboFlamingo's does. Policies that were trained on
    full windows only (`head.last_step_only`, and fusion that joins frames) get the first frame repeated instead.

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
        self._grows = not (policy.joins_window or policy.config.head.last_step_only)
        self._texts: OrderedDict[tuple[str, ...], Text] = OrderedDict()

    def start(self, instruction: str) -> EpisodeMemory:
        """The memory of an episode that begins now."""
        return EpisodeMemory(instruction)

    @torch.inference_mode()
    def act(
        self, observations: Sequence[Observation], memories: Sequence[EpisodeMemory]
    ) -> tuple[np.ndarray, list[EpisodeMemory]]:
        """The next E actions of B episodes, (B, E, 7) float64.

        Raises:
            ValueError: an observation lacks a vector that the policy reads; names it.
        """
        batch = self._batch(observations)
        text = self._read(tuple(memory.instruction for memory in memories))
        media, low = self.policy.see(batch["rgb_static"], batch["rgb_gripper"]), self.policy.low_dimensional(batch)
        frames = media if self.policy.joins_window else self.policy.fuse(media, low, text)
        windows = [
            frame if memory.frames is None else torch.cat([memory.frames, frame])
            for frame, memory in zip(frames[:, 0].split(1), memories, strict=True)
        ]
        features, at = self._windows(windows)
        if self.policy.joins_window:
            features, at = self.policy.fuse(features, low, text), torch.zeros_like(at)
        prediction = self.policy.head.predict(features, self._noise(memories), at=at)
        chunks = self.policy.commands(prediction, batch["robot_obs"])[:, 0].cpu().numpy()
        return self._give_away(chunks, windows, memories)

    def _give_away(
        self, chunks: np.ndarray, windows: Sequence[Tensor], memories: Sequence[EpisodeMemory]
    ) -> tuple[np.ndarray, list[EpisodeMemory]]:
        """What of the chunks (B, K, 7) is executed, and what is remembered."""
        kept = self.policy.config.window - 1
        actions, after = [], []
        for memory, window, chunk in zip(memories, windows, chunks, strict=True):
            past = (chunk, *memory.chunks)[: len(chunk)] if self.ensemble is not None else ()
            actions.append(chunk[: self.execute] if self.ensemble is None else self._mean(past)[None])
            after.append(EpisodeMemory(memory.instruction, window[-kept:] if kept else None, past, memory.step + 1))
        return _as_commands(np.stack(actions)), after

    def _batch(self, observations: Sequence[Observation]) -> dict[str, Tensor]:
        """The present frames as the policy takes them, (B, 1, ...)."""
        config = self.policy.config
        arrays = {
            "rgb_static": [resize_image(o.rgb_static, config.static_size) for o in observations],
            "rgb_gripper": [resize_image(o.rgb_gripper, config.gripper_size) for o in observations],
            "robot_obs": [o.robot_obs.astype(np.float32) for o in observations],
        }
        for name in config.vectors:
            if any(name not in o.vectors for o in observations):
                raise ValueError(f"the policy reads {name!r}, which the observation's vectors lack")
            arrays[name] = [np.asarray(o.vectors[name], np.float32) for o in observations]
        device = next(self.policy.parameters()).device
        return {
            name: torch.from_numpy(np.stack(rows)).unsqueeze(1).to(device, non_blocking=True)
            for name, rows in arrays.items()
        }

    def _read(self, sentences: tuple[str, ...]) -> Text:
        """The instructions, read once for as long as an episode lasts."""
        if sentences not in self._texts:
            self._texts[sentences] = self.policy.read(sentences)
            if len(self._texts) > KEPT_TEXTS:
                self._texts.popitem(last=False)
        return self._texts[sentences]

    def _windows(self, windows: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Windows (t, ...) of t <= T frames as one tensor (B, T, ...), and where in it their last frames are (B,)."""
        length = self.policy.config.window if not self._grows else max(map(len, windows))
        rows, last = [], []
        for window in windows:
            missing = window[:1].expand(length - len(window), *window.shape[1:])
            rows.append(torch.cat([window, missing] if self._grows else [missing, window]))
            last.append(len(window) - 1 if self._grows else length - 1)
        return torch.stack(rows), torch.tensor(last, device=windows[0].device)

    def _noise(self, memories: Sequence[EpisodeMemory]) -> Tensor | None:
        """Noise (B, 1, K, 7) for heads that sample, drawn by seed and step: an episode repeats itself exactly."""
        if not self.policy.head.samples:
            return None
        rows = []
        for memory in memories:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + memory.step)
            rows.append(torch.randn(1, self.policy.config.chunk, ACTION_SIZE, generator=generator))
        return torch.stack(rows).to(next(self.policy.parameters()).device)

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
