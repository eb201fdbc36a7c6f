"""Keypoint R-CNN: "Mask R-CNN" (He et al., 2017), section 5, with masks or without."""

from collections.abc import Sequence
from typing import Literal

from pydantic import Field, model_validator
from torch import Tensor, nn

from mrcnn_cli.config import Config
from mrcnn_cli.models.backbones import BackboneConfig, build_backbone
from mrcnn_cli.models.box_head import BoxHeadConfig, build_box_head, check_stage
from mrcnn_cli.models.fpn import FPNConfig, build_neck
from mrcnn_cli.models.keypoint_head import KeypointHead, KeypointHeadConfig, heatmap_keypoints
from mrcnn_cli.models.mask_head import MaskHead, MaskHeadConfig
from mrcnn_cli.models.preprocess import PixelsConfig, Preprocess
from mrcnn_cli.models.results import FoundMasks, detections
from mrcnn_cli.models.rpn import RPN, AnchorsConfig, RPNConfig, check_levels
from mrcnn_cli.structures import Denominator, Detections, ImageBatch, Targets, at_least_one

COCO_KEYPOINTS = 17  # of a person; where a recipe leaves the number open and there is no data to ask


class KeypointRCNNConfig(Config):
    name: Literal["keypoint_rcnn"]
    num_classes: int | None = Field(None, ge=1)  # None: as many as the data has
    num_keypoints: int | None = Field(None, ge=1)  # of an object; None: as many as the data has
    pixels: PixelsConfig = PixelsConfig()
    backbone: BackboneConfig
    fpn: FPNConfig = FPNConfig()
    anchors: AnchorsConfig = AnchorsConfig()
    rpn: RPNConfig = RPNConfig()
    box_head: BoxHeadConfig = BoxHeadConfig()
    keypoint_head: KeypointHeadConfig = KeypointHeadConfig()
    mask_head: MaskHeadConfig | None = None  # a table, even an empty one: masks too

    @model_validator(mode="after")
    def _parts_fit(self) -> "KeypointRCNNConfig":
        check_levels(self.anchors, self.fpn)
        check_stage(self.box_head, self.backbone, self.fpn)
        return self


class KeypointRCNN(nn.Module):
    """Pixels -> backbone -> pyramid -> proposals -> classes and boxes -> keypoints, and masks where they are wanted.

    Args:
        config: the parts' recipes.
        num_classes: K, without background.
    """

    def __init__(self, config: KeypointRCNNConfig, num_classes: int):
        super().__init__()
        self.preprocess = Preprocess(config.pixels)
        backbone = build_backbone(config.backbone, len(config.pixels.mean))
        self.backbone = backbone
        self.fpn = build_neck(config.fpn, backbone.channels, backbone.strides)
        self.rpn = RPN(config.rpn, config.anchors, self.fpn.channels, self.fpn.strides)
        self.box_head = build_box_head(config.box_head, backbone, self.fpn, num_classes)
        self.keypoint_head = KeypointHead(
            config.keypoint_head, self.fpn.channels, self.fpn.roi_strides, config.num_keypoints or COCO_KEYPOINTS
        )
        self.mask_head = None
        if config.mask_head is not None:
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
        keypoint_boxes, cells = self.keypoint_head.wanted(samples, targets)
        losses = {
            **self.rpn.losses(logits, deltas, targets, denominator),
            **self.box_head.losses(class_logits, box_deltas, samples, targets, denominator),
            **self.keypoint_head.losses(self.keypoint_head(features, keypoint_boxes), cells, denominator),
        }
        if self.mask_head is not None:
            positives, labels = [s.positive_boxes for s in samples], [s.positive_labels for s in samples]
            mask_logits = self.mask_head(features, positives, labels, self.box_head.stage)
            losses |= self.mask_head.losses(mask_logits, samples, targets, denominator)
        return losses

    def predict(self, images: ImageBatch) -> list[Detections]:
        """What is in each image, in pixels of the original pictures, with keypoints."""
        features = self.fpn(self.backbone(self.preprocess(images)))
        logits, deltas = self.rpn(features)
        proposals = self.rpn.proposals(logits, deltas, images.sizes)
        class_logits, box_deltas = self.box_head(features, proposals)
        found = self.box_head.found(class_logits, box_deltas, proposals, images.sizes)
        # Keypoints and masks are looked for in the final boxes, not in the proposals.
        heatmaps = self.keypoint_head(features, [f.boxes for f in found]).split([len(f.boxes) for f in found])
        masks: Sequence[FoundMasks | None] = [None] * len(found)
        if self.mask_head is not None:
            masks = self.mask_head.found(features, found, self.box_head.stage)
        rule = self.keypoint_head.config.score
        return [
            detections(f, size, original, m, heatmap_keypoints(maps, f.boxes, rule))
            for f, size, original, maps, m in zip(
                found, images.sizes, images.original_sizes, heatmaps, masks, strict=True
            )
        ]
