"""Prepares what the policy reads and predicts besides images: robot state, auxiliary targets, random shift.

Lengths and angles come as CALVIN gives them (SPEC 1.2, 1.3); here they become numbers of order one, angles as sine
and cosine, so that nothing jumps where an angle wraps around.
"""

from __future__ import annotations

import torch
from torch import Tensor

STATE_SIZES = {"none": 0, "pose": 10, "full": 18}
"""Numbers of the state input: nothing; tool pose and finger opening; and also joints and the last gripper command."""
AUXILIARY_SIZE = 31

_TOOL_CENTRE, _TOOL_SCALE = (0.0, -0.15, 0.5), 0.15
_BLOCK_CENTRE, _BLOCK_SCALE = (0.05, -0.05, 0.46), 0.12
_JOINT_SCALES = (0.1, 0.1, 0.01, 0.04)  # slide, drawer, button, switch


def state_vector(robot_obs: Tensor, kind: str) -> Tensor:
    """robot_obs (..., 15) -> state input (..., `STATE_SIZES[kind]`).

    "pose" leaves out the last gripper command, which invites copying it instead of looking.
    """
    if kind == "none":
        return robot_obs[..., :0]
    position = (robot_obs[..., :3] - robot_obs.new_tensor(_TOOL_CENTRE)) / _TOOL_SCALE
    angles = robot_obs[..., 3:6]
    width = (robot_obs[..., 6:7] - 0.04) / 0.04
    parts = [position, angles.sin(), angles.cos(), width]
    if kind == "full":
        parts += [robot_obs[..., 7:14] / 2.0, robot_obs[..., 14:15]]
    return torch.cat(parts, dim=-1)


def auxiliary_targets(robot_obs: Tensor, scene_obs: Tensor) -> Tensor:
    """What the auxiliary head predicts (..., 31): fixtures 6, blocks 3 x (3 + 2), robot pose 10."""
    joints = scene_obs[..., :4] / scene_obs.new_tensor(_JOINT_SCALES)
    parts = [joints, scene_obs[..., 4:6]]
    for block in range(3):
        first = 6 + 6 * block
        parts.append((scene_obs[..., first : first + 3] - scene_obs.new_tensor(_BLOCK_CENTRE)) / _BLOCK_SCALE)
        # Half a turn of a block looks the same, so twice the angle is what can be seen.
        yaw = 2 * scene_obs[..., first + 5 : first + 6]
        parts += [yaw.sin(), yaw.cos()]
    parts.append(state_vector(robot_obs, "pose"))
    return torch.cat(parts, dim=-1)


def random_shift(images: Tensor, pixels: int) -> Tensor:
    """Moves each window's images (B, T, H, W, C) by up to `pixels` in both directions, edges repeated.

    All frames of a window move alike; windows move independently.
    """
    if pixels == 0:
        return images
    batch, _, height, width, _ = images.shape
    shift = torch.randint(-pixels, pixels + 1, (2, batch, 1), device=images.device)
    rows = (torch.arange(height, device=images.device) + shift[0]).clamp(0, height - 1)  # (B, H)
    columns = (torch.arange(width, device=images.device) + shift[1]).clamp(0, width - 1)  # (B, W)
    window = torch.arange(batch, device=images.device)[:, None, None]
    moved = images.transpose(1, 3)[window.unsqueeze(-1), columns[:, :, None, None], rows[:, None, :, None],
                                   torch.arange(images.shape[1], device=images.device)]  # fmt: skip
    return moved.permute(0, 3, 2, 1, 4)
