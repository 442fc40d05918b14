"""Makes what evaluation and collection run, in a form that worker processes can be sent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from calvin_eval.experts import Expert
from calvin_eval.protocol import Policy
from calvin_eval.system.provenance import code_version, fingerprint
from calvin_eval.world.cameras import CameraSizes
from calvin_eval.world.playtable import PlayTable

EXPERT = "expert"
"""Stands for the scripted demonstrators where a policy folder is expected."""


def open_policy(
    folder: str, execute: int = 1, ensemble: float | None = None, scene: str = "D", device: str = "cpu"
) -> Policy:
    """The policy in a folder, ready to act on one core, or on a GPU.

    Args:
        folder: of a saved policy, or `EXPERT`.
        execute: see `roboflamingo.control.PolicyController`.
        ensemble: likewise.
        scene: for the demonstrators, who need to know it.
        device: cpu or cuda.
    """
    if folder == EXPERT:
        return Expert(scene)
    import torch

    from roboflamingo.checkpoint import load_policy
    from roboflamingo.control import PolicyController

    torch.set_num_threads(1)
    return PolicyController(load_policy(Path(folder), device), execute, ensemble)


def policy_facts(folder: str) -> dict[str, Any]:
    """What makes a policy the one that it is: the content of its folder, wherever that lies, and the code that runs it.

    Raises:
        OSError: a file cannot be read.
    """
    if folder == EXPERT:
        return {"policy_fingerprint": EXPERT}
    return {"policy_fingerprint": fingerprint(Path(folder)), "policy_code": code_version("roboflamingo")}


def make_env(scene: str, renderer: str, sizes: CameraSizes | None = None) -> PlayTable:
    """A play table of a scene; see `PlayTable`."""
    return PlayTable(scene, renderer, sizes)
