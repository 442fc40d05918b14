"""Policy heads: one file a head, one base, one registry."""

from roboflamingo.heads import lstm as lstm
from roboflamingo.heads import mlp as mlp
from roboflamingo.heads.base import HEADS, Head, HeadConfig, Prediction

__all__ = ["HEADS", "Head", "HeadConfig", "Prediction", "build_head"]


def build_head(config: HeadConfig, features: int, chunk: int) -> Head:
    """The head that a config names.

    Raises:
        ValueError: no head of that name is registered.
    """
    if config.kind not in HEADS:
        raise ValueError(f"head.kind {config.kind!r} does not exist; choose one of {', '.join(sorted(HEADS))}")
    return HEADS[config.kind](config, features, chunk)
