"""What training, files and controllers know of a policy, whatever its kind; and the registry of kinds.

A new kind is a dataclass derived from `BasePolicyConfig`, a module derived from `LearnedPolicy`, and a `PolicyKind` of
the two that is registered with `register_policy`, or by an entry point of the group `roboflamingo.policies`. Shapes:
B batch, T window, K chunk, D numbers a frame.
"""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from calvin_eval.calvin import ROBOT_OBS
from calvin_eval.system.errors import UserError
from roboflamingo.heads import Actions, Draws, Prediction
from roboflamingo.plugins import find
from roboflamingo.policy.actions import action_space
from roboflamingo.policy.base_config import BasePolicyConfig
from roboflamingo.policy.inputs import state_vector

DEFAULT = "roboflamingo"


class Vision(NamedTuple):
    """What of a policy sees single images and nothing else.

    Attributes:
        encoder: images (N, H, W, 3) uint8 -> tokens (N, V, D).
        settings: what else than its weights decides what it computes, as plain values.
    """

    encoder: nn.Module
    settings: Mapping[str, Any]


class LearnedPolicy(nn.Module, ABC):
    """A policy as a module. It keeps nothing of an episode; `control.py` does, in explicit memory.

    Args:
        config: what it is like.

    Attributes:
        PARTS: names of its parts, for tables, and patterns of their parameters' names; the first that fits counts.
        joins_window: whether it reads the frames of a window together, and not one by one.
        samples: whether it acts by drawing from a distribution, and so needs noise.
    """

    PARTS: ClassVar[Mapping[str, str]] = {}
    joins_window = False
    samples = False

    def __init__(self, config: BasePolicyConfig) -> None:
        super().__init__()
        self.config: Any = config
        self.action_space = action_space(config.actions, config.statistics.get("actions"), config.action_parts)

    @property
    @abstractmethod
    def actions(self) -> Actions:
        """How an action is predicted, part by part: made of `action_space.spec`."""

    # --- training -------------------------------------------------------------------------------

    @abstractmethod
    def loss(self, batch: Mapping[str, Any], draws: Draws | None = None) -> dict[str, Tensor]:
        """What to backpropagate ("loss") and its parts, over the steps inside the segments.

        Args:
            batch: images (B, T, H, W, 3) uint8 of every camera of `config.seen`, or tokens in their place (see
                `vision`), actions (B, T, K, A), action_mask (B, T, K), frame_mask (B, T), instruction (B sentences),
                what `config.vectors` names (B, T, n), and what else the config asks for.
            draws: for policies that sample; drawn anew where it is None.
        """

    def targets(self, batch: Mapping[str, Any]) -> Tensor:
        """What is to be predicted (B, T, K, A)."""
        return self.action_space.encode(batch["actions"], batch.get(ROBOT_OBS))

    def commands(self, prediction: Prediction, robot_obs: Tensor | None) -> Tensor:
        """Soft commands (..., K, C) from predictions at frames with robot states (..., 15), where they are read.

        They can be averaged; `heads.actions.as_commands` makes commands of them.
        """
        state: Any = None if robot_obs is None else robot_obs.double()
        return self.action_space.decode(self.actions.soft(prediction).double(), state)

    def part_of(self, name: str) -> str:
        """The part that a parameter of that name belongs to."""
        return next((part for part, fits in self.PARTS.items() if fnmatchcase(name, fits)), name.split(".")[0])

    def idle(self) -> set[int]:
        """The ids of parameters that nothing depends on."""
        return set()

    def chosen(self, wanted: Any, *, everything: bool) -> set[int]:
        """The ids of the parameters that are to train.

        Args:
            wanted: `trainable` of the run, a dataclass.
            everything: what its key of that name comes to.

        Raises:
            UserError: a key cannot be followed by this kind of policy. Names it.
        """
        for each in fields(wanted):
            value = getattr(wanted, each.name)
            if value != each.default and (each.name != "everything" or not everything):
                raise UserError(
                    f"trainable.{each.name} {value} does nothing with policy.kind {self.config.kind}, of which "
                    "everything trains; leave it out"
                )
        return {id(parameter) for parameter in self.parameters()}

    def vision(self) -> Vision | None:
        """Its vision encoder, if tokens (B, T, V, D) that it made may stand in a batch in the place of images."""
        return None

    def large_layers(self) -> Iterator[nn.Module]:
        """The layers whose activations `checkpoint_activations` computes again, and which `compile` compiles."""
        return iter(())

    # --- acting ---------------------------------------------------------------------------------

    def read(self, instruction: Sequence[str], *, padded: bool = False) -> Any:
        """B sentences as far as they can be read without images; None for policies that read none.

        Args:
            instruction: the sentences.
            padded: whether all are as long as can be, so that the length of one changes nothing for another.
        """
        return None

    def stack(self, texts: Sequence[Any]) -> Any:
        """What `read` made of single sentences, padded, as one."""
        return None

    @abstractmethod
    def look(self, batch: Mapping[str, Any], text: Any) -> Tensor:
        """What is kept of each frame until it leaves the window, (B, n, ...).

        Args:
            batch: images, vectors and robot_obs of n frames, (B, n, ...), as in `loss`.
            text: B instructions.
        """

    def join(self, frames: Tensor, batch: Mapping[str, Any], text: Any) -> Tensor:
        """The frames of windows (B, T, ...) as one (B, 1, D), where the policy `joins_window`.

        Args:
            frames: what `look` made of them.
            batch: as in `look`, of the window's last frame alone or of the whole window.
            text: B instructions.
        """
        raise NotImplementedError

    @abstractmethod
    def decide(self, frames: Tensor, noise: Tensor | None = None, *, at: Tensor | None = None) -> Prediction:
        """Windows (B, T, ...) of what `look` (or `join`) made -> a chunk of actions at every frame, or at one.

        Args:
            frames: those of windows that have just begun are followed by anything.
            noise: standard normal, (B, T or 1, K, C), for policies that sample; drawn where it is None.
            at: (B,) which frame, (T = 1 in the result); None for all.
        """

    def features(self, batch: Mapping[str, Any]) -> Tensor:
        """What `decide` reads of a batch (see `loss`)."""
        text = self.read(batch["instruction"])
        frames = self.look(batch, text)
        return self.join(frames, batch, text) if self.joins_window else frames

    def predict(self, batch: Mapping[str, Any], noise: Tensor | None = None) -> Prediction:
        """A chunk of actions at every frame of a batch (see `loss`); where frames are joined, at the last.

        Policies that sample do so from noise (B, T, K, C), drawn anew where it is None.
        """
        if noise is not None and self.joins_window:
            noise = noise[:, -1:]
        return self.decide(self.features(batch), noise)

    # --- what a batch holds ---------------------------------------------------------------------

    def images(self, batch: Mapping[str, Any]) -> list[Tensor]:
        """The images (B, T, H, W, 3) that the policy looks at, or tokens (B, T, V, D) of them, camera by camera.

        Raises:
            UserError: the batch lacks a camera. Names it.
        """
        if missing := [name for name in self.config.seen if name not in batch]:
            raise UserError(f"the policy looks through {', '.join(missing)}, and the data have no such images")
        return [batch[name] for name in self.config.seen]

    def low_dimensional(self, batch: Mapping[str, Any]) -> Tensor:
        """robot_obs and vectors (B, T, n), normalised; n is `config.low_dimensional`."""
        parts = [self.config.statistics[name].normalise(batch[name]) for name in self.config.vectors]
        if self.config.robot_obs != "none":
            parts.insert(0, state_vector(batch[ROBOT_OBS], self.config.robot_obs))
        if not parts:
            images = batch[self.config.seen[0]]
            return torch.zeros(*images.shape[:2], 0, device=images.device)
        return torch.cat(parts, dim=-1)

    # --- files ----------------------------------------------------------------------------------

    def save_beside(self, folder: Path) -> None:
        """Writes what the policy needs besides weights and config into its folder; `PolicyKind.opened` reads it."""


