"""Measures a policy on held-out windows, the same way every time."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from lightning.pytorch import Trainer

from roboflamingo.data.windows import last_frames
from roboflamingo.heads import Draws, Prediction
from roboflamingo.heads.base import frame_at, prediction_at
from roboflamingo.policy.base import LearnedPolicy


@torch.no_grad()
def validate(
    policy: LearnedPolicy,
    batches: Iterable[dict[str, Any]],
    trainer: Trainer,
    count: int | None = None,
    numbers: Iterable[Sequence[int]] = (),
) -> dict[str, float]:
    """Means over all windows of all processes.

    Heads that sample draw the same noise for a window in every validation, so that what they score is the weights.

    Args:
        policy: what to measure.
        batches: of this process.
        trainer: knows devices, precision and processes.
        count: the first batches that count, None for all; the policy sees the rest only to keep processes in step.
        numbers: of every batch's windows, by which their noise is drawn; may be left out for heads that do not sample.

    Returns:
        `val_` + every part of the loss, and of the last frame's likeliest actions for each of their parts: the mean
        absolute error in each of its units as `val_pose_m`, `val_pose_rad`, or as `val_pose_error` where it has none;
        for parts that are not continuous the share of right ones, `val_gripper_accuracy`. Empty where there are no
        batches.
    """
    sums: dict[str, torch.Tensor] = {}
    draws = _draws(policy, numbers)
    policy.eval()
    for number, batch in enumerate(batches):
        batch = trainer.strategy.batch_to_device(batch)
        drawn = None if draws is None else trainer.strategy.batch_to_device(draws[number])
        with trainer.precision_plugin.val_step_context():
            losses = policy.loss(batch, drawn)
            prediction = policy.predict(batch, None if drawn is None else drawn.noise)
        if count is not None and number >= count:
            continue
        windows = torch.tensor(len(batch["instruction"]), device=batch["actions"].device)
        parts = {f"val_{name}": (value * windows, windows) for name, value in losses.items()}
        for name, total in (parts | _action_errors(policy, prediction, batch)).items():
            pair = torch.stack([t.double() for t in total])
            sums[name] = sums[name] + pair if name in sums else pair
    policy.train()
    names = list(sums)
    if trainer.world_size > 1:
        names = trainer.strategy.broadcast(names)  # a process without a share has measured nothing
        zero = torch.zeros(2, dtype=torch.float64, device=trainer.strategy.root_device)
        sums = {name: trainer.strategy.reduce(sums.get(name, zero), reduce_op="sum") for name in names}
    return {name: (sums[name][0] / sums[name][1]).item() for name in names}


def _draws(policy: LearnedPolicy, numbers: Iterable[Sequence[int]]) -> list[Draws] | None:
    """What a head that samples draws for each batch, a pure function of the windows' numbers; None for others."""
    if not policy.samples:
        return None
    frames, shape = policy.config.window, (policy.config.chunk, policy.actions.code_size)

    def of_window(number: int) -> Draws:
        random = torch.Generator().manual_seed(number)
        return Draws(torch.randn(frames, *shape, generator=random), torch.rand(frames, generator=random))

    return [Draws(*(torch.stack(part) for part in zip(*map(of_window, batch), strict=True))) for batch in numbers]


def _action_errors(
    policy: LearnedPolicy, prediction: Prediction, batch: dict[str, Any]
) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Sum and count of each error over the actions that the last frame's chunk has within its segment."""
    last = last_frames(batch["frame_mask"])
    inside = frame_at(batch["action_mask"], last)[:, 0]  # (B, K)
    action = frame_at(policy.targets(batch), last)[:, 0][inside]  # (n, A)
    frames = min(parameters.shape[1] for parameters in prediction.values())
    at = last.clamp(max=frames - 1)  # where fusion joins frames there is one prediction a window
    said = {name: parameters[:, 0][inside] for name, parameters in prediction_at(prediction, at).items()}
    return {
        f"val_{name}": (error.sum(), torch.tensor(error.numel(), device=error.device))
        for name, error in policy.actions.errors(said, action).items()
    }
