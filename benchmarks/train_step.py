"""How fast a policy trains and how much memory a step takes: as it is, and computed as the reference system does.

    python benchmarks/train_step.py [--policy policy/config.yaml] [--batch 4] [--device cuda] [--precision bf16]

Without --policy, a small one: the published architecture (MPT, cross-attention before every layer, ViT, two cameras) at
an eighth of its width and a sixth of its depth, with MPT's own vocabulary. Resampler, cross-attention and head train.

The reference's way is the same policy with the same weights, and the first loss must agree; switches say what differs:
    cameras        a pass of the vision encoder for each camera
    attention      open_flamingo's own resampler and cross-attention: scores as tensors, the mask rebuilt in each layer
    logits         the language model's output layer, which no policy reads
    hidden_states  every layer's output collected
    optimizer      AdamW tensor by tensor
--switches names some of them, to see what each costs. Every way has a process of its own; they take turns, and the
fastest step counts, as whatever else a machine does only slows steps down. Memory is the most that a step takes above
the process before the policy was made (GPU: allocated tensors). The last line is one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from open_flamingo.src import flamingo_lm, helpers
from torch import Tensor, nn

from calvin_eval.files import provenance
from roboflamingo.backbone.filling import halve
from roboflamingo.backbone.flamingo import (
    BackboneConfig,
    CrossAttentionConfig,
    Flamingo,
    FlamingoLayer,
    ResamplerConfig,
)
from roboflamingo.backbone.language import LanguageConfig
from roboflamingo.backbone.vision import VisionConfig
from roboflamingo.checkpoint import read_config
from roboflamingo.heads import HeadConfig
from roboflamingo.policy import PolicyConfig, RoboFlamingo
from roboflamingo.training.layers import checkpoint_activations

SWITCHES = ("cameras", "attention", "logits", "hidden_states", "optimizer")
SENTENCES = ("push the red block to the left", "open the drawer", "pull the handle of the sliding door to the right")
MPT_VOCABULARY = 50432
FROZEN = ("vision_encoder", "decoder_layer", "embed", "wte", "norm_f")


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
        threads: of the CPU.
        switches: what the reference does otherwise.
    """

    policy: PolicyConfig
    batch: int
    device: str
    precision: str
    frozen_precision: str
    checkpoint: bool
    threads: int
    switches: tuple[str, ...]


def small_policy(vocabulary: int = MPT_VOCABULARY) -> PolicyConfig:
    """The small case."""
    words = tuple(f"word{number}" for number in range(vocabulary - 50))  # the rest is for the sentences
    backbone = BackboneConfig(
        vision=VisionConfig(image_size=112, patch_size=14, width=128, layers=4, heads=4, stem=False),
        language=LanguageConfig(width=128, layers=4, heads=4, words=words),
        resampler=ResamplerConfig(latents=16, depth=1, heads=4, head_width=16, separate=False),
        cross_attention=CrossAttentionConfig(every=1, heads=4, head_width=16, gate=0.5),
    )
    return PolicyConfig(
        backbone=backbone,
        head=HeadConfig(hidden=128, layers=4, dropout=0.0),
        window=12,
        chunk=1,
        static_size=112,
        gripper_size=112,
    )


