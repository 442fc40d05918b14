"""How fast a policy trains and how much memory a step takes: as it is, and computed as the reference system does.

    python benchmarks/train_step.py [--preset mpt-1b] [--batch 6] [--device cuda] [--precision bf16]

Without --preset, a small one: the published architecture (MPT, cross-attention before every layer, ViT, two cameras) at
an eighth of its width and a sixth of its depth, with MPT's own vocabulary. Resampler, cross-attention and head train.

The reference's way is the same policy with the same weights, and the first loss must agree; `reference_way.py` says
what differs. --switches names some of it, to see what each costs. Every way has a process of its own; they take turns,
and the fastest step counts, as whatever else a machine does only slows steps down. Memory is the most that a step takes
above the process before the policy was made (GPU: allocated tensors). The last line is one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from typing import Any

import torch
from facts import made_on
from reference_way import MPT_VOCABULARY, SENTENCES, SWITCHES, add_arguments, parsed, policy_for, policy_of
from torch import Tensor, nn

from roboflamingo.policy.config import PolicyConfig
from roboflamingo.training.layers import checkpoint_activations


@dataclass
class Options:
    """What is measured.

    Attributes:
        policy: its sizes.
        batch: windows of a step.
        device: cpu or cuda.
        precision: fp32 or bf16.
        frozen_precision: fp32 or bf16.
        checkpoint: recomputes activations.
        adam8bit: AdamW with averages of a byte each.
        threads: of the CPU.
        switches: what the reference does otherwise.
    """

    policy: PolicyConfig
    batch: int
    device: str
    precision: str
    frozen_precision: str
    checkpoint: bool
    adam8bit: bool
    threads: int
    switches: tuple[str, ...]


def make_batch(config: PolicyConfig, size: int, device: str) -> dict[str, Any]:
    """Random windows, all of whose steps are inside."""
    random = torch.Generator().manual_seed(0)
    shape = (size, config.window)

    def images(edge: int) -> Tensor:
        return torch.randint(0, 256, (*shape, edge, edge, 3), dtype=torch.uint8, generator=random)

    actions = torch.rand(*shape, config.chunk, 7, generator=random) * 2 - 1
    actions[..., 6] = actions[..., 6].sign()
    batch = {
        **{name: images(config.cameras[name].size) for name in config.seen},
        "robot_obs": torch.rand(*shape, 15, generator=random),
        "actions": actions,
        "action_mask": torch.ones(*shape, config.chunk, dtype=torch.bool),
        "frame_mask": torch.ones(*shape, dtype=torch.bool),
    }
    sentences = [SENTENCES[number % len(SENTENCES)] for number in range(size)]
    return {name: tensor.to(device) for name, tensor in batch.items()} | {"instruction": sentences}


def make_step(options: Options) -> tuple[Callable[[], float], Callable[[], float]]:
    """A training step of one way, which returns its loss, and the seconds of the last step's frozen vision encoder."""
    policy = policy_for(options.policy, options.switches, half=options.frozen_precision == "bf16")
    if options.checkpoint:
        checkpoint_activations(policy)
    policy.to(options.device).train()
    batch = make_batch(policy.config, options.batch, options.device)
    trained = [p for p in policy.parameters() if p.requires_grad]
    if options.adam8bit:
        from bitsandbytes.optim import AdamW8bit

        optimizer = AdamW8bit(trained, lr=1e-4)
    else:
        optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=None if "optimizer" in options.switches else True)

    def step() -> float:
        with torch.autocast(options.device, torch.bfloat16, enabled=options.precision == "bf16"):
            loss = policy.loss(batch)["loss"]
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()  # waits for a GPU

    return step, _clock(policy.backbone)


def _clock(backbone: nn.Module) -> Callable[[], float]:
    """Times a backbone's vision encoder, on a CPU; returns what says the seconds since it was last asked."""
    spent = [0.0]
    for name, module in backbone.named_modules():
        if name.endswith("vision_encoder"):
            module.register_forward_pre_hook(lambda *_: spent.append(-time.perf_counter()))
            module.register_forward_hook(lambda *_: spent.append(time.perf_counter()))

    def seconds() -> float:
        total = sum(spent)
        spent.clear()
        return total

    return seconds


def work(options: Options, parent: Connection) -> None:
    """One way in its process: its first loss; then, for every number of steps that comes, the fastest one's seconds.

    With them come the seconds of that step which the frozen vision encoder took.
    """
    torch.set_num_threads(options.threads)
    before = _peak_memory("cpu") if options.device == "cpu" else 0
    step, encoder = make_step(options)
    parent.send((step(), step())[0])
    while steps := parent.recv():
        seconds = []
        for _ in range(steps):
            encoder()
            started = time.perf_counter()
            step()
            seconds.append((time.perf_counter() - started, encoder()))
        parent.send(min(seconds))
    parent.send(_peak_memory(options.device) - before)


