"""Policy heads: one file a head, one base, one registry."""

from calvin_eval.system.errors import UserError
from roboflamingo.heads import bins as bins
from roboflamingo.heads import diffusion as diffusion
from roboflamingo.heads import flow as flow
from roboflamingo.heads import gpt as gpt
from roboflamingo.heads import lstm as lstm
from roboflamingo.heads import mlp as mlp
from roboflamingo.heads.base import HEADS, Draws, Head, HeadConfig, Prediction

__all__ = ["HEADS", "Draws", "Head", "HeadConfig", "Prediction", "build_head"]


def build_head(config: HeadConfig, features: int, chunk: int, window: int) -> Head:
    """The head that a config names, for D features a frame, chunks of K actions and windows of T frames.

    Raises:
        UserError: no head of that name is registered.
    """
    if config.kind not in HEADS:
        raise UserError(f"policy.head.kind {config.kind!r} does not exist; choose one of {', '.join(sorted(HEADS))}")
    return HEADS[config.kind](config, features, chunk, window)