class ReferenceFlamingo(nn.Module):
    """Takes the place of a policy's `Flamingo`, with its weights, and computes what it does in the reference's way.

    Args:
        ours: whose weights it takes over; not to be used any more.
        switches: the differences, see the head of this file.
    """

    def __init__(self, ours: Flamingo, switches: Collection[str]) -> None:
        super().__init__()
        self.width, self.visual_size, self.instructions = ours.width, ours.visual_size, ours.instructions
        self.vision_encoder, self.lang_encoder, self._switches = ours.vision_encoder, ours.lang_encoder, switches
        self.perceiver: nn.Module = ours.perceiver
        self.perceiver_gripper: nn.Module | None = ours.perceiver_gripper
        self.image_token = int(ours.instructions.ids("")[0])
        if "attention" in switches:
            self.perceiver = _their_resampler(ours.perceiver, ours.config)
            if ours.perceiver_gripper is not None:
                self.perceiver_gripper = _their_resampler(ours.perceiver_gripper, ours.config)
            for layers in [m for m in self.lang_encoder.modules() if isinstance(m, nn.ModuleList)]:
                for index, layer in enumerate(layers):
                    if isinstance(layer, FlamingoLayer):
                        layers[index] = _their_layer(layer, ours.config)

    def see(self, static: Tensor, gripper: Tensor) -> Tensor:
        """Images (N, H, W, 3) and (N, h, w, 3) uint8 -> visual tokens (N, R, Dv)."""
        if "cameras" in self._switches:
            seen = [self.vision_encoder(static), self.vision_encoder(gripper)]
        else:
            seen = list(self.vision_encoder(torch.cat([static, gripper])).chunk(2))
        resamplers = (self.perceiver, self.perceiver_gripper or self.perceiver)
        if "attention" in self._switches:  # theirs want media and frames apart, (N, 1, 1, V, D)
            tokens = [resample(x[:, None, None])[:, 0] for resample, x in zip(resamplers, seen, strict=True)]
        else:
            tokens = [resample(x) for resample, x in zip(resamplers, seen, strict=True)]
        return torch.cat(tokens, dim=1)

    def forward(self, media: Tensor, ids: Tensor, is_text: Tensor) -> Tensor:
        """Visual tokens (N, R, Dv), token ids and mask (N, L) -> hidden states (N, L, D)."""
        for layer in self.lang_encoder.modules():
            if isinstance(layer, FlamingoLayer):
                layer.media = media
            elif isinstance(layer, flamingo_lm.FlamingoLayer):
                layer.condition_vis_x(media[:, None])
                layer.condition_media_locations(ids == self.image_token)
                layer.condition_use_cached_media(False)
        keep = "hidden_states" in self._switches
        output = self.lang_encoder(input_ids=ids, attention_mask=is_text, output_hidden_states=keep)
        if "logits" in self._switches:
            self.logits = F.linear(output.last_hidden_state, self.lang_encoder.get_input_embeddings().weight)
        return output.hidden_states[-1] if keep else output.last_hidden_state


def _their_resampler(ours: nn.Module, config: BackboneConfig) -> nn.Module:
    sizes = config.resampler
    theirs = helpers.PerceiverResampler(
        dim=config.vision.width,
        depth=sizes.depth,
        dim_head=sizes.head_width,
        heads=sizes.heads,
        num_latents=sizes.latents,
    )
    theirs.load_state_dict(ours.state_dict())
    return theirs


def _their_layer(ours: FlamingoLayer, config: BackboneConfig) -> nn.Module:
    theirs = None
    if ours.gated_cross_attn_layer is not None:
        sizes = config.cross_attention
        theirs = helpers.GatedCrossAttentionBlock(
            dim=config.language.width, dim_visual=config.vision.width, dim_head=sizes.head_width, heads=sizes.heads
        )
        theirs.load_state_dict(ours.gated_cross_attn_layer.state_dict())
    return flamingo_lm.FlamingoLayer(theirs, ours.decoder_layer)


def make_policy(options: Options) -> RoboFlamingo:
    """The policy, with what the reference does not train frozen."""
    torch.manual_seed(0)
    changed = replace(options.policy, static_shift=0, gripper_shift=0, auxiliary_weight=0.0)
    policy = RoboFlamingo(changed.with_words(SENTENCES)).train()
    if options.switches:
        policy.backbone = ReferenceFlamingo(policy.backbone, options.switches)  # type: ignore[assignment]
    for name, parameter in policy.named_parameters():
        trains = "gated_cross_attn_layer" in name or not any(part in name for part in FROZEN)
        parameter.requires_grad = trains
    if options.frozen_precision == "bf16":
        halve(policy)
    if options.checkpoint:
        checkpoint_activations(policy)
    return policy.to(options.device)


def make_batch(config: PolicyConfig, size: int, device: str) -> dict[str, Any]:
    """Random windows, all of whose steps are inside."""
    random = torch.Generator().manual_seed(0)
    shape = (size, config.window)

    def images(edge: int) -> Tensor:
        return torch.randint(0, 256, (*shape, edge, edge, 3), dtype=torch.uint8, generator=random)

    actions = torch.rand(*shape, config.chunk, 7, generator=random) * 2 - 1
    actions[..., 6] = actions[..., 6].sign()
    batch = {
        "rgb_static": images(config.static_size),
        "rgb_gripper": images(config.gripper_size),
        "robot_obs": torch.rand(*shape, 15, generator=random),
        "actions": actions,
        "action_mask": torch.ones(*shape, config.chunk, dtype=torch.bool),
        "frame_mask": torch.ones(*shape, dtype=torch.bool),
    }
    sentences = [SENTENCES[number % len(SENTENCES)] for number in range(size)]
    return {name: tensor.to(device) for name, tensor in batch.items()} | {"instruction": sentences}


