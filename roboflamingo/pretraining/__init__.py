"""Image-text pre-training of small vision-language models: next-token loss on captions, questions and answers."""

from roboflamingo.pretraining.config import PretrainConfig
from roboflamingo.pretraining.train import pretrain

__all__ = ["PretrainConfig", "pretrain"]
