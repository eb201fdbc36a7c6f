"""Backbones by name. A backbone has `channels` and `strides` and returns its maps finest first."""

from typing import Annotated

from pydantic import Field

from mrcnn_cli.models.backbones.efficientnet_lite import EfficientNetLite, EfficientNetLiteConfig
from mrcnn_cli.models.backbones.mobilenet import MobileNet, MobileNetConfig
from mrcnn_cli.models.backbones.resnet import ResNet, ResNetConfig
from mrcnn_cli.models.backbones.vgg import VGG, VGGConfig

BACKBONES = {
    "efficientnet_lite0": EfficientNetLite,
    "mobilenet_v2": MobileNet,
    "mobilenet_v3_large": MobileNet,
    "resnet18": ResNet,
    "resnet34": ResNet,
    "resnet50": ResNet,
    "resnet101": ResNet,
    "resnet152": ResNet,
    "vgg16": VGG,
}

Backbone = ResNet | EfficientNetLite | MobileNet | VGG
BackboneConfig = Annotated[
    ResNetConfig | EfficientNetLiteConfig | MobileNetConfig | VGGConfig, Field(discriminator="name")
]


def build_backbone(config: BackboneConfig, input_channels: int = 3) -> Backbone:
    """The backbone that a recipe names, with fresh weights."""
    return BACKBONES[config.name](config, input_channels)
