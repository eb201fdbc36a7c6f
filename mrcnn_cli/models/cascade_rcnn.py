"""Cascade R-CNN: "Cascade R-CNN: Delving into High Quality Object Detection" (Cai and Vasconcelos, 2018).

The mask branch learns from the first stage's samples, as in Detectron2, and is applied to the last stage's boxes.
"""

from collections.abc import Sequence
from typing import Any, Literal, cast

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from mrcnn_cli.config import Config
from mrcnn_cli.models.backbones import BackboneConfig, build_backbone
from mrcnn_cli.models.box_head import BoxHead, BoxHeadConfig
from mrcnn_cli.models.fpn import FPNConfig, build_neck
from mrcnn_cli.models.mask_head import MaskHead, MaskHeadConfig
from mrcnn_cli.models.preprocess import PixelsConfig, Preprocess
from mrcnn_cli.models.results import FoundMasks, detections
from mrcnn_cli.models.rpn import RPN, AnchorsConfig, RPNConfig, check_levels
from mrcnn_cli.ops import decode
from mrcnn_cli.ops.box_coding import clip_boxes
from mrcnn_cli.structures import Denominator, Detections, ImageBatch, Size, Targets, at_least_one


class StageConfig(Config):
    """What one stage has of its own; the rest is in box_head."""

    positive_iou: float = Field(gt=0, le=1)
    box_weights: tuple[float, float, float, float]


STAGES = (
    StageConfig(positive_iou=0.5, box_weights=(10.0, 10.0, 5.0, 5.0)),
    StageConfig(positive_iou=0.6, box_weights=(20.0, 20.0, 10.0, 10.0)),
    StageConfig(positive_iou=0.7, box_weights=(30.0, 30.0, 15.0, 15.0)),
)


class CascadeRCNNConfig(Config):
    name: Literal["cascade_rcnn"]
    num_classes: int | None = Field(None, ge=1)  # None: as many as the data has
    pixels: PixelsConfig = PixelsConfig()
    backbone: BackboneConfig
    fpn: FPNConfig = FPNConfig()
    anchors: AnchorsConfig = AnchorsConfig()
    rpn: RPNConfig = RPNConfig()
    box_head: BoxHeadConfig = BoxHeadConfig(class_agnostic=True)
    stages: tuple[StageConfig, ...] = Field(STAGES, min_length=1)
    mask_head: MaskHeadConfig | None = None  # none: boxes alone

    @model_validator(mode="after")
    def _parts_fit(self) -> "CascadeRCNNConfig":
        check_levels(self.anchors, self.fpn)
        if self.box_head.stage:
            raise ValueError("box_head.stage (the C4 form) has no cascade: one stage cannot be shared by several heads")
        if not self.box_head.class_agnostic:
            raise ValueError("box_head.class_agnostic must be true: the next stage refines one box of each region")
        for key in ("positive_iou", "box_weights"):
            if getattr(self.box_head, key) != getattr(BoxHeadConfig(), key):
                raise ValueError(f"box_head.{key} differs from stage to stage: give it in [[model.stages]]")
        return self


