"""What is done to a policy's layers before it trains: recomputing, compiling and sharding them.

None of it changes a parameter's name, so that checkpoints fit whatever was chosen.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.utils.checkpoint import checkpoint

from roboflamingo.policy.base import LearnedPolicy


def repeated_layers(policy: LearnedPolicy) -> Iterator[nn.Module]:
    """The large layers, and all others that stand in lists, but for those that hold such layers themselves."""
    large = list(policy.large_layers())
    yield from large
    inner = {id(layer) for layer in large}
    for module in policy.modules():
        if isinstance(module, nn.ModuleList):
            for layer in module:
                inside = list(layer.modules())
                if not any(isinstance(part, nn.ModuleList) or id(part) in inner for part in inside):
                    yield layer


def checkpoint_activations(policy: LearnedPolicy) -> None:
    """Makes large layers keep nothing but their inputs for the backward pass."""
    for layer in policy.large_layers():
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)


def compile_layers(policy: LearnedPolicy) -> None:
    """Compiles large layers, in place; equal ones share the result."""
    for layer in policy.large_layers():
        layer.compile()


def shard(policy: LearnedPolicy, mesh: DeviceMesh) -> None:
    """Gives every process of a mesh its share of all weights (FSDP2), gathered for a layer while it computes.

    The root gathers its own again in the backward pass, too: between two passes no process then holds anything
    but its share, and the average of the weights can be put in their place.
    """
    for layer in repeated_layers(policy):
        fully_shard(layer, mesh=mesh)
    fully_shard(policy, mesh=mesh, reshard_after_forward=True)
    for method in ("loss", "predict"):
        register_fsdp_forward_method(policy, method)
