"""The mask branch: "Mask R-CNN" (He et al., 2017), figure 4, right."""

from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from mrcnn_cli.config import Config
from mrcnn_cli.models.box_head import Found, Sampled
from mrcnn_cli.models.convolution import ConvNorm, Norm
from mrcnn_cli.models.regions import RoIConfig, cut_regions
from mrcnn_cli.models.results import FoundMasks, Paste
from mrcnn_cli.ops import mask_targets
from mrcnn_cli.structures import Denominator, Masks, Targets, at_least_one


class MaskTargetConfig(Config):
    """How objects' run-length encoded masks are cut to a RoI; polygons are rasterised on its grid."""

    sampling_ratio: int = Field(0, ge=0)  # points per bin and axis; 0: as many as the bin has pixels
    aligned: bool = True  # torchvision's models cut their targets without the half-pixel shift ...
    threshold: float = Field(0.5, ge=0, lt=1)  # ... and without a threshold (0)


class MaskHeadConfig(Config):
    roi: RoIConfig = RoIConfig(resolution=14)
    num_conv: int = Field(4, ge=0)
    conv_channels: int = Field(256, ge=1)
    norm: Norm = "none"
    class_agnostic: bool = False  # one mask for all classes
    target: MaskTargetConfig = MaskTargetConfig()
    threshold: float = Field(0.5, gt=0, lt=1)  # a pixel belongs to a detection's mask from this probability on
    paste: Paste = "exact"


class MaskHead(nn.Module):
    """A small fully convolutional network on each region: convolutions, one transposed convolution, one mask per class.

    Args:
        config: layers and resolutions.
        channels: of the regions, after the stage where there is one.
        strides: of the feature maps that regions are cut from, finest first.
        num_classes: K, without background.
    """

    def __init__(self, config: MaskHeadConfig, channels: int, strides: Sequence[int], num_classes: int):
        super().__init__()
        self.config = config
        self.strides = tuple(strides)
        self.convs, inputs = nn.Sequential(), channels
        for _ in range(config.num_conv):
            self.convs.append(ConvNorm(inputs, config.conv_channels, 3, norm=config.norm, activation="relu"))
            inputs = config.conv_channels
        self.upsample = nn.ConvTranspose2d(inputs, config.conv_channels, 2, 2)
        self.logits = nn.Conv2d(config.conv_channels, 1 if config.class_agnostic else num_classes, 1)
        nn.init.kaiming_normal_(self.upsample.weight, mode="fan_out", nonlinearity="relu")
        nn.init.normal_(self.logits.weight, std=0.001)
        for layer in (self.upsample, self.logits):
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)

    def forward(
        self,
        features: Sequence[Tensor],
        boxes: Sequence[Tensor],
        labels: Sequence[Tensor],
        stage: nn.Module | None = None,
    ) -> Tensor:
        """Mask logits of each box for its class: [R, M, M], image after image; M is twice a region's resolution.

        Args:
            features: maps [N, C, H_l, W_l] at the strides given.
            boxes: per image [R_i, 4].
            labels: per image [R_i], the class whose mask is wanted.
            stage: what works on each region first, shared with the box head (the C4 form).
        """
        regions = cut_regions(features, boxes, self.strides, self.config.roi)
        if stage is not None:
            regions = stage(regions)
        logits = self.of_regions(regions)
        slot = torch.cat(list(labels))
        if self.config.class_agnostic:
            slot = torch.zeros_like(slot)
        return logits[torch.arange(len(slot), device=slot.device), slot]

    def of_regions(self, regions: Tensor) -> Tensor:
        """The logits of all classes [R, K or 1, M, M] of regions [R, C, M / 2, M / 2]."""
        return self.logits(functional.relu(self.upsample(self.convs(regions)), inplace=True)).float()

    def losses(
        self,
        logits: Tensor,
        samples: Sequence[Sampled],
        targets: Sequence[Targets],
        denominator: Denominator = at_least_one,
    ) -> dict[str, Tensor]:
        """`loss_mask`: mean binary cross entropy over the positives' grids; 0 without positives.

        Args:
            logits: [P, M, M] of the positives of all samples.
            samples: per image, as the box head drew them.
            targets: per image; each has masks.
            denominator: see `structures`.
        """
        wanted = torch.cat(
            [self._wanted(s, target, logits.shape[-1]) for s, target in zip(samples, targets, strict=True)]
        )
        loss = functional.binary_cross_entropy_with_logits(logits, wanted, reduction="sum")
        return {"loss_mask": loss / denominator(logits.numel())}

    def found(
        self, features: Sequence[Tensor], found: Sequence[Found], stage: nn.Module | None = None
    ) -> list[FoundMasks]:
        """The masks of what was found in each image, cut at the final boxes, not at the proposals.

        Args:
            features: as `forward` takes them, and so is `stage`.
            found: per image, as the box head gives it.
        """
        logits = self(features, [f.boxes for f in found], [f.labels for f in found], stage)
        parts = logits.sigmoid().split([len(f.boxes) for f in found])
        return [FoundMasks(part, self.config.threshold, self.config.paste) for part in parts]

    def _wanted(self, sampled: Sampled, target: Targets, size: int) -> Tensor:
        masks = target.masks if target.masks is not None else Masks([], torch.eye(2, 3, dtype=torch.float64))
        config = self.config.target
        return mask_targets(
            masks[sampled.objects].segmentations,
            sampled.positive_boxes,
            size,
            matrix=masks.matrix,
            sampling_ratio=config.sampling_ratio,
            aligned=config.aligned,
            threshold=config.threshold or None,
        )