class CascadeRCNN(nn.Module):
    """Pixels -> backbone -> pyramid -> proposals -> classes and boxes -> better ones of these -> ... (-> masks).

    Args:
        config: the parts' recipes.
        num_classes: K, without background.
    """

    def __init__(self, config: CascadeRCNNConfig, num_classes: int):
        super().__init__()
        self.preprocess = Preprocess(config.pixels)
        backbone = build_backbone(config.backbone, len(config.pixels.mean))
        self.backbone = backbone
        self.fpn = build_neck(config.fpn, backbone.channels, backbone.strides)
        self.rpn = RPN(config.rpn, config.anchors, self.fpn.channels, self.fpn.strides)
        heads = [config.box_head.model_copy(update=dict(stage)) for stage in config.stages]
        stages = [BoxHead(head, self.fpn.channels, self.fpn.roi_strides, num_classes) for head in heads]
        self.box_heads = cast(Sequence[BoxHead], nn.ModuleList(stages))
        self.mask_head = None
        if config.mask_head is not None:
            self.mask_head = MaskHead(config.mask_head, self.fpn.channels, self.fpn.roi_strides, num_classes)

    def forward(
        self, images: ImageBatch, targets: Sequence[Targets], denominator: Denominator = at_least_one
    ) -> dict[str, Tensor]:
        """The losses of a batch, by name; their sum is what training makes small."""
        features = self.fpn(self.backbone(self.preprocess(images)))
        logits, deltas = self.rpn(features)
        losses = self.rpn.losses(logits, deltas, targets, denominator)
        proposals = self.rpn.proposals(logits, deltas, images.sizes)
        # The pyramid learns from the mean of the stages; each stage from its own loss whole.
        shared = [_ScaledGradient.apply(feature, 1 / len(self.box_heads)) for feature in features]
        first = samples = self.box_heads[0].sample(proposals, targets)
        for number, head in enumerate(self.box_heads):
            if number > 0:
                samples = head.relabel(proposals, targets)
            boxes = [s.boxes for s in samples]
            class_logits, box_deltas = head(shared, boxes)
            stage_losses = head.losses(class_logits, box_deltas, samples, targets, denominator)
            losses |= {f"{name}_stage{number}": loss for name, loss in stage_losses.items()}
            # Boxes that were refined to nothing are dropped: they could only be background.
            proposals = [b[(b[:, 2:] > b[:, :2]).all(1)] for b in refined(head, box_deltas, boxes, images.sizes)]
        if self.mask_head is not None:
            # Only the positives have a mask to learn: those of the first stage.
            positives, labels = [s.positive_boxes for s in first], [s.positive_labels for s in first]
            losses |= self.mask_head.losses(self.mask_head(features, positives, labels), first, targets, denominator)
        return losses

    def predict(self, images: ImageBatch) -> list[Detections]:
        """What is in each image, in pixels of the original pictures, with masks where the model has them."""
        features = self.fpn(self.backbone(self.preprocess(images)))
        logits, deltas = self.rpn(features)
        boxes = self.rpn.proposals(logits, deltas, images.sizes)
        scores = []
        for head in self.box_heads:
            class_logits, box_deltas = head(features, boxes)
            scores.append(functional.softmax(class_logits, -1)[:, :-1])
            boxes = refined(head, box_deltas, boxes, images.sizes)
        # Every stage has its say in the class, the last one alone in the box.
        found = self.box_heads[-1].best(
            torch.stack(scores).mean(0), torch.cat(boxes)[:, None], [len(b) for b in boxes], images.sizes
        )
        masks: Sequence[FoundMasks | None] = [None] * len(found)
        if self.mask_head is not None:
            masks = self.mask_head.found(features, found)
        return [
            detections(f, size, original, m)
            for f, size, original, m in zip(found, images.sizes, images.original_sizes, masks, strict=True)
        ]


@torch.no_grad()
def refined(head: BoxHead, deltas: Tensor, boxes: Sequence[Tensor], sizes: Sequence[Size]) -> list[Tensor]:
    """The boxes that a stage makes of its proposals, clipped to the images: per image [R_i, 4].

    Args:
        head: the stage.
        deltas: [R, 1, 4] that it gave, image after image.
        boxes: its proposals, per image [R_i, 4].
        sizes: (height, width) of each image.
    """
    decoded = decode(deltas[:, 0], torch.cat(list(boxes)), head.config.box_weights)
    return [clip_boxes(part, size) for part, size in zip(decoded.split([len(b) for b in boxes]), sizes, strict=True)]


class _ScaledGradient(torch.autograd.Function):
    """The tensor itself, whose gradient is multiplied by a factor."""

    @staticmethod
    def forward(context: Any, tensor: Tensor, factor: float) -> Tensor:
        context.factor = factor
        return tensor.view_as(tensor)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient * context.factor, None
