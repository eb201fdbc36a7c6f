"""The operators again, as slow loops in float64 that anyone can check by eye: what the kernels must agree with.

`mrcnn gradcheck` and the tests compare with these. They take the arguments of the functions they mirror, but boxes of
RoIAlign always as [R, 5].
"""

from mrcnn_cli.ops.reference.box_coding import clip_boxes, decode, encode
from mrcnn_cli.ops.reference.box_iou import (
    box_coverage,
    box_iou,
    generalized_box_iou,
    generalized_box_iou_loss,
    paired_box_iou,
    paired_generalized_box_iou,
)
from mrcnn_cli.ops.reference.box_voting import box_voting
from mrcnn_cli.ops.reference.conv3x3 import conv3x3
from mrcnn_cli.ops.reference.deform_conv2d import deform_conv2d
from mrcnn_cli.ops.reference.grid_anchors import grid_anchors
from mrcnn_cli.ops.reference.mask_targets import mask_targets
from mrcnn_cli.ops.reference.match_anchors import match_anchors
from mrcnn_cli.ops.reference.nms import batched_nms, nms
from mrcnn_cli.ops.reference.paste_masks import paste_masks_dense
from mrcnn_cli.ops.reference.regions import ps_roi_align, ps_roi_pool, roi_pool
from mrcnn_cli.ops.reference.roi_align import multilevel_roi_align, roi_align
from mrcnn_cli.ops.reference.rpn_proposals import rpn_candidates, rpn_proposals
from mrcnn_cli.ops.reference.sigmoid_focal_loss import sigmoid_focal_loss, sigmoid_focal_loss_labels
from mrcnn_cli.ops.reference.soft_nms import soft_nms, soft_nms_scores

__all__ = [
    "batched_nms",
    "box_coverage",
    "box_iou",
    "box_voting",
    "clip_boxes",
    "conv3x3",
    "decode",
    "deform_conv2d",
    "encode",
    "generalized_box_iou",
    "generalized_box_iou_loss",
    "grid_anchors",
    "mask_targets",
    "match_anchors",
    "multilevel_roi_align",
    "nms",
    "paired_box_iou",
    "paired_generalized_box_iou",
    "paste_masks_dense",
    "ps_roi_align",
    "ps_roi_pool",
    "roi_align",
    "roi_pool",
    "rpn_candidates",
    "rpn_proposals",
    "sigmoid_focal_loss",
    "sigmoid_focal_loss_labels",
    "soft_nms",
    "soft_nms_scores",
]
