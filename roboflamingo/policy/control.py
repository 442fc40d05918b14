"""Runs a trained policy as a `calvin_eval.protocol.Policy`: window memory and the execution of chunks.

Closed loop executes one action of each predicted chunk (E = 1), open loop all K; anything between works too. The
temporal ensemble (Zhao et al. 2023, arXiv 2304.13705) predicts at every step and executes the weighted mean of what
the last K chunks say about it. All state of an episode is in its memory.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from calvin_eval.calvin import ROBOT_OBS
from calvin_eval.protocol import Observation, Policy
from calvin_eval.specs import PolicySpec
from calvin_eval.system.errors import UserError
from roboflamingo.data.images import resize_image
from roboflamingo.heads.actions import as_commands
from roboflamingo.heads.base import frame_at
from roboflamingo.policy.base import LearnedPolicy
from roboflamingo.policy.base_config import BasePolicyConfig

KEPT_TEXTS = 64
"""Instructions whose reading is kept."""
HEAD_ROWS = 12
"""Rows of a head's pass are a multiple of this where they are fixed: the kernels of CPUs take 4, 6 or 12 rows at a time
and compute what is left over in another way."""


@dataclass(frozen=True)
class EpisodeMemory:
    """What is remembered of an episode.

    Attributes:
        instruction: the sentence.
        frames: of the last observed frames, as many as windows to come need, (t, D) fused vectors; where fusion
            joins frames, visual tokens (t, R, Dv).
        chunks: past predictions (K, C), soft commands, for the temporal ensemble, newest first.
        step: predictions made so far.
        unseen: observations since the last prediction that the policy has yet to look at; see `watch`.
    """

    instruction: str
    frames: Tensor | None = None
    chunks: tuple[np.ndarray, ...] = field(default=())
    step: int = 0
    unseen: tuple[Observation, ...] = ()


def check_execution(config: BasePolicyConfig, execute: int, ensemble: float | None) -> None:
    """Makes sure that a policy can be run so.

    Raises:
        UserError: E is not in 1..K, or an ensemble with E > 1.
    """
    if not 1 <= execute <= config.chunk:
        raise UserError(f"execute={execute} is not in 1..{config.chunk}, the length of this policy's chunks")
    if ensemble is not None and execute != 1:
        raise UserError(f"a temporal ensemble predicts at every step: it needs execute=1, not {execute}")


class PolicyController(Policy):
    """A policy that acts.

    An episode's window grows from its first frame to T frames, as RoboFlamingo's does, and as training's windows do.
    Policies that are trained on full windows only (`head.last_step_only`, and fusion that joins frames) get the first
    frame repeated instead.

    Non-obvious behaviours
        - Matrix products round differently with another number of rows. With `rows`, every pass has that many, some of
          them fillers; texts are always padded to `language.max_tokens`, and windows to T. The actions of an episode
          are then the same bits whatever episodes are beside it: tests hold that on CPUs, with AVX2 and AVX-512.
          Exceptions were found with AVX2 alone, for policies of under 32 wide layers and where a pass has 8 rows and
          a row one or four tokens. On GPUs nothing has been measured.
        - Sentences are read one by one and kept.
        - The frames of a window stand `config.stride` control steps apart, as in training, whatever E is. Where the
          steps at which chunks begin do not give those frames, the policy `watches`: it is to be shown every
          observation in between, and then sees as many pictures as in closed loop.

    Args:
        policy: the trained module.
        execute: E, actions of a chunk that are executed before the next observation; 1..K.
        ensemble: temporal ensemble instead, which needs E = 1: weights exp(-ensemble * age), age 0 being the
            oldest prediction, as in its paper; None for none.
        seed: of the noise that heads which sample act from.
        rows: episodes of every pass; more are split, fewer filled up. None passes them as they come.

    Attributes:
        spec: what the policy reads and gives.
        watches: whether `watch` must be called for the observations between two calls of `act`.

    Raises:
        UserError: see `check_execution`.
    """

    spec: PolicySpec

    def __init__(
        self,
        policy: LearnedPolicy,
        execute: int = 1,
        ensemble: float | None = None,
        seed: int = 0,
        rows: int | None = None,
    ) -> None:
        check_execution(policy.config, execute, ensemble)
        self.policy, self.execute, self.ensemble, self.seed = policy.eval(), execute, ensemble, seed
        self.spec = policy.config.spec()
        self._rows, self._grows, stride = rows, policy.config.grows, policy.config.stride
        self.watches = policy.config.window > 1 and stride % execute > 0
        self._shown = execute if self.watches else 1  # most frames that are new to a call of `act`
        self._apart = stride if self.watches else max(1, stride // execute)  # frames shown per frame of a window
        self._device = next(policy.parameters()).device
        self._texts: OrderedDict[str, Any] = OrderedDict()

    def start(self, instruction: str) -> EpisodeMemory:
        """The memory of an episode that begins now."""
        return EpisodeMemory(instruction)

    def watch(self, observation: Observation, memory: EpisodeMemory) -> EpisodeMemory:
        """The memory of an episode after a step within a chunk."""
        return replace(memory, unseen=(*memory.unseen, observation))

    @torch.inference_mode()
    def act(
        self, observations: Sequence[Observation], memories: Sequence[EpisodeMemory]
    ) -> tuple[np.ndarray, list[EpisodeMemory]]:
        """The next E actions of B episodes, (B, E, A) float64.

        Raises:
            UserError: an observation lacks a picture or a vector that the policy reads (names it), or the policy
                `watches` and was not shown what came between.
        """
        rows = self._rows or len(observations)
        parts = [
            self._act(observations[first : first + rows], memories[first : first + rows], rows)
            for first in range(0, len(observations), rows)
        ]
        return np.concatenate([actions for actions, _ in parts]), [memory for _, after in parts for memory in after]

    def _act(
        self, observations: Sequence[Observation], memories: Sequence[EpisodeMemory], rows: int
    ) -> tuple[np.ndarray, list[EpisodeMemory]]:
        """The same in one pass of so many rows."""
        shown = [(*memory.unseen, now) for memory, now in zip(memories, observations, strict=True)]
        for memory, frames in zip(memories, shown, strict=True):
            if self.watches and memory.step > 0 and len(frames) != self.execute:
                raise UserError(
                    f"with execute={self.execute} and frames {self.policy.config.stride} apart this policy must be "
                    "shown every observation: call its `watch` for those within a chunk, or choose execute=1"
                )
        batch = {name: _filled(x, rows) for name, x in self._batch(shown).items()}
        present = _filled(torch.tensor([len(frames) - 1 for frames in shown], device=self._device), rows)
        texts = [self._read(memory.instruction) for memory in memories]
        text = self.policy.stack(texts + texts[:1] * (rows - len(texts)))
        seen = self.policy.look(batch, text)
        histories = [
            torch.cat([row[: len(frames)]] if memory.frames is None else [memory.frames, row[: len(frames)]])
            for row, frames, memory in zip(seen, shown, memories, strict=False)  # fillers come after
        ]
        features, at = self._windows(histories)
        read = batch if self.policy.joins_window else batch.keys() & {ROBOT_OBS}
        now = {name: frame_at(batch[name], present) for name in read}
        if self.policy.joins_window:
            features, at = self.policy.join(_filled(features, rows), now, text), at.new_zeros(rows)
        chunks = self._chunks(features, at, self._noise(memories), now.get(ROBOT_OBS))
        return self._give_away(chunks[: len(memories)], histories, memories)

    def _chunks(self, features: Tensor, at: Tensor, noise: Tensor | None, robot_obs: Tensor | None) -> np.ndarray:
        """Features (B, T, D) and where their last frames are (B,) -> commands of whole chunks (B or more, K, 7)."""
        rows = len(features) if self._rows is None else -(-self._rows // HEAD_ROWS) * HEAD_ROWS
        noise, robot_obs = (None if x is None else _filled(x, rows) for x in (noise, robot_obs))
        prediction = self.policy.decide(_filled(features, rows), noise, at=_filled(at, rows))
        return self.policy.commands(prediction, robot_obs)[:, 0].cpu().numpy()

    def _give_away(
        self, chunks: np.ndarray, histories: Sequence[Tensor], memories: Sequence[EpisodeMemory]
    ) -> tuple[np.ndarray, list[EpisodeMemory]]:
        """What of the chunks (B, K, C) is executed, and what is remembered."""
        kept = (self.policy.config.window - 1) * self._apart
        actions, after = [], []
        for memory, history, chunk in zip(memories, histories, chunks, strict=True):
            past = (chunk, *memory.chunks)[: len(chunk)] if self.ensemble is not None else ()
            actions.append(chunk[: self.execute] if self.ensemble is None else self._mean(past)[None])
            frames = history[-kept:] if kept else None
            after.append(EpisodeMemory(memory.instruction, frames, past, memory.step + 1))
        return as_commands(self.policy.action_space.commands, np.stack(actions)), after

    def _batch(self, shown: Sequence[Sequence[Observation]]) -> dict[str, Tensor]:
        """What episodes were shown since the last call, as the policy takes it: (B, n, ...), filled up behind."""
        cameras = self.policy.config.cameras
        every = [frame for frames in shown for frame in (*frames, *[frames[-1]] * (self._shown - len(frames)))]
        for observation in every:
            self._refuse_what_lacks(observation)
        arrays = {name: [resize_image(o.images[name], cameras[name].size) for o in every] for name in self.spec.cameras}
        for name in self.spec.state:
            arrays[name] = [np.asarray(o.state[name], np.float32) for o in every]
        return {
            name: torch.from_numpy(np.stack(rows)).unflatten(0, (len(shown), -1)).to(self._device, non_blocking=True)
            for name, rows in arrays.items()
        }

    def _refuse_what_lacks(self, seen: Observation) -> None:
        """Names what the policy reads and the observation does not have."""
        for kind, names, there in (("images", self.spec.cameras, seen.images), ("states", self.spec.state, seen.state)):
            if missing := [name for name in names if name not in there]:
                held = f"has {', '.join(there)}" if there else "has none"
                hint = "" if there or kind == "states" else ": choose a renderer"
                raise UserError(f"the policy reads {', '.join(missing)}; of {kind} the observation {held}{hint}")
        for name in self.spec.cameras:
            image = seen.images[name]
            if np.ndim(image) != 3 or np.shape(image)[-1] != 3 or getattr(image, "dtype", None) != np.uint8:
                raise UserError(
                    f"the policy reads images (H, W, 3) uint8 of {name}; the observation's is {np.shape(image)} "
                    f"{getattr(image, 'dtype', type(image).__name__)}"
                )
        for name, size in self.spec.state.items():
            if np.shape(seen.state[name]) != (size,):
                raise UserError(
                    f"the policy reads {size} numbers of {name}; the observation's have shape "
                    f"{np.shape(seen.state[name])}"
                )

    def _read(self, sentence: str) -> Any:
        """An instruction, read once for as long as episodes last."""
        if sentence not in self._texts:
            self._texts[sentence] = self.policy.read([sentence], padded=True)
            if len(self._texts) > KEPT_TEXTS:
                self._texts.popitem(last=False)
        return self._texts[sentence]

    def _windows(self, histories: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Frames so far (t, ...) -> windows of T frames (B, T, ...), and where in them the present ones are (B,)."""
        length, apart = self.policy.config.window, self._apart
        rows, last = [], []
        for history in histories:
            window = history[(len(history) - 1) % apart :: apart][-length:]
            filling = window[-1:] if self._grows else history[:1]  # of a history so short nothing was forgotten
            missing = filling.expand(length - len(window), *window.shape[1:])
            rows.append(torch.cat([window, missing] if self._grows else [missing, window]))
            last.append(len(window) - 1 if self._grows else length - 1)
        return torch.stack(rows), torch.tensor(last, device=histories[0].device)

    def _noise(self, memories: Sequence[EpisodeMemory]) -> Tensor | None:
        """Noise (B, 1, K, C) for policies that sample, drawn by seed and step: an episode repeats itself exactly."""
        if not self.policy.samples:
            return None
        rows, shape = [], (1, self.policy.config.chunk, self.policy.actions.code_size)
        for memory in memories:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + memory.step)
            rows.append(torch.randn(shape, generator=generator))
        return torch.stack(rows).to(self._device)

    def _mean(self, past: Sequence[np.ndarray]) -> np.ndarray:
        """What the past chunks, newest first, say about the present step, averaged: (C,)."""
        assert self.ensemble is not None
        said = np.stack([chunk[age] for age, chunk in enumerate(past)])
        weights = np.exp(-self.ensemble * np.arange(len(past))[::-1])
        return (weights / weights.sum()) @ said


def _filled(x: Tensor, rows: int) -> Tensor:
    """So many rows, the missing ones copies of the first."""
    return x if len(x) >= rows else torch.cat([x, x[:1].expand(rows - len(x), *x.shape[1:])])
