"""The vision-language model that policies are built on."""

from roboflamingo.backbone.config import BackboneConfig
from roboflamingo.backbone.flamingo import Flamingo, Text

__all__ = ["BackboneConfig", "Flamingo", "Text"]
