"""Region proposal network: "Faster R-CNN" (Ren et al., 2015), section 3.1, on pyramids as in FPN (Lin et al., 2017)."""

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from mrcnn_cli.config import Config
from mrcnn_cli.models.convolution import ConvNorm, Norm
from mrcnn_cli.models.fpn import FPNConfig
from mrcnn_cli.models.matching import RPN_STREAM, generator, sample
from mrcnn_cli.ops import encode, grid_anchors, match_anchors, rpn_proposals
from mrcnn_cli.structures import Denominator, Size, Targets, at_least_one


class AnchorsConfig(Config):
    sizes: tuple[tuple[float, ...], ...] = ((32,), (64,), (128,), (256,), (512,))  # pixels, per level, finest first
    ratios: tuple[float, ...] = (0.5, 1.0, 2.0)  # height / width
    rounded: bool = False  # corners of the base anchors rounded to whole pixels, as torchvision does
    offset: float = 0.0  # of the first centre, in strides
    # From cell to cell: the level's stride, or the padded image's size divided by the number of cells and rounded down,
    # as in torchvision; they differ where a level has rounded its size up.
    strides: Literal["nominal", "divided"] = "nominal"

    @model_validator(mode="after")
    def _usable(self) -> "AnchorsConfig":
        if len({len(level) for level in self.sizes}) != 1 or not self.sizes[0] or not self.ratios:
            raise ValueError("sizes must have the same number of entries (at least one) for every level, ratios one")
        if min(min(level) for level in self.sizes) <= 0 or min(self.ratios) <= 0:
            raise ValueError("sizes and ratios must be positive")
        return self


def check_levels(anchors: AnchorsConfig, fpn: FPNConfig, maps: int = 4) -> None:
    """ValueError unless there are anchor sizes for every level of the pyramid on so many maps of the backbone."""
    if fpn.pyramid and fpn.skip >= maps:
        raise ValueError(f"fpn.skip = {fpn.skip} leaves none of the backbone's {maps} maps: lower it")
    if len(anchors.sizes) != fpn.levels(maps):
        raise ValueError(
            f"anchors.sizes has {len(anchors.sizes)} levels, fpn has {fpn.levels(maps)}: one list per level"
        )


class RPNConfig(Config):
    num_conv: int = Field(1, ge=1)
    norm: Norm = "none"
    positive_iou: float = Field(0.7, gt=0, le=1)
    negative_iou: float = Field(0.3, ge=0, le=1)
    samples_per_image: int = Field(256, ge=1)
    positive_fraction: float = Field(0.5, gt=0, le=1)
    # What the losses of the sampled anchors are divided by: their number (torchvision), or samples_per_image for
    # every image, sampled or not (Detectron2).
    loss_denominator: Literal["sampled", "samples_per_image"] = "sampled"
    smooth_l1_beta: float = Field(1 / 9, ge=0)  # 0 is the plain L1 of Detectron2
    box_weights: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0)
    # Best anchors by score per level, then those left by NMS over all levels; in training and otherwise.
    pre_nms_top_n_train: int = Field(2000, ge=1)
    pre_nms_top_n: int = Field(1000, ge=1)
    post_nms_top_n_train: int = Field(2000, ge=1)
    post_nms_top_n: int = Field(1000, ge=1)
    nms_threshold: float = Field(0.7, gt=0, le=1)
    min_size: float = Field(1e-3, ge=0)  # pixels; sides of a proposal are longer than that
    score_threshold: float = Field(0.0, ge=0, lt=1)  # proposals below it are dropped

    @model_validator(mode="after")
    def _ordered(self) -> "RPNConfig":
        if self.negative_iou > self.positive_iou:
            raise ValueError("negative_iou must not exceed positive_iou")
        return self


