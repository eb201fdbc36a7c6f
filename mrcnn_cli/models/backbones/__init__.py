"""Backbones by name. A backbone has `channels` and `strides` and returns its maps finest first."""

from typing import Annotated

from pydantic import Field

from mrcnn_cli.models.backbones.efficientnet_lite import EfficientNetLite, EfficientNetLiteConfig
from mrcnn_cli.models.backbones.resnet import ResNet, ResNetConfig

BACKBONES = {
    "efficientnet_lite0": EfficientNetLite,
    "resnet18": ResNet,
    "resnet34": ResNet,
    "resnet50": ResNet,
    "resnet101": ResNet,
    "resnet152": ResNet,
}

Backbone = ResNet | EfficientNetLite
BackboneConfig = Annotated[ResNetConfig | EfficientNetLiteConfig, Field(discriminator="name")]


def build_backbone(config: ResNetConfig | EfficientNetLiteConfig, input_channels: int = 3) -> Backbone:
    """The backbone that a recipe names, with fresh weights."""
    return BACKBONES[config.name](config, input_channels)
