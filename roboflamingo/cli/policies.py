"""Makes what evaluation and collection run, in a form that worker processes can be sent."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from calvin_eval.calvin import calvin_robot
from calvin_eval.demonstrations.experts import Expert
from calvin_eval.protocol import Policy
from calvin_eval.system.errors import UsageError, UserError
from calvin_eval.system.provenance import code_version
from calvin_eval.worlds.playtable.cameras import CameraSizes
from calvin_eval.worlds.playtable.world import PlayTable

EXPERT = "expert"
"""Stands for the scripted experts where a policy folder is expected."""


@dataclass(frozen=True)
class Acting:
    """How a policy acts.

    Attributes:
        execute: E, actions executed of each predicted chunk.
        leash: how far (m) the target pose may lead the measured one; None for no bound.
        origins: of execute and leash: "given", "policy" for what is saved with it, "default" where neither says.
    """

    execute: int
    leash: float | None
    origins: dict[str, str]


def how_to_act(
    folder: str, execute: int | None = None, leash: float | None = None, ensemble: float | None = None
) -> Acting:
    """What was given, else what is saved with the policy, else closed loop without a leash.

    Args:
        folder: of a saved policy, or `EXPERT`.
        execute: E as given; None where it was not. With an ensemble it is 1.
        leash: as given (m); 0 for none, whatever the policy says.
        ensemble: decay of a temporal ensemble.

    Raises:
        FileNotFoundError: there is no policy in the folder.
        UserError: its config is broken.
    """
    own: dict[str, Any] = {"execute": None, "leash": None}
    if folder != EXPERT:
        config = _config(folder)
        own = {"execute": config.acting.execute if ensemble is None else None, "leash": config.acting.leash}
    given = {"execute": execute, "leash": leash}
    origins = {
        key: "given" if given[key] is not None else "policy" if own[key] is not None else "default" for key in own
    }
    chosen: dict[str, Any] = {key: own[key] if given[key] is None else given[key] for key in own}
    return Acting(chosen["execute"] or 1, chosen["leash"] or None, origins)


def _config(folder: str) -> Any:
    """The config of a saved policy.

    Raises:
        FileNotFoundError: there is no policy in the folder.
        UserError: its config is broken.
    """
    from roboflamingo.weights.checkpoint import CONFIG, WEIGHTS, read_config

    for name in (CONFIG, WEIGHTS):
        if not (Path(folder) / name).is_file():
            raise FileNotFoundError(f"{folder} holds no policy ({name} is missing); train one, or give {EXPERT}")
    return read_config(Path(folder) / CONFIG)


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

    config = _config(folder)
    if device == "cuda" and not torch.cuda.is_available():
        raise UsageError("device is cuda, and torch finds no GPU here: choose cpu")
    robot = calvin_robot(0, 0) if renderer == "none" else calvin_robot()
    try:
        config.spec().check(robot, f"the play table with renderer {renderer}")
        check_execution(config, execute, ensemble)
    except UserError as error:
        raise UsageError(str(error)) from None
    return {"window": config.window, "stride": config.stride}


def policy_facts(folder: str) -> dict[str, Any]:
    """What makes a policy the one that it is: the content of its folder, wherever that lies, and the code that runs it.

    E and leash that are saved with it are no part of that: results name them on their own.

    Raises:
        OSError: a file cannot be read.
    """
    if folder == EXPERT:
        return {"policy_fingerprint": EXPERT}
    from roboflamingo.weights.acting import identity

    return {"policy_fingerprint": identity(Path(folder)), "policy_code": code_version("roboflamingo")}


def torch_facts(folder: str) -> dict[str, Any]:
    """The instruction set that torch computes a policy with, which `ATEN_CPU_CAPABILITY` can keep down."""
    if folder == EXPERT:
        return {}
    import torch

    return {"torch_instructions": torch.backends.cpu.get_cpu_capability()}


def make_env(scene: str, renderer: str, sizes: CameraSizes | None = None) -> PlayTable:
    """A play table of a scene; see `PlayTable`."""
    return PlayTable(scene, renderer, sizes)