class RPN(nn.Module):
    """Objectness and box deltas for every anchor; from them losses and proposals.

    Args:
        config: thresholds and numbers.
        anchors: their sizes and ratios.
        channels: of the feature maps.
        strides: of the feature maps, finest first.
    """

    def __init__(self, config: RPNConfig, anchors: AnchorsConfig, channels: int, strides: Sequence[int]):
        super().__init__()
        self.config, self.anchors_config, self.strides = config, anchors, tuple(strides)
        per_cell = len(anchors.sizes[0]) * len(anchors.ratios)
        self.convs = nn.Sequential(
            *(ConvNorm(channels, channels, 3, norm=config.norm, activation="relu") for _ in range(config.num_conv))
        )
        self.logits = nn.Conv2d(channels, per_cell, 1)
        self.deltas = nn.Conv2d(channels, 4 * per_cell, 1)
        for conv in (*self.convs, self.logits, self.deltas):
            nn.init.normal_(conv.weight, std=0.01)
            if conv.bias is not None:
                nn.init.zeros_(conv.bias)

    def forward(self, features: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """What the network says of every anchor, by level.

        Args:
            features: maps [N, C, H_l, W_l] of all levels.

        Returns:
            logits [N, A, H_l, W_l] and deltas [N, 4 * A, H_l, W_l], with A anchors per cell.
        """
        hidden = [self.convs(feature) for feature in features]
        return [self.logits(x) for x in hidden], [self.deltas(x) for x in hidden]

    def losses(
        self,
        logits: Sequence[Tensor],
        deltas: Sequence[Tensor],
        targets: Sequence[Targets],
        denominator: Denominator = at_least_one,
    ) -> dict[str, Tensor]:
        """`loss_rpn_objectness`: binary cross entropy; `loss_rpn_box`: smooth L1 of the positives' deltas."""
        config = self.config
        all_logits, all_deltas = by_anchor(logits, 1)[..., 0], by_anchor(deltas, 4)
        all_anchors = torch.cat(level_anchors(self.anchors_config, logits, self.strides))
        chosen_logits, chosen_deltas, truths, wanted = [], [], [], []
        for i, target in enumerate(targets):
            matched = match_anchors(
                all_anchors, target.boxes, config.negative_iou, config.positive_iou, True, target.crowds
            )
            random = generator(target, RPN_STREAM)
            positives, negatives = sample(matched, config.samples_per_image, config.positive_fraction, random)
            chosen = torch.cat([positives, negatives])
            chosen_logits.append(all_logits[i, chosen])
            truths.append((torch.arange(len(chosen), device=chosen.device) < len(positives)).float())
            chosen_deltas.append(all_deltas[i, positives])
            wanted.append(encode(target.boxes[matched[positives]], all_anchors[positives], config.box_weights))
        truth = torch.cat(truths)
        count = len(truth) if config.loss_denominator == "sampled" else config.samples_per_image * len(targets)
        samples = denominator(count)
        objectness = functional.binary_cross_entropy_with_logits(torch.cat(chosen_logits), truth, reduction="sum")
        box = functional.smooth_l1_loss(
            torch.cat(chosen_deltas), torch.cat(wanted), reduction="sum", beta=config.smooth_l1_beta
        )
        return {"loss_rpn_objectness": objectness / samples, "loss_rpn_box": box / samples}

    def proposals(self, logits: Sequence[Tensor], deltas: Sequence[Tensor], sizes: Sequence[Size]) -> list[Tensor]:
        """The best boxes of each image, best first: [P_i, 4], clipped to the image, at most post_nms_top_n."""
        return self.ranked(logits, deltas, sizes)[0]

    def ranked(
        self, logits: Sequence[Tensor], deltas: Sequence[Tensor], sizes: Sequence[Size]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """The proposals of each image and their logits [P_i]."""
        config, anchors = self.config, self.anchors_config
        boxes, scores = rpn_proposals(
            logits,
            deltas,
            sizes,
            anchors.sizes,
            anchors.ratios,
            anchor_strides(anchors, logits, self.strides),
            pre_nms_top_n=config.pre_nms_top_n_train if self.training else config.pre_nms_top_n,
            post_nms_top_n=config.post_nms_top_n_train if self.training else config.post_nms_top_n,
            nms_threshold=config.nms_threshold,
            min_size=config.min_size,
            weights=config.box_weights,
            rounded=anchors.rounded,
            offset=anchors.offset,
        )
        if config.score_threshold > 0:
            keep = [s.sigmoid() >= config.score_threshold for s in scores]
            boxes = [b[k] for b, k in zip(boxes, keep, strict=True)]
            scores = [s[k] for s, k in zip(scores, keep, strict=True)]
        return boxes, scores


def anchor_strides(config: AnchorsConfig, maps: Sequence[Tensor], strides: Sequence[int]) -> list[tuple[int, int]]:
    """(vertical, horizontal) pixels from anchor to anchor of each level.

    Args:
        config: says how they are found.
        maps: of the levels [N, .., H_l, W_l], finest first; the picture is padded to a multiple of its stride.
        strides: of the levels.
    """
    if config.strides == "nominal":
        return [(stride, stride) for stride in strides]
    height, width = (int(side) * strides[0] for side in maps[0].shape[-2:])
    return [(height // int(map.shape[-2]), width // int(map.shape[-1])) for map in maps]


def level_anchors(config: AnchorsConfig, maps: Sequence[Tensor], strides: Sequence[int]) -> list[Tensor]:
    """The anchors of each level [A_l, 4], in the order y, x, size, ratio.

    Args:
        config: their sizes and ratios.
        maps: of the levels [N, .., H_l, W_l], finest first.
        strides: of the levels.
    """
    return [
        grid_anchors(
            sizes,
            config.ratios,
            (int(map.shape[-2]), int(map.shape[-1])),
            stride,
            rounded=config.rounded,
            offset=config.offset,
            device=map.device,
        )
        for sizes, map, stride in zip(config.sizes, maps, anchor_strides(config, maps, strides), strict=True)
    ]


def by_anchor(maps: Sequence[Tensor], values: int) -> Tensor:
    """Maps [N, A * values, H_l, W_l] of all levels as [N, all anchors, values] float32, in the order of the anchors."""
    return torch.cat([map.permute(0, 2, 3, 1).reshape(len(map), -1, values).float() for map in maps], 1)
