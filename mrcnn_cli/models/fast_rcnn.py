"""Fast R-CNN: "Fast R-CNN" (Girshick, 2015), on proposals that were found before, by whatever means."""

from collections.abc import Sequence
from typing import Literal

from pydantic import Field, model_validator
from torch import Tensor, nn

from mrcnn_cli.config import Config
from mrcnn_cli.models.backbones import BackboneConfig, build_backbone
from mrcnn_cli.models.box_head import BoxHeadConfig, build_box_head, check_stage
from mrcnn_cli.models.fpn import FPNConfig, build_neck
from mrcnn_cli.models.preprocess import PixelsConfig, Preprocess
from mrcnn_cli.models.results import detections
from mrcnn_cli.structures import Denominator, Detections, ImageBatch, Targets, at_least_one


class FastRCNNConfig(Config):
    name: Literal["fast_rcnn"]
    num_classes: int | None = Field(None, ge=1)  # None: as many as the data has
    pixels: PixelsConfig = PixelsConfig()
    backbone: BackboneConfig
    fpn: FPNConfig = FPNConfig()
    box_head: BoxHeadConfig = BoxHeadConfig()
    # So many of an image's proposals are used, best first; in training and otherwise.
    proposals_top_n_train: int = Field(2000, ge=1)
    proposals_top_n: int = Field(1000, ge=1)

    @model_validator(mode="after")
    def _parts_fit(self) -> "FastRCNNConfig":
        check_stage(self.box_head, self.backbone, self.fpn)
        return self


class FastRCNN(nn.Module):
    """Pixels and proposals -> backbone -> pyramid -> classes and boxes.

    Args:
        config: the parts' recipes.
        num_classes: K, without background.
    """

    def __init__(self, config: FastRCNNConfig, num_classes: int):
        super().__init__()
        self.config = config
        self.preprocess = Preprocess(config.pixels)
        backbone = build_backbone(config.backbone, len(config.pixels.mean))
        self.backbone = backbone
        self.fpn = build_neck(config.fpn, backbone.channels, backbone.strides)
        self.box_head = build_box_head(config.box_head, backbone, self.fpn, num_classes)

    def forward(
        self, images: ImageBatch, targets: Sequence[Targets], denominator: Denominator = at_least_one
    ) -> dict[str, Tensor]:
        """The losses of a batch, by name; their sum is what training makes small."""
        features = self.fpn(self.backbone(self.preprocess(images)))
        proposals = _best([target.proposals for target in targets], self.config.proposals_top_n_train)
        samples = self.box_head.sample(proposals, targets)
        class_logits, box_deltas = self.box_head(features, [s.boxes for s in samples])
        return self.box_head.losses(class_logits, box_deltas, samples, targets, denominator)

    def predict(self, images: ImageBatch) -> list[Detections]:
        """What is in each image, in pixels of the original pictures."""
        features = self.fpn(self.backbone(self.preprocess(images)))
        proposals = _best(images.proposals or [None] * len(images), self.config.proposals_top_n)
        class_logits, box_deltas = self.box_head(features, proposals)
        found = self.box_head.found(class_logits, box_deltas, proposals, images.sizes)
        return [
            detections(f, size, original)
            for f, size, original in zip(found, images.sizes, images.original_sizes, strict=True)
        ]


def _best(proposals: Sequence[Tensor | None], count: int) -> list[Tensor]:
    """The first `count` of each image's proposals."""
    given = [boxes[:count] for boxes in proposals if boxes is not None]
    if len(given) < len(proposals):
        raise ValueError("Fast R-CNN finds no proposals of its own: give them with the images or the targets")
    return given
