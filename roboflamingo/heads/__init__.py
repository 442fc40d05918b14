"""Policy heads: one file a head, one base, one registry; actions as heads predict them."""

from calvin_eval.specs import ActionSpec
from calvin_eval.system.errors import UserError
from roboflamingo.heads import bins as bins
from roboflamingo.heads import diffusion as diffusion
from roboflamingo.heads import flow as flow
from roboflamingo.heads import gpt as gpt
from roboflamingo.heads import lstm as lstm
from roboflamingo.heads import mlp as mlp
from roboflamingo.heads.actions import Actions, Prediction
from roboflamingo.heads.base import HEADS, Draws, Head, RegressionHead, register_head
from roboflamingo.heads.config import HeadConfig

__all__ = [
    "HEADS",
    "Actions",
    "Draws",
    "Head",
    "HeadConfig",
    "Prediction",
    "RegressionHead",
    "build_head",
    "register_head",
]


def build_head(config: HeadConfig, spec: ActionSpec, features: int, chunk: int, window: int) -> Head:
    """The head that a config names, for actions, D features a frame, chunks of K actions and windows of T frames.

    Raises:
        UserError: no head of that name is registered, or it cannot predict such actions.
    """
    if config.kind not in HEADS:
        raise UserError(f"policy.head.kind {config.kind!r} does not exist; choose one of {', '.join(sorted(HEADS))}")
    return HEADS[config.kind](config, spec, features, chunk, window)
