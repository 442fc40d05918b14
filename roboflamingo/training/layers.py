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

from roboflamingo.backbone.flamingo import FlamingoLayer
from roboflamingo.policy.roboflamingo import RoboFlamingo


def language_layers(policy: RoboFlamingo) -> Iterator[nn.Module]:
    """The decoder layers of the language model and the cross-attention between them, which run one by one."""
    for module in policy.modules():
        if isinstance(module, FlamingoLayer):
            yield from module.children()


def repeated_layers(policy: RoboFlamingo) -> Iterator[nn.Module]:
    """All layers that stand in lists, those of vision encoder, resampler, language model and head."""
    yield from language_layers(policy)
    for module in policy.modules():
        if isinstance(module, nn.ModuleList):
            yield from (layer for layer in module if not isinstance(layer, FlamingoLayer | nn.ModuleList))


def checkpoint_activations(policy: RoboFlamingo) -> None:
    """Makes decoder and cross-attention layers keep nothing but their inputs for the backward pass."""
    for layer in language_layers(policy):
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)


def compile_layers(policy: RoboFlamingo) -> None:
    """Compiles decoder and cross-attention layers, in place; equal ones share the result."""
    for layer in language_layers(policy):
        layer.compile()


def shard(policy: RoboFlamingo, mesh: DeviceMesh) -> None:
    """Gives every process of a mesh its share of all weights (FSDP2), gathered for a layer while it computes.

    The root gathers its own again in the backward pass, too: between two passes no process then holds anything
    but its share, and the average of the weights can be put in their place.
    """
    for layer in repeated_layers(policy):
        fully_shard(layer, mesh=mesh)
    fully_shard(policy, mesh=mesh, reshard_after_forward=True)
    for method in ("loss", "predict"):
        register_fsdp_forward_method(policy, method)
