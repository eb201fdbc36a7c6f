"""ResNet: "Deep Residual Learning for Image Recognition" (He et al., 2015), table 1; with groups, ResNeXt (Xie et al.,
2016)."""

from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from mrcnn_cli.config import Config
from mrcnn_cli.models.convolution import ConvNorm, DeformConvNorm, Norm, freeze
from mrcnn_cli.models.extent import cut

# name -> (blocks per stage, are they bottlenecks)
DEPTHS = {
    "resnet18": ((2, 2, 2, 2), False),
    "resnet34": ((3, 4, 6, 3), False),
    "resnet50": ((3, 4, 6, 3), True),
    "resnet101": ((3, 4, 23, 3), True),
    "resnet152": ((3, 8, 36, 3), True),
}


class ResNetConfig(Config):
    name: Literal["resnet18", "resnet34", "resnet50", "resnet101", "resnet152"]
    weights: Literal["none", "given"] = "none"  # "given": training begins with a file, --weights
    width: int = Field(64, ge=8, multiple_of=8)  # channels of the stem; the paper's is 64
    groups: int = Field(1, ge=1)  # of the 3x3 convolutions; ResNeXt 32x8d has 32 ...
    width_per_group: int = Field(64, ge=1)  # ... of 8 channels each in the first stage
    stages: int = Field(4, ge=1, le=4)  # 3 for the C4 form, whose heads hold the fourth
    dilated: bool = False  # the fourth stage keeps the stride 16 and dilates instead (DC5)
    deformable: Literal["none", "v1", "v2"] = "none"  # the 3x3 convolutions from the second stage on
    norm: Norm = "batch_norm"
    norm_eps: float = Field(1e-5, ge=0)
    stride_in_1x1: bool = False  # where a bottleneck strides: True in the original MSRA models, False in torchvision
    frozen_stages: int = Field(0, ge=0, le=5)  # the stem counts as the first; Detectron2's zoo freezes 2

    @property
    def maps(self) -> int:
        """How many maps come out."""
        return self.stages

    @model_validator(mode="after")
    def _something_learns(self) -> "ResNetConfig":
        if self.weights == "none" and self.norm == "frozen_batch_norm":
            raise ValueError("norm = 'frozen_batch_norm' needs weights; from scratch take 'batch_norm' or 'group_norm'")
        if not DEPTHS[self.name][1] and (self.groups > 1 or self.width_per_group != 64 or self.deformable != "none"):
            raise ValueError(f"{self.name} has no bottlenecks: groups and deformable need resnet50 or deeper")
        return self


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut.

    Args:
        config: of the network.
        inputs: channels.
        stage: 0..3.
        stride: of the first convolution.
    """

    expansion = 1

    def __init__(self, config: ResNetConfig, inputs: int, stage: int, stride: int):
        super().__init__()
        norm, eps, dilation = config.norm, config.norm_eps, _dilation(config, stage)
        width = outputs = config.width * 2**stage
        self.conv1 = ConvNorm(inputs, width, 3, stride, dilation=dilation, norm=norm, activation="relu", eps=eps)
        self.conv2 = ConvNorm(width, width, 3, dilation=dilation, norm=norm, activation="relu", eps=eps)
        self.shortcut = _shortcut(config, inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.shortcut is None else self.shortcut(x)
        return self.conv2(self.conv1(x), shortcut)


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions and a shortcut; without groups four times as many channels come out as the 3x3 has."""

    expansion = 4

    def __init__(self, config: ResNetConfig, inputs: int, stage: int, stride: int):
        super().__init__()
        norm, eps, dilation = config.norm, config.norm_eps, _dilation(config, stage)
        outputs = config.width * 2**stage * self.expansion
        width = config.width * config.width_per_group // 64 * config.groups * 2**stage
        first, second = (stride, 1) if config.stride_in_1x1 else (1, stride)
        self.conv1 = ConvNorm(inputs, width, 1, first, norm=norm, activation="relu", eps=eps)
        self.conv2: ConvNorm
        if config.deformable != "none" and stage > 0:
            self.conv2 = DeformConvNorm(
                width,
                width,
                second,
                modulated=config.deformable == "v2",
                groups=config.groups,
                dilation=dilation,
                norm=norm,
                activation="relu",
                eps=eps,
            )
        else:
            self.conv2 = ConvNorm(
                width, width, 3, second, groups=config.groups, dilation=dilation, norm=norm, activation="relu", eps=eps
            )
        self.conv3 = ConvNorm(width, outputs, 1, norm=norm, activation="relu", eps=eps)
        self.shortcut = _shortcut(config, inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.shortcut is None else self.shortcut(x)
        return self.conv3(self.conv2(self.conv1(x)), shortcut)


def _dilation(config: ResNetConfig, stage: int) -> int:
    return 2 if config.dilated and stage == 3 else 1


def _shortcut(config: ResNetConfig, inputs: int, outputs: int, stride: int) -> ConvNorm | None:
    if stride == 1 and inputs == outputs:
        return None
    return ConvNorm(inputs, outputs, 1, stride, norm=config.norm, eps=config.norm_eps)


def build_stage(config: ResNetConfig, stage: int, inputs: int) -> tuple[nn.Sequential, int]:
    """The blocks of stage 0..3 and the channels that come out."""
    depths, bottleneck = DEPTHS[config.name]
    kind = Bottleneck if bottleneck else BasicBlock
    outputs = config.width * 2**stage * kind.expansion
    first_stride = 1 if stage == 0 or _dilation(config, stage) > 1 else 2
    blocks = [kind(config, inputs, stage, first_stride)]
    blocks += [kind(config, outputs, stage, 1) for _ in range(depths[stage] - 1)]
    return nn.Sequential(*blocks), outputs


class ResNet(nn.Module):
    """The stem and up to four stages; returns the stages' maps at strides 4, 8, 16, 32 (16 again if dilated).

    Args:
        config: which depth, and how it is normalised.
        input_channels: C of the pixels.
    """

    def __init__(self, config: ResNetConfig, input_channels: int = 3):
        super().__init__()
        self.config = config
        self.stem = ConvNorm(
            input_channels, config.width, 7, 2, norm=config.norm, activation="relu", eps=config.norm_eps
        )
        self.stages, channels = nn.ModuleList(), [config.width]
        for index in range(config.stages):
            stage, outputs = build_stage(config, index, channels[-1])
            self.stages.append(stage)
            channels.append(outputs)
        self.channels = tuple(channels[1:])
        self.strides = (4, 8, 16, 16 if config.dilated else 32)[: config.stages]
        freeze(*([self.stem, *self.stages][: config.frozen_stages]))

    def next_stage(self) -> tuple[nn.Sequential, int]:
        """The stage that would follow, with fresh weights, and its channels: for heads that go on with it."""
        return build_stage(self.config, len(self.stages), self.channels[-1])

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """[N, C, H, W] normalised pixels -> maps [N, channels[i], H / strides[i], W / strides[i]]."""
        features, frozen = [], self.config.frozen_stages
        # No graph is kept for the frozen part: it is the part with the largest maps.
        with torch.set_grad_enabled(torch.is_grad_enabled() and frozen == 0):
            x = cut(functional.max_pool2d(self.stem(pixels), 3, 2, 1))
        for index, stage in enumerate(self.stages):
            with torch.set_grad_enabled(torch.is_grad_enabled() and frozen <= index + 1):
                x = stage(x)
            features.append(x)
        return features
