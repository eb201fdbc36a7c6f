"""torchvision: its names and its conventions. Detectors and, to start training from, classifiers' backbones."""

from typing import Any

from mrcnn_cli.engine.foreign.categories import coco_keypoints, coco_slots, numbered
from mrcnn_cli.engine.foreign.layouts import (
    background_last,
    boxes_without_background,
    size_by_size,
    without_background,
)
from mrcnn_cli.engine.foreign.names import Table

NAME = "torchvision"

_RESNET = (
    ("conv1.{*}", "stem.{*}"),
    ("bn1.{*}", "stem.norm.{*}"),
    ("layer{stage+1}.{block}.conv{index}.{*}", "stages.{stage}.{block}.conv{index}.{*}"),
    ("layer{stage+1}.{block}.bn{index}.{*}", "stages.{stage}.{block}.conv{index}.norm.{*}"),
    ("layer{stage+1}.{block}.downsample.0.{*}", "stages.{stage}.{block}.shortcut.{*}"),
    ("layer{stage+1}.{block}.downsample.1.{*}", "stages.{stage}.{block}.shortcut.norm.{*}"),
)

# Convolutions stand beside their norms in a Sequential: 0 and 1. Before version 0.14 there were no such pairs.
NAMES: Table = (
    *((f"backbone.body.{theirs}", f"backbone.{ours}") for theirs, ours in _RESNET),
    *((theirs, f"backbone.{ours}") for theirs, ours in _RESNET),
    ("fc.{*}", None, "of the ImageNet classifier"),
    # the pyramid
    ("backbone.fpn.inner_blocks.{level}.0.{*}", "fpn.laterals.{level}.{*}"),
    ("backbone.fpn.inner_blocks.{level}.1.{*}", "fpn.laterals.{level}.norm.{*}"),
    ("backbone.fpn.inner_blocks.{level}.{part}", "fpn.laterals.{level}.{part}"),
    ("backbone.fpn.layer_blocks.{level}.0.{*}", "fpn.outputs.{level}.{*}"),
    ("backbone.fpn.layer_blocks.{level}.1.{*}", "fpn.outputs.{level}.norm.{*}"),
    ("backbone.fpn.layer_blocks.{level}.{part}", "fpn.outputs.{level}.{part}"),
    ("backbone.fpn.extra_blocks.p{level+6}.{*}", "fpn.tops.{level}.{*}"),
    # the region proposal network
    ("rpn.head.conv.{index}.0.{*}", "rpn.convs.{index}.{*}"),
    ("rpn.head.conv.{part}", "rpn.convs.0.{part}"),
    ("rpn.head.cls_logits.{*}", "rpn.logits.{*}", size_by_size()),
    ("rpn.head.bbox_pred.{*}", "rpn.deltas.{*}", size_by_size(4)),
    # boxes
    ("roi_heads.box_head.fc{index+6}.{*}", "box_head.fcs.{index}.{*}"),
    ("roi_heads.box_head.{index}.0.{*}", "box_head.convs.{index}.{*}"),
    ("roi_heads.box_head.{index}.1.{*}", "box_head.convs.{index}.norm.{*}"),
    ("roi_heads.box_head.{index+5}.{part}", "box_head.fcs.{index}.{part}"),  # after four convolutions and a flattening
    ("roi_heads.box_predictor.cls_score.{*}", "box_head.logits.{*}", background_last),
    ("roi_heads.box_predictor.bbox_pred.{*}", "box_head.deltas.{*}", boxes_without_background),
    # masks
    ("roi_heads.mask_head.{index}.0.{*}", "mask_head.convs.{index}.{*}"),
    ("roi_heads.mask_head.{index}.1.{*}", "mask_head.convs.{index}.norm.{*}"),
    ("roi_heads.mask_head.mask_fcn{index+1}.{*}", "mask_head.convs.{index}.{*}"),
    ("roi_heads.mask_predictor.conv5_mask.{*}", "mask_head.upsample.{*}"),
    ("roi_heads.mask_predictor.mask_fcn_logits.{*}", "mask_head.logits.{*}", without_background),
    # keypoints; every second layer is an activation
    *((f"roi_heads.keypoint_head.{2 * index}.{{*}}", f"keypoint_head.convs.{index}.{{*}}") for index in range(8)),
    ("roi_heads.keypoint_predictor.kps_score_lowres.{*}", "keypoint_head.logits.{*}"),
)

# The keys of a recipe that its detectors take for granted; those of heads count where a model has the head.
CONVENTIONS: dict[str, Any] = {
    "model.pixels.channels": "rgb",
    "model.pixels.mean": [123.675, 116.28, 103.53],
    "model.pixels.deviation": [58.395, 57.12, 57.375],
    "model.backbone.stride_in_1x1": False,
    "model.backbone.frozen_stages": 2,
    "model.anchors.rounded": True,
    "model.anchors.strides": "divided",
    "model.rpn.loss_denominator": "sampled",
    "model.rpn.smooth_l1_beta": 1 / 9,
    "model.rpn.min_size": 1e-3,
    "model.box_head.roi.sampling_ratio": 2,
    "model.box_head.roi.aligned": False,
    "model.box_head.smooth_l1_beta": 1 / 9,
    "model.box_head.min_size": 0.01,
    "model.mask_head.roi.sampling_ratio": 2,
    "model.mask_head.roi.aligned": False,
    "model.mask_head.target.aligned": False,
    "model.mask_head.target.threshold": 0.0,
    "model.mask_head.paste": "whole_pixels",
    "model.keypoint_head.roi.sampling_ratio": 2,
    "model.keypoint_head.roi.aligned": False,
    "model.keypoint_head.score": "logit",
    "data.resize.method": "torchvision",
    "data.size_divisor": 32,
}


def special_conventions(model: dict[str, Any]) -> dict[str, Any]:
    """What depends on the architecture. Frozen batch norms add nothing to the variance.

    That holds for the published weights (COCO_V1) and what was trained from them. A model that was trained from an
    ImageNet backbone added 1e-5, which no tensor tells.
    """
    special: dict[str, Any] = {}
    if model["backbone"]["norm"] == "frozen_batch_norm":
        special["model.backbone.norm_eps"] = 0.0
    if model["name"] == "keypoint_rcnn":  # keypoints lie where COCO's files say; their scores are logits
        special |= {"data.keypoints.offset": 0.0, "predict.keypoint_threshold": 0.0} | coco_keypoints(model)
    return special


def categories(count: int, model: str) -> list[dict[str, Any]]:
    """label -> {"id", "name"} for so many classes of a model of that name; ids begin with 1, as its labels."""
    if model == "keypoint_rcnn" and count == 1:
        return coco_slots()[:1]  # persons
    return coco_slots() if count == 90 else numbered(count)
