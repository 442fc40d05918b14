"""What presets cost on a CPU: weights, a frame in acting, frames in training.

    python benchmarks/presets.py [--presets tiny smollm2-135m] [--precision bf16] [--threads 1]

Weights are random, which costs the same. A policy trains what it trains by default (tiny all, the others resampler,
cross-attention and head) on windows of random pictures, 32 frames a step; it acts on one episode, closed loop, every
step of which brings a frame. The fastest of some rounds counts. The last line is one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace

import numpy as np
import torch
from facts import made_on

from calvin_eval.calvin import calvin_observation
from roboflamingo.backbone.config import PRESETS
from roboflamingo.policy.config import PolicyConfig
from roboflamingo.policy.control import PolicyController
from roboflamingo.policy.roboflamingo import RoboFlamingo
from roboflamingo.training.config_parts import TrainableConfig
from roboflamingo.weights.making import make_policy
from roboflamingo.weights.presets import preset

SENTENCES = ("push the red block to the left", "open the drawer", "turn on the light bulb", "lift the blue block up")
FRAMES = 32


def made(name: str, precision: str) -> tuple[PolicyConfig, RoboFlamingo]:
    """The preset with random weights, of which train those that train by default; frozen ones as bf16 with that."""
    config = preset(name)
    everything = not config.pretrained
    config = replace(config, backbone=replace(config.backbone, weights="random")).with_words(SENTENCES)
    policy = make_policy(config, half=precision == "bf16" and not everything)
    chosen = policy.chosen(TrainableConfig(), everything=everything)
    for parameter in policy.parameters():
        parameter.requires_grad = id(parameter) in chosen
    return config, policy


def a_batch(config: PolicyConfig) -> dict[str, object]:
    """Windows of random pictures, states and actions, 32 frames in all."""
    count = max(1, FRAMES // config.window)
    shape = (count, config.window)
    actions = torch.rand(*shape, config.chunk, 7) * 2 - 1
    actions[..., 6] = actions[..., 6].sign()
    pictures = {
        name: torch.randint(0, 256, (*shape, camera.size, camera.size, 3), dtype=torch.uint8)
        for name, camera in config.cameras.items()
    }
    return {
        **pictures,
        "robot_obs": torch.rand(*shape, 15),
        "scene_obs": torch.rand(*shape, 24),
        "actions": actions,
        "action_mask": torch.ones(*shape, config.chunk, dtype=torch.bool),
        "frame_mask": torch.ones(*shape, dtype=torch.bool),
        "instruction": [SENTENCES[i % len(SENTENCES)] for i in range(count)],
    }


def seconds_of_step(policy: RoboFlamingo, batch: dict[str, object], precision: str) -> float:
    """Of one forward and backward pass and AdamW."""
    trained = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-5, fused=True)
    started = time.perf_counter()
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        loss = policy.loss(batch)["loss"]
    loss.backward()
    optimizer.step()
    return time.perf_counter() - started


def seconds_of_frame(policy: RoboFlamingo, precision: str, steps: int = 16) -> float:
    """Of one closed-loop step of an episode."""
    random, controller = np.random.default_rng(0), PolicyController(policy)
    memory = controller.start(SENTENCES[0])
    started = time.perf_counter()
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        for _ in range(steps):
            pictures = (random.integers(0, 256, (edge, edge, 3), np.uint8) for edge in (200, 84))
            _, (memory,) = controller.act([calvin_observation(*pictures, random.normal(size=15))], [memory])
    return (time.perf_counter() - started) / steps


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", nargs="+", choices=PRESETS, default=["tiny", "smollm2-135m"])
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    found = {}
    for name in given.presets:
        config, policy = made(name, given.precision)
        batch = a_batch(config)
        policy.train()
        training = min(seconds_of_step(policy, batch, given.precision) for _ in range(given.rounds))
        policy.eval()
        acting = min(seconds_of_frame(policy, given.precision) for _ in range(given.rounds))
        trained = sum(parameter.numel() for parameter in policy.parameters() if parameter.requires_grad)
        found[name] = {
            "parameters": sum(parameter.numel() for parameter in policy.parameters()),
            "trained": trained,
            "acting_ms_per_frame": round(1000 * acting, 1),
            "training_frames_per_s": round(len(batch["instruction"]) * config.window / training, 1),  # type: ignore[arg-type]
        }
        print(f"{name}: {found[name]}", flush=True)
    print(json.dumps({"presets": found, "precision": given.precision, **made_on(given.threads)}))


if __name__ == "__main__":
    main()
