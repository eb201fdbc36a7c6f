"""RetinaNet: "Focal Loss for Dense Object Detection" (Lin et al., 2017)."""

import math
from collections.abc import Sequence
from typing import Literal, cast

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from mrcnn_cli.config import Config
from mrcnn_cli.models.backbones import BackboneConfig, build_backbone
from mrcnn_cli.models.box_head import Found
from mrcnn_cli.models.convolution import ConvNorm
from mrcnn_cli.models.fpn import FPNConfig, build_neck
from mrcnn_cli.models.preprocess import PixelsConfig, Preprocess
from mrcnn_cli.models.results import detections
from mrcnn_cli.models.rpn import AnchorsConfig, by_anchor, check_levels, level_anchors
from mrcnn_cli.ops import (
    batched_nms,
    clip_boxes,
    decode,
    encode,
    generalized_box_iou_loss,
    match_anchors,
    sigmoid_focal_loss_labels,
)
from mrcnn_cli.structures import Denominator, Detections, ImageBatch, Size, Targets, at_least_one


class RetinaPyramidConfig(FPNConfig):
    """P3 to P7: without the finest level, which would hold three quarters of all anchors."""

    skip: int = Field(1, ge=0)
    top: Literal["pool", "backbone_convs", "pyramid_convs", "none"] = "backbone_convs"


class RetinaAnchorsConfig(AnchorsConfig):
    """Three sizes per level, a third of an octave apart (section 4 of the paper)."""

    sizes: tuple[tuple[float, ...], ...] = tuple(
        tuple(size * 2 ** (step / 3) for step in range(3)) for size in (32, 64, 128, 256, 512)
    )


class RetinaHeadConfig(Config):
    num_conv: int = Field(4, ge=1)  # of each of the two branches
    norm: Literal["none", "group_norm"] = "none"
    prior: float = Field(0.01, gt=0, lt=1)  # what each class scores before training
    positive_iou: float = Field(0.5, gt=0, le=1)
    negative_iou: float = Field(0.4, ge=0, le=1)
    focal_alpha: float = Field(0.25, ge=0, le=1)
    focal_gamma: float = Field(2.0, ge=0)
    # What the losses are divided by: the positives of a batch, averaged over the steps (Detectron2), or those of each
    # image, and then by the number of images (torchvision).
    normalizer: Literal["average", "image"] = "average"
    box_loss: Literal["smooth_l1", "giou"] = "smooth_l1"
    smooth_l1_beta: float = Field(0.0, ge=0)  # 0 is plain L1
    box_weights: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0)
    score_threshold: float = Field(0.05, ge=0, lt=1)
    pre_nms_top_n: int = Field(1000, ge=1)  # of each level
    nms_threshold: float = Field(0.5, gt=0, le=1)
    clip_before_nms: bool = False  # boxes are cut to the image before they suppress each other, as in torchvision
    detections_per_image: int = Field(100, ge=1)

    @model_validator(mode="after")
    def _ordered(self) -> "RetinaHeadConfig":
        if self.negative_iou > self.positive_iou:
            raise ValueError("negative_iou must not exceed positive_iou")
        return self


