"""How many steps a second a policy acts: as it is, and computed as the reference system does.

    python benchmarks/act.py [--preset mpt-1b] [--device cuda] [--precision bf16]

One episode, closed loop: every step brings one new frame of both cameras as pictures in CALVIN's sizes, and takes
one action; the head reads the last T frames. The reference's way (see `reference_way.py`) reads the instruction anew
at every step. Open loop is ours with whole chunks executed, K = 5 here: the reference predicts them, but takes only
the first action. The ways take turns; the fastest episode counts. The last line is one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import time
from copy import copy
from dataclasses import replace

import numpy as np
import torch
from facts import made_on
from reference_way import SENTENCES, SWITCHES, add_arguments, parsed, policy_for, policy_of

from calvin_eval.calvin import calvin_observation
from calvin_eval.protocol import Observation
from roboflamingo.policy.control import PolicyController

CHUNK = 5


def observations(count: int) -> list[Observation]:
    """Random pictures and states."""
    random = np.random.default_rng(0)
    return [
        calvin_observation(
            random.integers(0, 256, (200, 200, 3), np.uint8),
            random.integers(0, 256, (84, 84, 3), np.uint8),
            random.normal(size=15),
        )
        for _ in range(count)
    ]


def episode(controller: PolicyController, steps: int, device: str, precision: str) -> tuple[float, np.ndarray]:
    """Seconds a control step, and all actions."""
    frames = observations(-(-steps // controller.execute))
    memory, actions = controller.start(SENTENCES[0]), []
    started = time.perf_counter()
    with torch.autocast(device, torch.bfloat16, enabled=precision == "bf16"):
        for frame in frames:
            action, (memory,) = controller.act([frame], [memory])
            actions.append(action[0])
    return (time.perf_counter() - started) / (len(frames) * controller.execute), np.concatenate(actions)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--steps", type=int, default=30, help="of an episode")
    parser.add_argument("--rounds", type=int, default=5, help="episodes of every way")
    return parsed(parser)


def main() -> None:
    """Measures and prints."""
    given = parse()
    torch.set_num_threads(given.threads)
    config = replace(policy_of(given.preset), chunk=CHUNK)
    half = given.precision == "bf16"
    ours, theirs = policy_for(config, (), half=half), policy_for(config, SWITCHES, half=False)
    for policy in (ours, theirs):
        policy.to(given.device)
    spaced = copy(ours)  # the same weights, as if trained on frames as far apart as open loop shows them
    spaced.config = replace(ours.config, stride=CHUNK)
    ways = {
        "ours": (PolicyController(ours), given.precision),
        "ours, open loop": (PolicyController(spaced, CHUNK), given.precision),
        "the reference's way": (PolicyController(theirs), given.reference_precision),
    }
    seconds: dict[str, float] = {}
    actions = {}
    for _ in range(given.rounds):
        for name, (controller, precision) in ways.items():
            time_of_step, actions[name] = episode(controller, given.steps, given.device, precision)
            seconds[name] = min(time_of_step, seconds.get(name, float("inf")))
    for name, value in seconds.items():
        print(f"{name:24s} {1 / value:8.1f} steps/s")
    difference = np.abs(actions["ours"] - actions["the reference's way"])[:, :6].max()
    if not config.backbone.language.settings and difference > 2e-2:
        raise SystemExit(f"the two ways do not act the same: actions differ by {difference}")
    print(
        json.dumps(
            {
                "steps_per_s": round(1 / seconds["ours"], 1),
                "open_loop_steps_per_s": round(1 / seconds["ours, open loop"], 1),
                "reference_way_steps_per_s": round(1 / seconds["the reference's way"], 1),
                "ratio": round(seconds["the reference's way"] / seconds["ours"], 2),
                "preset": given.preset,
                "device": torch.cuda.get_device_name() if given.device == "cuda" else "cpu",
                "precision": given.precision,
                "reference_precision": given.reference_precision,
                "chunk": CHUNK,
                **made_on(given.threads),
            }
        )
    )


if __name__ == "__main__":
    main()
