"""The semantic branch: "Panoptic Feature Pyramid Networks" (Kirillov et al., 2019), figure 3."""

from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from mrcnn_cli.config import Config
from mrcnn_cli.models.convolution import ConvNorm, Norm
from mrcnn_cli.structures import IGNORED, Denominator, Size, Targets, at_least_one

CLASSES_AT_ONCE = 16  # that are brought to the size of the picture: all of COCO's would take hundreds of megabytes


class SemanticHeadConfig(Config):
    conv_channels: int = Field(128, ge=8)
    norm: Norm = "group_norm"
    loss_weight: float = Field(0.5, ge=0)  # beside the losses of the instances


class SemanticHead(nn.Module):
    """Each level convolved and enlarged to the finest one's size, summed, and classified: things as one, and stuff.

    Args:
        config: width and normalisation.
        channels: of the pyramid's levels.
        strides: of the levels, finest first; the head's output has the first one's.
        num_stuff: S, classes of stuff.
    """

    def __init__(self, config: SemanticHeadConfig, channels: int, strides: Sequence[int], num_stuff: int):
        super().__init__()
        self.config = config
        self.stride = strides[0]
        self.levels = nn.ModuleList(self._level(config, channels, stride) for stride in strides)
        self.logits = nn.Conv2d(config.conv_channels, 1 + num_stuff, 1)
        nn.init.kaiming_normal_(self.logits.weight, mode="fan_out", nonlinearity="relu")
        assert self.logits.bias is not None
        nn.init.zeros_(self.logits.bias)

    def _level(self, config: SemanticHeadConfig, inputs: int, stride: int) -> nn.Sequential:
        """A convolution for each doubling, and one where there is none to do."""
        level = nn.Sequential()
        doublings = (stride // self.stride).bit_length() - 1
        for _ in range(max(doublings, 1)):
            level.append(ConvNorm(inputs, config.conv_channels, 3, norm=config.norm, activation="relu"))
            if doublings:
                level.append(nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False))
            inputs = config.conv_channels
        return level

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Maps [N, C, H_l, W_l], finest first -> logits [N, 1 + S, H_0, W_0]; class 0 is all things."""
        height, width = features[0].shape[-2:]
        merged = self.levels[0](features[0])
        for level, feature in zip(self.levels[1:], features[1 : len(self.levels)], strict=True):
            # Where the input is no multiple of the largest stride, a coarse level covers a little more.
            merged = merged + level(feature)[..., :height, :width]
        return self.logits(merged).float()

    def losses(
        self, logits: Tensor, targets: Sequence[Targets], denominator: Denominator = at_least_one
    ) -> dict[str, Tensor]:
        """`loss_semantic`: weighted mean cross entropy over the labelled pixels of the network's input.

        Args:
            logits: [N, 1 + S, h, w].
            targets: per image; each has a semantic map.
            denominator: see `structures`.
        """
        logits = self._enlarged(logits)
        wanted = torch.full((len(logits), *logits.shape[-2:]), IGNORED, dtype=torch.int64, device=logits.device)
        for place, target in zip(wanted, targets, strict=True):
            assert target.semantic is not None
            height, width = target.semantic.shape
            place[:height, :width] = target.semantic
        loss = functional.cross_entropy(logits, wanted, ignore_index=IGNORED, reduction="sum")
        return {"loss_semantic": self.config.loss_weight * loss / denominator((wanted != IGNORED).sum())}

    @torch.no_grad()
    def classes(self, logits: Tensor, size: Size, original_size: Size) -> Tensor:
        """The likeliest class of each pixel of the picture: [H, W] uint8, 0 for things, from 1 on for stuff.

        Args:
            logits: [1 + S, h, w] of one image.
            size: (height, width) of the image within the network's input.
            original_size: (height, width) of the picture.
        """
        best, chosen = logits.new_full(original_size, -torch.inf), logits.new_zeros(original_size, dtype=torch.uint8)
        for first in range(0, len(logits), CLASSES_AT_ONCE):
            part = self._enlarged(logits[None, first : first + CLASSES_AT_ONCE])[..., : size[0], : size[1]]
            part = functional.interpolate(part, original_size, mode="bilinear", align_corners=False)[0]
            highest, place = part.max(0)
            better = highest > best
            best = torch.where(better, highest, best)
            chosen = torch.where(better, (place + first).to(torch.uint8), chosen)
        return chosen

    def _enlarged(self, logits: Tensor) -> Tensor:
        return functional.interpolate(logits, scale_factor=self.stride, mode="bilinear", align_corners=False)
