"""How long the demo will take on this machine: a little of each of its parts is done and timed.

Episodes are demonstrated and recorded, training steps are made on random pictures, and an untrained policy acts. What
the parts of the demo then need is counted, but for the length of chains, which depends on how good the policy becomes
(see `STEPS_A_CHAIN`).
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from calvin_eval.benchmark.tasks import TASKS
from calvin_eval.calvin import calvin_observation
from calvin_eval.demonstrations.episodes import EpisodeSettings, demonstrate_episode
from calvin_eval.demonstrations.recording import Recorder
from calvin_eval.protocol import Observation
from calvin_eval.worlds.playtable.world import PlayTable
from roboflamingo.policy.base import LearnedPolicy, Vision, policy_kind
from roboflamingo.policy.base_config import BasePolicyConfig
from roboflamingo.policy.control import PolicyController
from roboflamingo.training.config import TrainConfig
from roboflamingo.training.trainable import choose_trainable
from roboflamingo.training.vision_tokens import obstacle

EPISODES = 6
TRAINING_STEPS = 12
ENCODED = 64
"""Frames whose images are encoded, to time it."""
ACTS = 6
STEPS_A_CHAIN = 480
"""Control steps of a chain: 2.4 solved tasks of some 70 steps, and in nine of ten chains a failure after 360."""
START_S = 12.0
"""Seconds that a part takes before its first result: processes, imports, worlds."""
PACK_SHARE = 0.2
"""Time of packing an episode's frames, as a share of the time of demonstrating and recording them."""


@dataclass(frozen=True)
class Speeds:
    """What one core does here.

    Attributes:
        episode_s: seconds to demonstrate and record an episode.
        world_step_s: seconds of a control step with both cameras.
        act_s: seconds in which the policy acts once for one episode of a batch.
        training_step_s: seconds of an optimizer step, on all cores.
        encoding_s: seconds to encode the images of an episode once, on all cores; 0 where tokens are not kept.
    """

    episode_s: float
    world_step_s: float
    act_s: float
    training_step_s: float
    encoding_s: float = 0.0


@dataclass(frozen=True)
class Estimate:
    """Minutes of each part."""

    collecting: float
    training: float
    evaluating: float

    @property
    def minutes(self) -> float:
        """All together."""
        return self.collecting + self.training + self.evaluating

    def __str__(self) -> str:
        return (
            f"about {max(1, round(self.minutes))} minutes: {self.collecting:.0f} of demonstrations, "
            f"{self.training:.0f} of training, {self.evaluating:.0f} of evaluation"
        )


def estimate(
    speeds: Speeds, episodes: int, steps: int, chains: int, horizons: list[int], workers: int, shifts: int = 1
) -> Estimate:
    """Minutes of a demo.

    Args:
        speeds: of this machine.
        episodes: to collect.
        steps: optimizer steps.
        chains: of every evaluation.
        horizons: E of every evaluation.
        workers: processes that collect and evaluate.
        shifts: of which the vision encoder's tokens are kept, where they are.
    """
    control_step_s = [speeds.world_step_s + speeds.act_s / execute for execute in horizons]
    collecting = START_S + episodes * speeds.episode_s * (1 + PACK_SHARE) / workers if episodes else 0.0
    training = START_S + steps * speeds.training_step_s + episodes * shifts * speeds.encoding_s if steps else 0.0
    evaluating = sum(START_S + chains * STEPS_A_CHAIN * each / workers for each in control_step_s)
    return Estimate(collecting / 60, training / 60, evaluating / 60)


def measure(scene: str, episode: EpisodeSettings, training: TrainConfig, *, in_bf16: bool) -> Speeds:
    """Times a little of each part; takes some ten seconds.

    Args:
        scene: where it all happens.
        episode: how demonstrations run.
        training: of the first round.
        in_bf16: whether it computes in bf16.
    """
    episode_s, frames, world_step_s = _demonstrations(scene, episode)
    made = policy_kind(training.policy.kind).make(training.policy.with_words(["pick up the red block"]))
    choose_trainable(made, training)
    vision = None if training.data.vision_tokens == "never" or obstacle(made, training) else made.vision()
    encoding_s = 0.0 if vision is None else frames * _encoding(made, vision, in_bf16)
    return Speeds(episode_s, world_step_s, _acting(made), _training(made, vision, training, in_bf16), encoding_s)


