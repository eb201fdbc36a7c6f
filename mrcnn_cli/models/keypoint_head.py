"""The keypoint branch: "Mask R-CNN" (He et al., 2017), section 5."""

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from mrcnn_cli.config import Config
from mrcnn_cli.models.box_head import Sampled
from mrcnn_cli.models.convolution import ConvNorm, Norm
from mrcnn_cli.models.regions import RoIConfig, cut_regions
from mrcnn_cli.structures import Denominator, Targets, at_least_one

NOT_LEARNT = -1  # instead of a cell of the heatmap: a keypoint that is not labelled or lies outside of the region

# What is said of a keypoint beside its place: exp(logit) over the sum of the heatmap's (Detectron2), or the logit
# (torchvision).
KeypointScore = Literal["probability", "logit"]


class KeypointHeadConfig(Config):
    roi: RoIConfig = RoIConfig(resolution=14)
    num_conv: int = Field(8, ge=0)
    conv_channels: int = Field(512, ge=1)
    norm: Norm = "none"
    score: KeypointScore = "probability"


class KeypointHead(nn.Module):
    """A fully convolutional network on each region that points at one cell of a heatmap for each keypoint.

    Convolutions, a transposed convolution to one map per keypoint, and bilinear upsampling: the heatmap has four times
    a region's resolution. All classes share it.

    Args:
        config: layers and resolutions.
        channels: of the feature maps.
        strides: of the feature maps that regions are cut from, finest first.
        num_keypoints: P, of an object.
    """

    def __init__(self, config: KeypointHeadConfig, channels: int, strides: Sequence[int], num_keypoints: int):
        super().__init__()
        self.config = config
        self.strides = tuple(strides)
        self.convs, inputs = nn.Sequential(), channels
        for _ in range(config.num_conv):
            self.convs.append(ConvNorm(inputs, config.conv_channels, 3, norm=config.norm, activation="relu"))
            inputs = config.conv_channels
        self.logits = nn.ConvTranspose2d(inputs, num_keypoints, 4, 2, 1)
        nn.init.kaiming_normal_(self.logits.weight, mode="fan_out", nonlinearity="relu")
        assert self.logits.bias is not None
        nn.init.zeros_(self.logits.bias)

    def forward(self, features: Sequence[Tensor], boxes: Sequence[Tensor]) -> Tensor:
        """Heatmaps of logits of each box: [R, P, M, M], image after image; M is four times a region's resolution.

        Args:
            features: maps [N, C, H_l, W_l] at the strides given.
            boxes: per image [R_i, 4].
        """
        return self.of_regions(cut_regions(features, boxes, self.strides, self.config.roi))

    def of_regions(self, regions: Tensor) -> Tensor:
        """The same of regions [R, C, M / 4, M / 4] that are cut out already."""
        logits = self.logits(self.convs(regions)).float()
        size = 4 * self.config.roi.resolution
        return functional.interpolate(logits, (size, size), mode="bilinear", align_corners=False)

    @torch.no_grad()
    def wanted(self, samples: Sequence[Sampled], targets: Sequence[Targets]) -> tuple[list[Tensor], Tensor]:
        """The regions that have a keypoint to learn, and where on their heatmaps.

        Args:
            samples: per image, as the box head drew them.
            targets: per image; each has keypoints.

        Returns:
            Boxes per image [R_i, 4], and cells [R, P] as from `heatmap_cells`.
        """
        boxes, cells = [], []
        for sampled, target in zip(samples, targets, strict=True):
            assert target.keypoints is not None, "targets without keypoints"
            all_boxes = sampled.positive_boxes
            found = heatmap_cells(target.keypoints[sampled.objects], all_boxes, 4 * self.config.roi.resolution)
            learnt = (found != NOT_LEARNT).any(1)
            boxes.append(all_boxes[learnt])
            cells.append(found[learnt])
        return boxes, torch.cat(cells)

    def losses(self, logits: Tensor, cells: Tensor, denominator: Denominator = at_least_one) -> dict[str, Tensor]:
        """`loss_keypoint`: mean cross entropy over all cells of the heatmaps of the keypoints to learn; 0 without any.

        Args:
            logits: [R, P, M, M] of the regions that `wanted` gave.
            cells: [R, P] that it gave.
            denominator: see `structures`.
        """
        loss = functional.cross_entropy(
            logits.flatten(2).flatten(0, 1), cells.flatten(), ignore_index=NOT_LEARNT, reduction="sum"
        )
        return {"loss_keypoint": loss / denominator((cells != NOT_LEARNT).sum())}


def heatmap_cells(keypoints: Tensor, boxes: Tensor, size: int) -> Tensor:
    """The cell of a size x size grid over its box that each keypoint lies in, counted row by row: [R, P] int64.

    A keypoint on the right or lower edge belongs to the last cell; one that is not labelled (visibility 0) or outside
    of the box has none: NOT_LEARNT.

    Args:
        keypoints: [R, P, 3] x, y, visibility.
        boxes: [R, 4] in the same pixels.
        size: cells along each side.
    """
    corner, sides = boxes[:, None, :2], boxes[:, None, 2:] - boxes[:, None, :2]
    at = ((keypoints[..., :2] - corner) * (size / sides)).floor().long()
    at = torch.where(keypoints[..., :2] == boxes[:, None, 2:], size - 1, at)
    inside = ((at >= 0) & (at < size)).all(-1) & (keypoints[..., 2] > 0)
    return torch.where(inside, at[..., 1] * size + at[..., 0], NOT_LEARNT)


@torch.no_grad()
def heatmap_keypoints(logits: Tensor, boxes: Tensor, score: KeypointScore = "probability") -> Tensor:
    """Where each heatmap, enlarged to its box, is highest: [D, P, 3] x, y, score.

    Each map is resized bicubically to its box's size in whole pixels; the middle of the highest pixel is taken. With
    the score "probability" the sum goes over the cells of the map as it was, so that it does not depend on the size of
    the object.

    Args:
        logits: [D, P, M, M].
        boxes: [D, 4]; sides below one pixel count as one.
        score: see `KeypointScore`.
    """
    keypoints = logits.new_empty(*logits.shape[:2], 3)
    sides = (boxes[:, 2:] - boxes[:, :2]).clamp(min=1)
    pixels = sides.ceil()
    steps = sides / pixels
    for number, (width, height) in enumerate(pixels.long().tolist()):  # one by one: together they may fill the memory
        enlarged = functional.interpolate(
            logits[number : number + 1], (height, width), mode="bicubic", align_corners=False
        )
        highest, place = enlarged[0].flatten(1).max(1)
        at = torch.stack([place % width, place // width], 1)
        keypoints[number, :, :2] = (at + 0.5) * steps[number] + boxes[number, :2]
        if score == "probability":
            keypoints[number, :, 2] = 1 / (logits[number] - highest[:, None, None]).exp().sum((1, 2))
        else:
            keypoints[number, :, 2] = highest
    return keypoints
