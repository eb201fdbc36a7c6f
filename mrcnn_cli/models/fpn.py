"""Feature Pyramid Network: "Feature Pyramid Networks for Object Detection" (Lin et al., 2017)."""

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from mrcnn_cli.config import Config
from mrcnn_cli.models.convolution import ConvNorm, Norm


class FPNConfig(Config):
    pyramid: bool = True  # False: the backbone's last map alone, as in the C4 and DC5 forms
    skip: int = Field(0, ge=0)  # of the backbone's maps, finest first, so many are left out
    channels: int = Field(256, ge=8)
    norm: Norm = "none"
    # Coarser levels. "pool": one, the last subsampled, for the RPN alone. RetinaNet has two more, by convolutions with
    # stride 2 of the backbone's last map ("backbone_convs") or of the pyramid's ("pyramid_convs").
    top: Literal["pool", "backbone_convs", "pyramid_convs", "none"] = "pool"

    def levels(self, maps: int = 4) -> int:
        """Levels of the pyramid on so many maps of a backbone."""
        return maps - self.skip + {"none": 0, "pool": 1}.get(self.top, 2) if self.pyramid else 1


class LastMap(nn.Module):
    """In place of a pyramid: the backbone's last map alone."""

    def __init__(self, channels: Sequence[int], strides: Sequence[int]):
        super().__init__()
        self.channels = channels[-1]
        self.strides = self.roi_strides = tuple(strides[-1:])

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        return [features[-1]]


class FPN(nn.Module):
    """Lateral 1x1 convolutions, a top-down sum with nearest upsampling, and a 3x3 convolution per level.

    Args:
        config: width, normalisation and the extra levels.
        channels: of the backbone's maps, finest first.
        strides: of the backbone's maps.
    """

    def __init__(self, config: FPNConfig, channels: Sequence[int], strides: Sequence[int]):
        super().__init__()
        self.skip = config.skip
        extra = config.levels(len(channels)) - len(channels) + config.skip
        channels, strides = channels[config.skip :], strides[config.skip :]
        self.laterals = nn.ModuleList(ConvNorm(c, config.channels, 1, norm=config.norm) for c in channels)
        self.outputs = nn.ModuleList(ConvNorm(config.channels, config.channels, 3, norm=config.norm) for _ in channels)
        self.top = config.top
        self.tops = nn.ModuleList()
        if config.top in ("backbone_convs", "pyramid_convs"):
            inputs = channels[-1] if config.top == "backbone_convs" else config.channels
            self.tops.extend(ConvNorm(c, config.channels, 3, 2) for c in (inputs, config.channels))
        for conv in (*self.laterals, *self.outputs, *self.tops):
            nn.init.kaiming_uniform_(conv.weight, a=1)
        self.channels = config.channels
        # The levels that RoIs are cut from: of those with equal strides (MobileNetV3's last two) the first.
        self.roi_strides = tuple(dict.fromkeys(strides))
        self.strides = (*strides, *(strides[-1] * 2**level for level in range(1, extra + 1)))

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Maps [N, channels[i], H_i, W_i], finest first -> maps [N, C, H_i, W_i] at `strides`."""
        features = features[self.skip :]
        merged = [lateral(feature) for lateral, feature in zip(self.laterals, features, strict=True)]
        for level in range(len(merged) - 2, -1, -1):
            merged[level] = _with_upsampled(merged[level], merged[level + 1])
        pyramid = [output(feature) for output, feature in zip(self.outputs, merged, strict=True)]
        if self.top == "pool":
            pyramid.append(functional.max_pool2d(pyramid[-1], kernel_size=1, stride=2))
        if self.tops:
            first, second = self.tops
            pyramid.append(first(features[-1] if self.top == "backbone_convs" else pyramid[-1]))
            pyramid.append(second(functional.relu(pyramid[-1])))
        return pyramid


def _with_upsampled(fine: Tensor, coarse: Tensor) -> Tensor:
    """The sum of a map and of the next coarser one, enlarged to its size by repeating the nearest pixels."""
    if torch.is_grad_enabled() or any(f != 2 * c for f, c in zip(fine.shape[-2:], coarse.shape[-2:], strict=True)):
        return fine + functional.interpolate(coarse, size=fine.shape[-2:], mode="nearest")
    # The same sums, ten times as fast on a CPU: the enlarged map is never written.
    fine.unflatten(2, (-1, 2)).unflatten(4, (-1, 2)).add_(coarse[:, :, :, None, :, None])
    return fine


def build_neck(config: FPNConfig, channels: Sequence[int], strides: Sequence[int]) -> FPN | LastMap:
    """What stands between a backbone with these maps and the heads."""
    return FPN(config, channels, strides) if config.pyramid else LastMap(channels, strides)