class RetinaHead(nn.Module):
    """Classes and box of every anchor, by two branches that all levels share; from them losses and detections.

    Args:
        config: layers, thresholds and numbers.
        anchors: their sizes and ratios.
        channels: of the feature maps.
        strides: of the feature maps, finest first.
        num_classes: K; there is no background, of which all classes score low.
    """

    DECAY, START = 0.9, 100.0  # of the running average of positives, Detectron2's values

    loss_normalizer: Tensor

    def __init__(
        self, config: RetinaHeadConfig, anchors: AnchorsConfig, channels: int, strides: Sequence[int], num_classes: int
    ):
        super().__init__()
        self.config, self.anchors_config, self.num_classes = config, anchors, num_classes
        self.strides = tuple(strides)
        per_cell = len(anchors.sizes[0]) * len(anchors.ratios)
        self.class_convs, self.box_convs = (
            nn.Sequential(
                *(ConvNorm(channels, channels, 3, norm=config.norm, activation="relu") for _ in range(config.num_conv))
            )
            for _ in range(2)
        )
        self.logits = ConvNorm(channels, per_cell * num_classes, 3)
        self.deltas = ConvNorm(channels, per_cell * 4, 3)
        for conv in (*self.class_convs, *self.box_convs, self.logits, self.deltas):
            nn.init.normal_(conv.weight, std=0.01)
            if conv.bias is not None:
                nn.init.zeros_(conv.bias)
        # So that the many easy negatives do not swamp the first steps (section 3.3).
        nn.init.constant_(cast(Tensor, self.logits.bias), math.log(config.prior / (1 - config.prior)))
        if config.normalizer == "average":
            self.register_buffer("loss_normalizer", torch.tensor(self.START))

    def forward(self, features: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """What the network says of every anchor, by level.

        Args:
            features: maps [N, C, H_l, W_l] of all levels.

        Returns:
            logits [N, A * K, H_l, W_l] and deltas [N, A * 4, H_l, W_l], with A anchors per cell.
        """
        return (
            [self.logits(self.class_convs(feature)) for feature in features],
            [self.deltas(self.box_convs(feature)) for feature in features],
        )

    def losses(
        self,
        logits: Sequence[Tensor],
        deltas: Sequence[Tensor],
        targets: Sequence[Targets],
        denominator: Denominator = at_least_one,
    ) -> dict[str, Tensor]:
        """`loss_class`: focal loss of all anchors that are not ignored; `loss_box`: of the positives' boxes."""
        config = self.config
        anchors = torch.cat(level_anchors(self.anchors_config, logits, self.strides))
        class_sums, box_sums, counts = [], [], []
        all_logits, all_deltas = by_anchor(logits, self.num_classes), by_anchor(deltas, 4)
        for target, image_logits, image_deltas in zip(targets, all_logits.unbind(), all_deltas.unbind(), strict=True):
            matched = match_anchors(
                anchors, target.boxes, config.negative_iou, config.positive_iou, True, target.crowds
            )
            positive = (matched >= 0).nonzero()[:, 0]
            objects = matched[positive]
            labels = torch.where(matched == -1, self.num_classes, -1)
            labels[positive] = target.labels[objects]
            class_sums.append(
                sigmoid_focal_loss_labels(image_logits, labels, config.focal_alpha, config.focal_gamma, "sum")
            )
            box_sums.append(self._box_loss(image_deltas[positive], anchors[positive], target.boxes[objects]))
            counts.append(len(positive))
        divisors = self._divisors(counts, anchors.device, denominator)
        return {
            "loss_class": (torch.stack(class_sums) / divisors).sum(),
            "loss_box": (torch.stack(box_sums) / divisors).sum(),
        }

    def _box_loss(self, deltas: Tensor, anchors: Tensor, boxes: Tensor) -> Tensor:
        config = self.config
        if config.box_loss == "giou":
            return generalized_box_iou_loss(decode(deltas, anchors, config.box_weights), boxes, "sum")
        wanted = encode(boxes, anchors, config.box_weights)
        return functional.smooth_l1_loss(deltas, wanted, reduction="sum", beta=config.smooth_l1_beta)

    def _divisors(self, counts: Sequence[int], device: torch.device, denominator: Denominator) -> Tensor:
        """What each image's losses are divided by: [N]."""
        if self.config.normalizer == "image":
            return torch.tensor([max(count, 1) for count in counts], device=device) * denominator(len(counts))
        positives = denominator(sum(counts))
        if self.training:
            self.loss_normalizer.mul_(self.DECAY).add_(positives * (1 - self.DECAY))
        return self.loss_normalizer.expand(len(counts)).clone()  # kept for the backward pass, as it is now

    @torch.no_grad()
    def found(self, logits: Sequence[Tensor], deltas: Sequence[Tensor], sizes: Sequence[Size]) -> list[Found]:
        """The detections of each image: above the threshold, the best of each level decoded, after NMS per class."""
        config = self.config
        anchors = level_anchors(self.anchors_config, logits, self.strides)
        result = []
        for image, size in enumerate(sizes):
            parts = [
                self._candidates(level_logits[image], level_deltas[image], boxes)
                for level_logits, level_deltas, boxes in zip(logits, deltas, anchors, strict=True)
            ]
            boxes, scores, labels = (torch.cat(column) for column in zip(*parts, strict=True))
            if config.clip_before_nms:
                boxes = clip_boxes(boxes, size)
            keep = batched_nms(boxes, scores, labels, config.nms_threshold)[: config.detections_per_image]
            result.append(Found(boxes[keep], scores[keep], labels[keep]))
        return result

    def _candidates(self, logits: Tensor, deltas: Tensor, anchors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Boxes, scores and labels of the best pairs of an anchor and a class, from one level's maps of one image."""
        config = self.config
        flat = logits.permute(1, 2, 0).flatten().float()
        # Scores are compared as logits, so that only those which count need a sigmoid.
        threshold = torch.tensor(config.score_threshold, dtype=torch.float64).logit().item()
        pairs = (flat > threshold).nonzero()[:, 0]
        scores, best = flat[pairs].topk(min(config.pre_nms_top_n, len(pairs)))
        pairs = pairs[best]
        places = pairs // self.num_classes
        chosen = deltas.permute(1, 2, 0).reshape(-1, 4)[places].float()
        boxes = decode(chosen, anchors[places], config.box_weights)
        return boxes, scores.sigmoid(), pairs % self.num_classes


class RetinaNetConfig(Config):
    name: Literal["retinanet"]
    num_classes: int | None = Field(None, ge=1)  # None: as many as the data has
    pixels: PixelsConfig = PixelsConfig()
    backbone: BackboneConfig
    fpn: RetinaPyramidConfig = RetinaPyramidConfig()
    anchors: RetinaAnchorsConfig = RetinaAnchorsConfig()
    retina_head: RetinaHeadConfig = RetinaHeadConfig()

    @model_validator(mode="after")
    def _parts_fit(self) -> "RetinaNetConfig":
        check_levels(self.anchors, self.fpn, self.backbone.maps)
        return self


class RetinaNet(nn.Module):
    """Pixels -> backbone -> pyramid -> classes and boxes of all anchors, in one stage.

    Args:
        config: the parts' recipes.
        num_classes: K.
    """

    def __init__(self, config: RetinaNetConfig, num_classes: int):
        super().__init__()
        self.preprocess = Preprocess(config.pixels)
        self.backbone = build_backbone(config.backbone, len(config.pixels.mean))
        self.fpn = build_neck(config.fpn, self.backbone.channels, self.backbone.strides)
        self.retina_head = RetinaHead(
            config.retina_head, config.anchors, self.fpn.channels, self.fpn.strides, num_classes
        )

    def forward(
        self, images: ImageBatch, targets: Sequence[Targets], denominator: Denominator = at_least_one
    ) -> dict[str, Tensor]:
        """The losses of a batch, by name; their sum is what training makes small."""
        features = self.fpn(self.backbone(self.preprocess(images)))
        logits, deltas = self.retina_head(features)
        return self.retina_head.losses(logits, deltas, targets, denominator)

    def predict(self, images: ImageBatch) -> list[Detections]:
        """What is in each image, in pixels of the original pictures."""
        features = self.fpn(self.backbone(self.preprocess(images)))
        logits, deltas = self.retina_head(features)
        found = self.retina_head.found(logits, deltas, images.sizes)
        return [
            detections(f, size, original)
            for f, size, original in zip(found, images.sizes, images.original_sizes, strict=True)
        ]