class PolicyKind:
    """A kind of policy: its configuration and its class, and how policies of it come to be.

    Args:
        config: the dataclass of its keys, below `policy`.
        policy: the module's class, made with such a config alone.
    """

    def __init__(self, config: type[BasePolicyConfig], policy: type[LearnedPolicy]) -> None:
        self.config, self.policy = config, policy

    def make(self, config: Any, *, half: bool = False, trained: Sequence[str] = ()) -> LearnedPolicy:
        """A new policy with the weights that it begins with.

        Args:
            config: what it is like.
            half: whether frozen matrices may be stored as bf16 from the start, which large policies need.
            trained: parts that will train, and so stay fp32.
        """
        return self.policy(config)

    def outline(self, config: Any, *, fresh: bool = True) -> LearnedPolicy:
        """The policy's parameters by name and shape, made before data are read to see what is wrong.

        Args:
            config: what it is like, but for what training fills in.
            fresh: whether its weights will be made, and not loaded from a policy's folder.
        """
        with torch.device("meta"):
            return self.policy(config)

    def opened(self, config: Any, folder: Path) -> LearnedPolicy:
        """The policy that was saved in a folder, with memory for its weights, which are yet to be filled in."""
        return self.policy(config)


POLICIES: dict[str, PolicyKind | str] = {DEFAULT: "roboflamingo.weights.kind:ROBOFLAMINGO"}
"""Every kind of policy by name, or the place where it is, to be imported when it is asked for."""


def register_policy(name: str, kind: PolicyKind) -> None:
    """Puts a kind of policy into the registry."""
    POLICIES[name] = kind


def policy_kind(name: str) -> PolicyKind:
    """The kind of that name.

    Raises:
        UserError: there is none (see `roboflamingo.plugins.find`).
    """
    found = find(POLICIES, "roboflamingo.policies", name, "policy.kind", PolicyKind)
    if isinstance(found, str):
        module, _, attribute = found.partition(":")
        found = getattr(importlib.import_module(module), attribute)
        assert isinstance(found, PolicyKind)
    return found
