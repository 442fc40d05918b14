"""The vision-language model."""

from roboflamingo.backbone.flamingo import BackboneConfig, Flamingo

__all__ = ["BackboneConfig", "Flamingo"]
