"""The vision-language model that policies are built on."""

from roboflamingo.backbone.flamingo import BackboneConfig, Flamingo, Text

__all__ = ["BackboneConfig", "Flamingo", "Text"]
