"""Panoptic FPN: "Panoptic Feature Pyramid Networks" (Kirillov et al., 2019)."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from mrcnn_cli.config import Config
from mrcnn_cli.models.backbones import BackboneConfig, build_backbone
from mrcnn_cli.models.box_head import BoxHeadConfig, build_box_head, check_stage
from mrcnn_cli.models.fpn import FPNConfig, build_neck
from mrcnn_cli.models.mask_head import MaskHead, MaskHeadConfig
from mrcnn_cli.models.preprocess import PixelsConfig, Preprocess
from mrcnn_cli.models.results import detections
from mrcnn_cli.models.rpn import RPN, AnchorsConfig, RPNConfig, check_levels
from mrcnn_cli.models.semantic_head import SemanticHead, SemanticHeadConfig
from mrcnn_cli.ops.run_lengths import run_lengths
from mrcnn_cli.structures import Denominator, Detections, ImageBatch, Segments, Targets, at_least_one

COCO_STUFF = 53  # classes of COCO's panoptic annotations that are no things


class MergingConfig(Config):
    """How objects and stuff share the pixels ("Panoptic Segmentation", Kirillov et al., 2019, section 7)."""

    score_threshold: float = Field(0.5, ge=0, le=1)  # objects below it take no pixels
    overlap_threshold: float = Field(0.5, ge=0, le=1)  # an object of which more is covered by better ones is left out
    min_stuff_area: int = Field(4096, ge=0)  # pixels of the picture; less of a class of stuff becomes void


class PanopticFPNConfig(Config):
    name: Literal["panoptic_fpn"]
    num_classes: int | None = Field(None, ge=1)  # of things; None: as many as the data has
    num_stuff: int | None = Field(None, ge=1, le=254)  # classes of stuff; None: as many as the data has, else COCO's
    pixels: PixelsConfig = PixelsConfig()
    backbone: BackboneConfig
    fpn: FPNConfig = FPNConfig()
    anchors: AnchorsConfig = AnchorsConfig()
    rpn: RPNConfig = RPNConfig()
    box_head: BoxHeadConfig = BoxHeadConfig()
    mask_head: MaskHeadConfig = MaskHeadConfig()
    semantic_head: SemanticHeadConfig = SemanticHeadConfig()
    merging: MergingConfig = MergingConfig()

    @model_validator(mode="after")
    def _parts_fit(self) -> "PanopticFPNConfig":
        check_levels(self.anchors, self.fpn)
        check_stage(self.box_head, self.backbone, self.fpn)
        if not self.fpn.pyramid:
            raise ValueError("the semantic head needs a pyramid: leave out fpn.pyramid = false")
        return self


class PanopticFPN(nn.Module):
    """Mask R-CNN on a pyramid, and a semantic branch on the same pyramid for what has no instances.

    Args:
        config: the parts' recipes.
        num_classes: K, classes of things.
    """

    def __init__(self, config: PanopticFPNConfig, num_classes: int):
        super().__init__()
        self.num_classes = num_classes
        self.merging = config.merging
        self.preprocess = Preprocess(config.pixels)
        backbone = build_backbone(config.backbone, len(config.pixels.mean))
        self.backbone = backbone
        self.fpn = build_neck(config.fpn, backbone.channels, backbone.strides)
        self.rpn = RPN(config.rpn, config.anchors, self.fpn.channels, self.fpn.strides)
        self.box_head = build_box_head(config.box_head, backbone, self.fpn, num_classes)
        self.mask_head = MaskHead(config.mask_head, self.box_head.channels, self.fpn.roi_strides, num_classes)
        num_stuff = COCO_STUFF if config.num_stuff is None else config.num_stuff
        self.semantic_head = SemanticHead(config.semantic_head, self.fpn.channels, self.fpn.roi_strides, num_stuff)

    def forward(
        self, images: ImageBatch, targets: Sequence[Targets], denominator: Denominator = at_least_one
    ) -> dict[str, Tensor]:
        """The losses of a batch, by name; their sum is what training makes small."""
        features = self.fpn(self.backbone(self.preprocess(images)))
        logits, deltas = self.rpn(features)
        proposals = self.rpn.proposals(logits, deltas, images.sizes)
        samples = self.box_head.sample(proposals, targets)
        class_logits, box_deltas = self.box_head(features, [s.boxes for s in samples])
        positives, labels = [s.positive_boxes for s in samples], [s.positive_labels for s in samples]
        mask_logits = self.mask_head(features, positives, labels, self.box_head.stage)
        return {
            **self.rpn.losses(logits, deltas, targets, denominator),
            **self.box_head.losses(class_logits, box_deltas, samples, targets, denominator),
            **self.mask_head.losses(mask_logits, samples, targets, denominator),
            **self.semantic_head.losses(self.semantic_head(features), targets, denominator),
        }

    def predict(self, images: ImageBatch) -> list[Detections]:
        """The objects of each image, in pixels of the original pictures, and the picture divided into segments."""
        features = self.fpn(self.backbone(self.preprocess(images)))
        logits, deltas = self.rpn(features)
        proposals = self.rpn.proposals(logits, deltas, images.sizes)
        class_logits, box_deltas = self.box_head(features, proposals)
        found = self.box_head.found(class_logits, box_deltas, proposals, images.sizes)
        masks = self.mask_head.found(features, found, self.box_head.stage)
        semantic = self.semantic_head(features)
        results = []
        for f, m, scores, size, original in zip(
            found, masks, semantic, images.sizes, images.original_sizes, strict=True
        ):
            objects = detections(f, size, original, m)
            classes = self.semantic_head.classes(scores, size, original)
            results.append(replace(objects, segments=merge(objects, classes, self.num_classes, self.merging)))
        return results


def merge(objects: Detections, classes: Tensor, num_classes: int, config: MergingConfig) -> Segments:
    """Every pixel given to one object or one class of stuff, or to none.

    Objects take their pixels best first, each what better ones have left; then each class of stuff takes what is left
    of its own.

    Args:
        objects: best first, with masks.
        classes: [H, W] uint8, 0 for things, from 1 on for stuff.
        num_classes: K, classes of things.
        config: thresholds.
    """
    assert objects.masks is not None
    ids = np.zeros(objects.size[0] * objects.size[1], np.int32)  # down the columns, the order of the masks' runs
    labels: list[int] = []
    scores: list[float] = []
    for score, label, mask in zip(objects.scores.tolist(), objects.labels.tolist(), objects.masks, strict=True):
        if score < config.score_threshold:
            break
        runs = run_lengths(mask)
        inside = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
        area, free = int(inside.sum()), inside & (ids == 0)
        if area == 0 or (area - int(free.sum())) / area > config.overlap_threshold:
            continue
        labels.append(label)
        scores.append(score)
        ids[free] = len(labels)
    stuff = np.where(ids == 0, classes.cpu().numpy().T.reshape(-1), 0)
    for number, area in enumerate(np.bincount(stuff, minlength=1).tolist()):
        if number > 0 and area > 0 and area >= config.min_stuff_area:
            labels.append(num_classes + number - 1)
            scores.append(1.0)
            ids[stuff == number] = len(labels)
    height, width = objects.size
    return Segments(
        torch.from_numpy(np.ascontiguousarray(ids.reshape(width, height).T)),
        torch.tensor(labels, dtype=torch.int64),
        torch.tensor(scores, dtype=torch.float32),
    )
