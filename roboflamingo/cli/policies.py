"""Makes what evaluation and collection run, in a form that worker processes can be sent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from calvin_eval.calvin import calvin_robot
from calvin_eval.demonstrations.experts import Expert
from calvin_eval.protocol import Policy
from calvin_eval.system.errors import UsageError, UserError
from calvin_eval.system.provenance import code_version, fingerprint
from calvin_eval.worlds.playtable.cameras import CameraSizes
from calvin_eval.worlds.playtable.world import PlayTable

EXPERT = "expert"
"""Stands for the scripted experts where a policy folder is expected."""


def open_policy(
    folder: str,
    execute: int = 1,
    ensemble: float | None = None,
    scene: str = "D",
    device: str = "cpu",
    rows: int | None = None,
) -> Policy:
    """The policy in a folder, ready to act on one core, or on a GPU.

    Args:
        folder: of a saved policy, or `EXPERT`.
        execute: see `roboflamingo.policy.control.PolicyController`.
        ensemble: likewise.
        scene: for the scripted experts, who need to know it.
        device: cpu or cuda.
        rows: see `roboflamingo.policy.control.PolicyController`.

    Raises:
        UserError, FileNotFoundError: see `check_policy`; or the weights do not fit.
    """
    if folder == EXPERT:
        return Expert(scene)
    import torch

    from roboflamingo.policy.control import PolicyController
    from roboflamingo.weights.checkpoint import load_policy

    torch.set_num_threads(1)
    return PolicyController(load_policy(Path(folder), device), execute, ensemble, rows=rows)


def check_policy(
    folder: str, execute: int, ensemble: float | None, device: str, renderer: str = "panda3d"
) -> dict[str, Any]:
    """Makes sure, before any process is started, that a policy can be run so. Its weights are not read.

    Returns:
        Facts for results: "window" and "stride" of the policy. Nothing for the scripted experts.

    Raises:
        FileNotFoundError: there is no policy in the folder.
        UserError: its config is broken.
        UsageError: it cannot act on a play table (`PolicySpec.check`), or not so, or there is no such device.
    """
    if folder == EXPERT:
        return {}
    import torch

    from roboflamingo.policy.control import check_execution
    from roboflamingo.weights.checkpoint import CONFIG, WEIGHTS, read_config

    for name in (CONFIG, WEIGHTS):
        if not (Path(folder) / name).is_file():
            raise FileNotFoundError(f"{folder} holds no policy ({name} is missing); train one, or give {EXPERT}")
    if device == "cuda" and not torch.cuda.is_available():
        raise UsageError("device is cuda, and torch finds no GPU here: choose cpu")
    config = read_config(Path(folder) / CONFIG)
    robot = calvin_robot(0, 0) if renderer == "none" else calvin_robot()
    try:
        config.spec().check(robot, f"the play table with renderer {renderer}")
        check_execution(config, execute, ensemble)
    except UserError as error:
        raise UsageError(str(error)) from None
    return {"window": config.window, "stride": config.stride}


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
