"""Mask R-CNN: "Mask R-CNN" (He et al., 2017)."""

from collections.abc import Sequence
from typing import Literal

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
from mrcnn_cli.structures import Denominator, Detections, ImageBatch, Targets, at_least_one


class MaskRCNNConfig(Config):
    name: Literal["mask_rcnn"]
    num_classes: int | None = Field(None, ge=1)  # None: as many as the data has
    pixels: PixelsConfig = PixelsConfig()
    backbone: BackboneConfig
    fpn: FPNConfig = FPNConfig()
    anchors: AnchorsConfig = AnchorsConfig()
    rpn: RPNConfig = RPNConfig()
    box_head: BoxHeadConfig = BoxHeadConfig()
    mask_head: MaskHeadConfig = MaskHeadConfig()

    @model_validator(mode="after")
    def _parts_fit(self) -> "MaskRCNNConfig":
        check_levels(self.anchors, self.fpn, self.backbone.maps)
        check_stage(self.box_head, self.backbone, self.fpn)
        return self


class MaskRCNN(nn.Module):
    """Pixels -> backbone -> pyramid -> proposals -> classes and boxes -> masks.

    Args:
        config: the parts' recipes.
        num_classes: K, without background.
    """

    def __init__(self, config: MaskRCNNConfig, num_classes: int):
        super().__init__()
        self.preprocess = Preprocess(config.pixels)
        backbone = build_backbone(config.backbone, len(config.pixels.mean))
        self.backbone = backbone
        self.fpn = build_neck(config.fpn, backbone.channels, backbone.strides)
        self.rpn = RPN(config.rpn, config.anchors, self.fpn.channels, self.fpn.strides)
        self.box_head = build_box_head(config.box_head, backbone, self.fpn, num_classes)
        self.mask_head = MaskHead(config.mask_head, self.box_head.channels, self.fpn.roi_strides, num_classes)

    def forward(
        self, images: ImageBatch, targets: Sequence[Targets], denominator: Denominator = at_least_one
    ) -> dict[str, Tensor]:
        """The losses of a batch, by name; their sum is what training makes small."""
        features = self.fpn(self.backbone(self.preprocess(images)))
        logits, deltas = self.rpn(features)
        proposals = self.rpn.proposals(logits, deltas, images.sizes)
        samples = self.box_head.sample(proposals, targets)
        class_logits, box_deltas = self.box_head(features, [s.boxes for s in samples])
        # Only the positives have a mask to learn.
        positives, labels = [s.positive_boxes for s in samples], [s.positive_labels for s in samples]
        mask_logits = self.mask_head(features, positives, labels, self.box_head.stage)
        return {
            **self.rpn.losses(logits, deltas, targets, denominator),
            **self.box_head.losses(class_logits, box_deltas, samples, targets, denominator),
            **self.mask_head.losses(mask_logits, samples, targets, denominator),
        }

    def predict(self, images: ImageBatch) -> list[Detections]:
        """What is in each image, in pixels of the original pictures, with masks."""
        features = self.fpn(self.backbone(self.preprocess(images)))
        logits, deltas = self.rpn(features)
        proposals = self.rpn.proposals(logits, deltas, images.sizes)
        class_logits, box_deltas = self.box_head(features, proposals)
        found = self.box_head.found(class_logits, box_deltas, proposals, images.sizes)
        masks = self.mask_head.found(features, found, self.box_head.stage)
        return [
            detections(f, size, original, m)
            for f, size, original, m in zip(found, images.sizes, images.original_sizes, masks, strict=True)
        ]
