"""Models by name. One paper, one file; its configuration stands directly above its module."""

from typing import Annotated

from pydantic import Field
from torch import nn

from mrcnn_cli.models.cascade_rcnn import CascadeRCNN, CascadeRCNNConfig
from mrcnn_cli.models.fast_rcnn import FastRCNN, FastRCNNConfig
from mrcnn_cli.models.faster_rcnn import FasterRCNN, FasterRCNNConfig
from mrcnn_cli.models.keypoint_rcnn import KeypointRCNN, KeypointRCNNConfig
from mrcnn_cli.models.mask_rcnn import MaskRCNN, MaskRCNNConfig
from mrcnn_cli.models.panoptic_fpn import PanopticFPN, PanopticFPNConfig
from mrcnn_cli.models.proposal_network import ProposalNetwork, ProposalNetworkConfig
from mrcnn_cli.models.retinanet import RetinaNet, RetinaNetConfig
from mrcnn_cli.models.ssd import SSD, SSDConfig

MODELS = {
    "cascade_rcnn": CascadeRCNN,
    "fast_rcnn": FastRCNN,
    "faster_rcnn": FasterRCNN,
    "mask_rcnn": MaskRCNN,
    "keypoint_rcnn": KeypointRCNN,
    "panoptic_fpn": PanopticFPN,
    "proposal_network": ProposalNetwork,
    "retinanet": RetinaNet,
    "ssd": SSD,
}

ModelConfig = Annotated[
    CascadeRCNNConfig
    | FastRCNNConfig
    | FasterRCNNConfig
    | MaskRCNNConfig
    | KeypointRCNNConfig
    | PanopticFPNConfig
    | ProposalNetworkConfig
    | RetinaNetConfig
    | SSDConfig,
    Field(discriminator="name"),
]


def build_model(config: ModelConfig, num_classes: int) -> nn.Module:
    """The model that a recipe describes, with fresh weights.

    Args:
        config: the table [model].
        num_classes: K, without background.
    """
    return MODELS[config.name](config, num_classes)
