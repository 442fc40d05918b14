"""Whole tensors from the processes' shares and back, so that files are the same however training was distributed."""

from __future__ import annotations

from typing import Any

import torch
from torch.distributed.tensor import DTensor, distribute_tensor


def whole(tree: Any, *, keep: bool = True) -> Any:
    """The same with every sharded tensor of a tree of dicts and lists whole, on the CPU.

    All processes must call it. Where nothing is sharded it copies nothing.

    Args:
        tree: tensors and plain values.
        keep: puts None in place of the whole tensors, in processes that only help to put them together.
    """
    if isinstance(tree, dict):
        return {key: whole(value, keep=keep) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(whole(value, keep=keep) for value in tree)
    if not isinstance(tree, DTensor):
        return tree
    tensor = tree.full_tensor()
    return tensor.detach().cpu() if keep else None


def share_of(value: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """This process's share of a whole tensor, divided and placed as `like` is; `like` whole, the value itself."""
    if not isinstance(like, DTensor) or value.shape != like.shape:
        return value
    value = value.to(like.device, like.dtype)
    return distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)


def share_of_optimizer_state(state: dict[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """An optimizer's whole `state_dict` as `optimizer.load_state_dict` of this process wants it."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    shares = {
        number: {
            key: share_of(value, parameters[number]) if isinstance(value, torch.Tensor) else value
            for key, value in values.items()
        }
        for number, values in state["state"].items()
    }
    return {**state, "state": shares}