def make_step(options: Options) -> Callable[[], float]:
    """A training step of one way, which returns its loss."""
    policy = make_policy(options)
    batch = make_batch(policy.config, options.batch, options.device)
    trained = [p for p in policy.parameters() if p.requires_grad]
    fused = None if "optimizer" in options.switches else True
    optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=fused)

    def step() -> float:
        with torch.autocast(options.device, torch.bfloat16, enabled=options.precision == "bf16"):
            loss = policy.loss(batch)["loss"]
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()  # waits for a GPU

    return step


def work(options: Options, parent: Connection) -> None:
    """One way in its process: its first loss; then, for every number of steps that comes, the fastest one's seconds."""
    torch.set_num_threads(options.threads)
    before = _peak_memory("cpu") if options.device == "cpu" else 0
    step = make_step(options)
    parent.send((step(), step())[0])
    while steps := parent.recv():
        seconds = []
        for _ in range(steps):
            started = time.perf_counter()
            step()
            seconds.append(time.perf_counter() - started)
        parent.send(min(seconds))
    parent.send(_peak_memory(options.device) - before)


def _peak_memory(device: str) -> int:
    """The most bytes that this process has used so far."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    import resource

    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def measure(ways: dict[str, Options], rounds: int, steps: int) -> dict[str, dict[str, float]]:
    """Seconds of the fastest step, bytes and first loss of every way."""
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
            results[name]["seconds"] = min(pipe.recv(), results[name].get("seconds", float("inf")))
    for name, (process, pipe) in workers.items():
        pipe.send(0)
        results[name]["bytes"] = pipe.recv()
        process.join()
    return results


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policy", type=Path, help="a policy's config.yaml; the small case otherwise")
    parser.add_argument("--vocabulary", type=int, default=MPT_VOCABULARY, help="tokens that the small case knows")
    parser.add_argument("--batch", type=int, default=4, help="windows")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="of ours")
    parser.add_argument("--reference_precision", choices=("fp32", "bf16"), default="fp32", help="its recipe's is fp32")
    parser.add_argument("--frozen_precision", choices=("fp32", "bf16"), default="fp32", help="ours only")
    parser.add_argument("--checkpoint_activations", action="store_true", help="ours only")
    parser.add_argument("--switches", nargs="*", choices=SWITCHES, default=SWITCHES, help="of the reference's way")
    parser.add_argument("--each", action="store_true", help="also measures every switch alone")
    parser.add_argument("--rounds", type=int, default=5, help="turns of every way")
    parser.add_argument("--steps", type=int, default=3, help="of a turn")
    parser.add_argument("--threads", type=int, default=int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)))
    return parser.parse_args()


def main() -> None:
    """Measures and prints."""
    given = parse()
    policy = small_policy(given.vocabulary) if given.policy is None else read_config(given.policy)
    ours = Options(
        policy, given.batch, given.device, given.precision, given.frozen_precision, given.checkpoint_activations,
        given.threads, switches=(),
    )  # fmt: skip
    theirs = replace(
        ours,
        precision=given.reference_precision,
        frozen_precision="fp32",
        checkpoint=False,
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
    if abs(mine["loss"] - reference["loss"]) > (1e-4 if same else 2e-2):
        raise SystemExit(f"the two ways do not compute the same: first losses {mine['loss']} and {reference['loss']}")
    print(
        json.dumps(
            {
                "frames_per_s": round(frames / mine["seconds"], 1),
                "reference_way_frames_per_s": round(frames / reference["seconds"], 1),
                "ratio": round(reference["seconds"] / mine["seconds"], 2),
                "peak_memory_gb": round(mine["bytes"] / 1e9, 3),
                "reference_way_peak_memory_gb": round(reference["bytes"] / 1e9, 3),
                "preset": "small" if given.policy is None else str(given.policy),
                "device": torch.cuda.get_device_name() if given.device == "cuda" else "cpu",
                "precision": given.precision,
                "reference_precision": given.reference_precision,
                "batch": given.batch,
                "threads": given.threads,
                "switches": list(given.switches),
                "made_with": provenance(),
            }
        )
    )


if __name__ == "__main__":
    main()