def _peak_memory(device: str) -> int:
    """The most bytes that this process has used so far."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    import resource

    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def measure(ways: dict[str, Options], rounds: int, steps: int) -> dict[str, dict[str, float]]:
    """Seconds of the fastest step and of its vision encoder, bytes and first loss of every way."""
    context = multiprocessing.get_context("spawn")
    workers: dict[str, tuple[Any, Connection]] = {}
    for name, options in ways.items():
        here, there = context.Pipe()
        process = context.Process(target=work, args=(options, there), daemon=True)
        process.start()
        there.close()  # or a worker's end would go unnoticed
        workers[name] = (process, here)
    results: dict[str, dict[str, float]] = {name: {"loss": pipe.recv()} for name, (_, pipe) in workers.items()}
    for _ in range(rounds):
        for name, (_, pipe) in workers.items():
            pipe.send(steps)
            best = (results[name].get("seconds", float("inf")), results[name].get("encoder", 0.0))
            results[name]["seconds"], results[name]["encoder"] = min(pipe.recv(), best)
    for name, (process, pipe) in workers.items():
        pipe.send(0)
        results[name]["bytes"] = pipe.recv()
        process.join()
    return results


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--vocabulary", type=int, default=MPT_VOCABULARY, help="tokens that the small case knows")
    parser.add_argument("--batch", type=int, default=4, help="windows")
    parser.add_argument("--frozen_precision", choices=("fp32", "bf16"), default="fp32", help="ours only")
    parser.add_argument("--checkpoint_activations", action="store_true", help="ours only")
    parser.add_argument("--adam8bit", action="store_true", help="ours only; needs bitsandbytes")
    parser.add_argument("--switches", nargs="*", choices=SWITCHES, default=SWITCHES, help="of the reference's way")
    parser.add_argument("--each", action="store_true", help="also measures every switch alone")
    parser.add_argument("--rounds", type=int, default=5, help="turns of every way")
    parser.add_argument("--steps", type=int, default=3, help="of a turn")
    return parsed(parser)


def main() -> None:
    """Measures and prints."""
    given = parse()
    policy = policy_of(given.preset, given.vocabulary)
    ours = Options(
        policy, given.batch, given.device, given.precision, given.frozen_precision, given.checkpoint_activations,
        given.adam8bit, given.threads, switches=(),
    )  # fmt: skip
    theirs = replace(
        ours,
        precision=given.reference_precision,
        frozen_precision="fp32",
        checkpoint=False,
        adam8bit=False,
        switches=tuple(given.switches),
    )
    ways = {"ours": ours, "the reference's way": theirs}
    if given.each:
        ways |= {f"ours with {switch}": replace(ours, switches=(switch,)) for switch in given.switches}
    results = measure(ways, given.rounds, given.steps)
    frames = given.batch * policy.window
    for name, result in results.items():
        speed, memory = frames / result["seconds"], result["bytes"] / 1e9
        print(f"{name:24s} {speed:10.1f} frames/s {memory:8.2f} GB   first loss {result['loss']:.6f}")
    mine, reference = results["ours"], results["the reference's way"]
    same = given.precision == given.reference_precision == "fp32"
    comparable = not policy.backbone.language.settings  # transformers' MPT lacks MPT-1B's norms of queries and keys
    if comparable and abs(mine["loss"] - reference["loss"]) > (1e-4 if same else 2e-2):
        raise SystemExit(f"the two ways do not compute the same: first losses {mine['loss']} and {reference['loss']}")
    print(
        json.dumps(
            {
                "frames_per_s": round(frames / mine["seconds"], 1),
                "reference_way_frames_per_s": round(frames / reference["seconds"], 1),
                "ratio": round(reference["seconds"] / mine["seconds"], 2),
                # on a CPU: the vision encoder's part of our step, and the ratio if all but it cost us nothing
                "encoder_share": round(mine["encoder"] / mine["seconds"], 2),
                "ratio_if_only_the_encoder_cost": round(reference["seconds"] / mine["encoder"], 2),
                "peak_memory_gb": round(mine["bytes"] / 1e9, 3),
                "reference_way_peak_memory_gb": round(reference["bytes"] / 1e9, 3),
                "preset": given.preset,
                "device": torch.cuda.get_device_name() if given.device == "cuda" else "cpu",
                "precision": given.precision,
                "reference_precision": given.reference_precision,
                "batch": given.batch,
                "switches": list(given.switches),
                **made_on(given.threads),
            }
        )
    )


if __name__ == "__main__":
    main()
