"""The vision-language model that policies are built on."""

from roboflamingo.backbone import efficientnet as efficientnet
from roboflamingo.backbone import vision as vision
from roboflamingo.backbone.config import BackboneConfig
from roboflamingo.backbone.encoders import VISION, ImageEncoder, VisionConfig, register_vision
from roboflamingo.backbone.flamingo import Flamingo, Text

__all__ = ["VISION", "BackboneConfig", "Flamingo", "ImageEncoder", "Text", "VisionConfig", "register_vision"]
