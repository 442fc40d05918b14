"""Policy heads: one file a head, one base, one registry; actions as heads predict them."""

from calvin_eval.specs import ActionSpec
from roboflamingo.heads import bins as bins
from roboflamingo.heads import diffusion as diffusion
from roboflamingo.heads import flow as flow
from roboflamingo.heads import gpt as gpt
from roboflamingo.heads import lstm as lstm
from roboflamingo.heads import mlp as mlp
from roboflamingo.heads.actions import Actions, Prediction
from roboflamingo.heads.base import HEADS, Draws, Head, RegressionHead, register_head
from roboflamingo.heads.config import HeadConfig
from roboflamingo.plugins import find

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
        UserError: there is no head of that name (see `roboflamingo.plugins.find`), or it cannot predict such actions.
    """
    head = find(HEADS, "roboflamingo.heads", config.kind, "policy.head.kind", Head)
    return head(config, spec, features, chunk, window)
