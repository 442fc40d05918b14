"""Which parameters of a policy are trained."""

from __future__ import annotations

from calvin_eval.system.errors import UserError
from roboflamingo.policy.base import LearnedPolicy
from roboflamingo.training.config import TrainConfig
from roboflamingo.training.config_parts import ConfigError


def choose_trainable(policy: LearnedPolicy, config: TrainConfig) -> None:
    """Lets exactly those parameters require gradients that the config names and that take part in the computation.

    Raises:
        ConfigError: the policy cannot be trained so (see `LearnedPolicy.chosen`), or nothing is left to train.
    """
    idle = policy.idle()
    try:
        chosen = policy.chosen(config.trainable, everything=config.trains_everything) - idle
    except UserError as error:
        raise ConfigError(str(error)) from error
    for parameter in policy.parameters():
        parameter.requires_grad = id(parameter) in chosen
    if not any(parameter.requires_grad for parameter in policy.parameters()):
        raise ConfigError("trainable leaves nothing to train; set trainable.everything, or one of its other keys")
