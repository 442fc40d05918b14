"""Measures a policy on held-out windows."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from lightning.pytorch import Trainer

from roboflamingo.data.windows import last_frames
from roboflamingo.heads import Prediction
from roboflamingo.heads.base import frame_at
from roboflamingo.policy import RoboFlamingo


@torch.no_grad()
def validate(
    policy: RoboFlamingo, batches: Iterable[dict[str, Any]], trainer: Trainer, count: int | None = None
) -> dict[str, float]:
    """Means over all windows of all processes.

    Args:
        policy: what to measure.
        batches: of this process.
        trainer: knows devices, precision and processes.
        count: the first batches that count, None for all; the policy sees the rest only to keep processes in step.

    Returns:
        `val_` + every part of the loss, and of the last frame's predicted actions: `val_translation_error`
        and `val_rotation_error` (mean absolute error in action units, 1 being 0.02 m and 0.05 rad) and
        `val_gripper_accuracy` (share of right commands). Empty where there are no batches.
    """
    sums: dict[str, torch.Tensor] = {}
    policy.eval()
    for number, batch in enumerate(batches):
        batch = trainer.strategy.batch_to_device(batch)
        with trainer.precision_plugin.val_step_context():
            losses, prediction = policy.loss(batch), policy.predict(batch)
        if count is not None and number >= count:
            continue
        windows = torch.tensor(len(batch["instruction"]), device=batch["actions"].device)
        parts = {f"val_{name}": (value * windows, windows) for name, value in losses.items()}
        for name, total in (parts | _action_errors(policy, prediction, batch)).items():
            pair = torch.stack([t.double() for t in total])
            sums[name] = sums[name] + pair if name in sums else pair
    policy.train()
    names = sorted(sums)
    if trainer.world_size > 1:
        names = trainer.strategy.broadcast(names)  # a process without a share has measured nothing
        zero = torch.zeros(2, dtype=torch.float64, device=trainer.strategy.root_device)
        sums = {name: trainer.strategy.reduce(sums.get(name, zero), reduce_op="sum") for name in names}
    return {name: (sums[name][0] / sums[name][1]).item() for name in names}


def _action_errors(
    policy: RoboFlamingo, prediction: Prediction, batch: dict[str, Any]
) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Sum and count of each error over the actions that the last frame's chunk has within its segment."""
    last = last_frames(batch["frame_mask"])
    inside = frame_at(batch["action_mask"], last)[:, 0]  # (B, K)
    action = frame_at(policy.targets(batch), last)[:, 0][inside]  # (n, 7)
    at = last.clamp(max=prediction.pose.shape[1] - 1)  # where fusion joins frames there is one prediction a window
    pose, gripper = frame_at(prediction.pose, at)[:, 0], frame_at(prediction.gripper_logits, at)[:, 0]
    error = (pose[inside] - action[:, :6]).abs()
    right = (gripper[inside] > 0) == (action[:, 6] > 0)
    count = inside.sum()
    return {
        "val_translation_error": (error[:, :3].sum(), 3 * count),
        "val_rotation_error": (error[:, 3:].sum(), 3 * count),
        "val_gripper_accuracy": (right.sum(), count),
    }
