"""A region proposal network with nothing behind it: "Faster R-CNN" (Ren et al., 2015), section 3.1."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from mrcnn_cli.config import Config
from mrcnn_cli.models.backbones import BackboneConfig, build_backbone
from mrcnn_cli.models.box_head import Found
from mrcnn_cli.models.fpn import FPNConfig, build_neck
from mrcnn_cli.models.preprocess import PixelsConfig, Preprocess
from mrcnn_cli.models.results import detections
from mrcnn_cli.models.rpn import RPN, AnchorsConfig, RPNConfig, check_levels
from mrcnn_cli.structures import Denominator, Detections, ImageBatch, Targets, at_least_one


class ProposalNetworkConfig(Config):
    name: Literal["proposal_network"]
    num_classes: int | None = Field(None, ge=1, le=1)  # objects are all of one class
    pixels: PixelsConfig = PixelsConfig()
    backbone: BackboneConfig
    fpn: FPNConfig = FPNConfig()
    anchors: AnchorsConfig = AnchorsConfig()
    rpn: RPNConfig = RPNConfig()

    @model_validator(mode="after")
    def _parts_fit(self) -> "ProposalNetworkConfig":
        check_levels(self.anchors, self.fpn)
        return self


class ProposalNetwork(nn.Module):
    """Pixels -> backbone -> pyramid -> proposals.

    Args:
        config: the parts' recipes.
        num_classes: of no use here, the same for all models.
    """

    def __init__(self, config: ProposalNetworkConfig, num_classes: int):
        super().__init__()
        self.preprocess = Preprocess(config.pixels)
        backbone = build_backbone(config.backbone, len(config.pixels.mean))
        self.backbone = backbone
        self.fpn = build_neck(config.fpn, backbone.channels, backbone.strides)
        self.rpn = RPN(config.rpn, config.anchors, self.fpn.channels, self.fpn.strides)

    def forward(
        self, images: ImageBatch, targets: Sequence[Targets], denominator: Denominator = at_least_one
    ) -> dict[str, Tensor]:
        """The losses of a batch, by name; their sum is what training makes small."""
        logits, deltas = self.rpn(self.fpn(self.backbone(self.preprocess(images))))
        return self.rpn.losses(logits, deltas, targets, denominator)

    def predict(self, images: ImageBatch) -> list[Detections]:
        """The proposals of each image, see `propose`."""
        return propose(self, images)


def propose(model: Any, images: ImageBatch) -> list[Detections]:
    """The proposals of any model with a region proposal network, in pixels of the original pictures.

    Args:
        model: with the parts `preprocess`, `backbone`, `fpn` and `rpn`.
        images: a batch.

    Returns:
        Per image at most rpn.post_nms_top_n boxes, best first, of the one class 0; scores are the probabilities that
        there is an object.
    """
    logits, deltas = model.rpn(model.fpn(model.backbone(model.preprocess(images))))
    boxes, scores = model.rpn.ranked(logits, deltas, images.sizes)
    return [
        detections(Found(b, s.sigmoid(), torch.zeros_like(s, dtype=torch.int64)), size, original)
        for b, s, size, original in zip(boxes, scores, images.sizes, images.original_sizes, strict=True)
    ]