def _demonstrations(scene: str, settings: EpisodeSettings) -> tuple[float, float, float]:
    """Seconds of an episode with its recording, its frames, and seconds of a control step."""
    tasks, frames = list(TASKS), 0
    with PlayTable(scene) as world, tempfile.TemporaryDirectory() as folder:
        recorder = Recorder(Path(folder), scene)
        started = 0.0
        for number in range(EPISODES + 1):  # the first one pays for what is made once
            if number == 1:
                started = time.perf_counter()
            segments = demonstrate_episode(world, tasks[number * 5], settings, np.random.default_rng([0, number]))
            frames += sum(len(each.labels) for each in segments)
            recorder.write(number, scene, segments)
        episode_s = (time.perf_counter() - started) / EPISODES
        world.reset()
        started = time.perf_counter()
        for _ in range(100):
            world.step(np.array([0.1, 0, 0, 0, 0, 0, 1.0]))
        return episode_s, frames / (EPISODES + 1), (time.perf_counter() - started) / 100


def _training(policy: LearnedPolicy, vision: Vision | None, config: TrainConfig, in_bf16: bool) -> float:
    """Seconds of an optimizer step on random pictures, or on random tokens of them: the median."""
    windows = _windows(policy.config, config.batch_size, vision)
    trained = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    weights = torch.optim.AdamW(trained, lr=config.optimizer.learning_rate, fused=True)
    policy.train()
    seconds = []
    for _ in range(TRAINING_STEPS):
        started = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=in_bf16):
            loss = policy.loss(windows)["loss"]
        loss.backward()
        weights.step()
        weights.zero_grad()
        seconds.append(time.perf_counter() - started)
    return float(np.median(seconds))


@torch.inference_mode()
def _encoding(policy: LearnedPolicy, vision: Vision, in_bf16: bool) -> float:
    """Seconds to encode a frame's images."""
    images = [_noise((ENCODED,), policy.config.cameras[name].size) for name in policy.config.seen]
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=in_bf16):
            for each in images:
                vision.encoder(each)
        seconds.append((time.perf_counter() - started) / ENCODED)
    return min(seconds)


def _windows(config: BasePolicyConfig, batch: int, vision: Vision | None) -> dict[str, object]:
    """A batch of noise (see `LearnedPolicy.loss`)."""
    shape, random = (batch, config.window), torch.Generator().manual_seed(0)
    seen: dict[str, torch.Tensor] = {name: _noise(shape, config.cameras[name].size) for name in config.seen}
    if vision is not None:
        with torch.inference_mode():
            seen = {name: vision.encoder(images.flatten(0, 1)) for name, images in seen.items()}
        seen = {name: tokens.clone().half().unflatten(0, shape) for name, tokens in seen.items()}
    return {
        **seen,
        "robot_obs": torch.rand(*shape, 15, generator=random),
        "scene_obs": torch.rand(*shape, 24, generator=random),
        "actions": torch.rand(*shape, config.chunk, 7, generator=random).sub(0.5).sign(),
        "action_mask": torch.ones(*shape, config.chunk, dtype=torch.bool),
        "frame_mask": torch.ones(*shape, dtype=torch.bool),
        "instruction": ["pick up the red block"] * batch,
    }


def _noise(shape: tuple[int, ...], size: int) -> torch.Tensor:
    """Random images (*shape, size, size, 3) uint8."""
    random = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (*shape, size, size, 3), dtype=torch.uint8, generator=random)


def _acting(policy: LearnedPolicy) -> float:
    """Seconds in which one core acts for one of eight episodes."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        controller = PolicyController(policy)
        seen = list(_observations(8))
        memories = [controller.start("pick up the red block") for _ in seen]
        _, memories = controller.act(seen, memories)
        started = time.perf_counter()
        for _ in range(ACTS):
            _, memories = controller.act(seen, memories)
        return (time.perf_counter() - started) / (ACTS * len(seen))
    finally:
        torch.set_num_threads(threads)


def _observations(count: int) -> Iterator[Observation]:
    random = np.random.default_rng(0)
    for _ in range(count):
        yield calvin_observation(
            random.integers(0, 256, (200, 200, 3), np.uint8),
            random.integers(0, 256, (84, 84, 3), np.uint8),
            random.normal(size=15),
        )
