"""Operators of the R-CNN family: the compiled kernels' public face, and what is quick enough in plain PyTorch.

Names, argument order and defaults are torchvision.ops' where that has the function, so an import can be swapped.
"""

from pathlib import Path

import torch

from mrcnn_cli.errors import UserError


def _load_library() -> None:
    path = Path(__file__).resolve().parent.parent / "_ops.so"
    if not path.exists():
        raise UserError(
            f"{path} does not exist: the kernels are not built; run `pip install --no-build-isolation -e .` "
            "in the checkout, or install the package"
        )
    try:
        torch.ops.load_library(path)
    except OSError as error:
        raise UserError(
            f"{path} does not load in PyTorch {torch.__version__} (it needs 2.11 or newer): {error}; build it again "
            "with `pip install --no-build-isolation -e .`"
        ) from error


_load_library()

# ruff: noqa: E402 - the modules below register Python rules for operators that the library has just defined.
from mrcnn_cli.ops.box_coding import clip_boxes, decode, encode
from mrcnn_cli.ops.box_iou import (
    box_coverage,
    box_iou,
    generalized_box_iou,
    generalized_box_iou_loss,
    paired_box_iou,
    paired_generalized_box_iou,
)
from mrcnn_cli.ops.box_voting import box_voting
from mrcnn_cli.ops.conv3x3 import conv3x3
from mrcnn_cli.ops.deform_conv2d import deform_conv2d
from mrcnn_cli.ops.grid_anchors import grid_anchors
from mrcnn_cli.ops.mask_targets import mask_targets
from mrcnn_cli.ops.match_anchors import match_anchors
from mrcnn_cli.ops.nms import batched_nms, nms, nms_sorted
from mrcnn_cli.ops.paste_masks import paste_masks, paste_masks_dense
from mrcnn_cli.ops.ps_roi_align import ps_roi_align
from mrcnn_cli.ops.ps_roi_pool import ps_roi_pool
from mrcnn_cli.ops.roi_align import multilevel_roi_align, roi_align
from mrcnn_cli.ops.roi_pool import roi_pool
from mrcnn_cli.ops.rpn_proposals import rpn_candidates, rpn_proposals, rpn_proposals_padded
from mrcnn_cli.ops.sigmoid_focal_loss import sigmoid_focal_loss, sigmoid_focal_loss_labels
from mrcnn_cli.ops.soft_nms import soft_nms, soft_nms_scores

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
    "nms_sorted",
    "paired_box_iou",
    "paired_generalized_box_iou",
    "paste_masks",
    "paste_masks_dense",
    "ps_roi_align",
    "ps_roi_pool",
    "roi_align",
    "roi_pool",
    "rpn_candidates",
    "rpn_proposals",
    "rpn_proposals_padded",
    "sigmoid_focal_loss",
    "sigmoid_focal_loss_labels",
    "soft_nms",
    "soft_nms_scores",
]
