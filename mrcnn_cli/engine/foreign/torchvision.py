"""torchvision: its names and its conventions. Detectors and, to start training from, classifiers' backbones."""

from typing import Any

from mrcnn_cli.engine.foreign.categories import coco_keypoints, coco_slots, numbered
from mrcnn_cli.engine.foreign.layouts import (
    background_last,
    boxes_without_background,
    retinanet_classes,
    size_by_size,
    ssd_classes,
    without_background,
)
from mrcnn_cli.engine.foreign.names import Table

NAME = "torchvision"

CLASSIFIER = "of the ImageNet classifier"
SSD_BOXES = (4, 6, 6, 6, 4, 4)  # at each cell, by map

_RESNET = (
    ("conv1.{*}", "stem.{*}"),
    ("bn1.{*}", "stem.norm.{*}"),
    ("layer{stage+1}.{block}.conv{index}.{*}", "stages.{stage}.{block}.conv{index}.{*}"),
    ("layer{stage+1}.{block}.bn{index}.{*}", "stages.{stage}.{block}.conv{index}.norm.{*}"),
    ("layer{stage+1}.{block}.downsample.0.{*}", "stages.{stage}.{block}.shortcut.{*}"),
    ("layer{stage+1}.{block}.downsample.1.{*}", "stages.{stage}.{block}.shortcut.norm.{*}"),
)

# Within a block stand the convolutions that there are, each beside its norm: 0 and 1. Block 1 does not expand.
_MOBILENET = (
    ("{layer}.0.{*}", "{layer}.{*}"),
    ("{layer}.1.{*}", "{layer}.norm.{*}"),
    ("1.conv.0.0.{*}", "1.depthwise.{*}"),
    ("1.conv.0.1.{*}", "1.depthwise.norm.{*}"),
    ("1.conv.1.{*}", "1.project.{*}"),
    ("1.conv.2.{*}", "1.project.norm.{*}"),
    ("{layer}.conv.0.0.{*}", "{layer}.expand.{*}"),
    ("{layer}.conv.0.1.{*}", "{layer}.expand.norm.{*}"),
    ("{layer}.conv.1.0.{*}", "{layer}.depthwise.{*}"),
    ("{layer}.conv.1.1.{*}", "{layer}.depthwise.norm.{*}"),
    ("{layer}.conv.2.{*}", "{layer}.project.{*}"),
    ("{layer}.conv.3.{*}", "{layer}.project.norm.{*}"),
    # version 3
    ("1.block.0.0.{*}", "1.depthwise.{*}"),
    ("1.block.0.1.{*}", "1.depthwise.norm.{*}"),
    ("1.block.1.0.{*}", "1.project.{*}"),
    ("1.block.1.1.{*}", "1.project.norm.{*}"),
    ("{layer}.block.0.0.{*}", "{layer}.expand.{*}"),
    ("{layer}.block.0.1.{*}", "{layer}.expand.norm.{*}"),
    ("{layer}.block.1.0.{*}", "{layer}.depthwise.{*}"),
    ("{layer}.block.1.1.{*}", "{layer}.depthwise.norm.{*}"),
    ("{layer}.block.2.fc1.{*}", "{layer}.squeeze.fc1.{*}"),
    ("{layer}.block.2.fc2.{*}", "{layer}.squeeze.fc2.{*}"),
    ("{layer}.block.{place}.0.{*}", "{layer}.project.{*}"),  # 2 without a squeeze, 3 with one
    ("{layer}.block.{place}.1.{*}", "{layer}.project.norm.{*}"),
)
# The place of VGG's convolutions among its layers, which count activations and pooling too.
_VGG = {
    place: f"backbone.stages.{stage}.{index}"
    for stage, places in enumerate(((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28)))
    for index, place in enumerate(places)
}

# Convolutions stand beside their norms in a Sequential: 0 and 1. Before version 0.14 there were no such pairs.
NAMES: Table = (
    *((f"backbone.body.{theirs}", f"backbone.{ours}") for theirs, ours in _RESNET),
    *((theirs, f"backbone.{ours}") for theirs, ours in _RESNET),
    *((f"features.{place}.{{part}}", f"{ours}.{{part}}") for place, ours in _VGG.items()),
    *((f"backbone.features.{place}.{{part}}", f"{ours}.{{part}}") for place, ours in _VGG.items()),
    ("features.18.{*}", None, CLASSIFIER),  # MobileNetV2's last convolution; its pyramids take the one before
    *((f"features.{theirs}", f"backbone.layers.{ours}") for theirs, ours in _MOBILENET),
    *((f"backbone.body.{theirs}", f"backbone.layers.{ours}") for theirs, ours in _MOBILENET),
    ("fc.{*}", None, CLASSIFIER),
    ("classifier.{*}", None, CLASSIFIER),
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
    # RetinaNet; before version 0.14 without pairs of a convolution and its norm
    ("head.classification_head.conv.{index}.0.{*}", "retina_head.class_convs.{index}.{*}"),
    ("head.classification_head.conv.{index}.1.{*}", "retina_head.class_convs.{index}.norm.{*}"),
    ("head.regression_head.conv.{index}.0.{*}", "retina_head.box_convs.{index}.{*}"),
    ("head.regression_head.conv.{index}.1.{*}", "retina_head.box_convs.{index}.norm.{*}"),
    *(
        (f"head.{theirs}.conv.{2 * index}.{{part}}", f"retina_head.{ours}.{index}.{{part}}")
        for theirs, ours in (("classification_head", "class_convs"), ("regression_head", "box_convs"))
        for index in range(4)
    ),
    ("head.classification_head.cls_logits.{*}", "retina_head.logits.{*}", retinanet_classes),
    ("head.regression_head.bbox_reg.{*}", "retina_head.deltas.{*}", size_by_size(4)),
    # SSD
    ("backbone.scale_weight", "maps.scale"),
    *((f"backbone.extra.0.{2 * index + 1}.{{part}}", f"backbone.stages.4.{index}.{{part}}") for index in range(3)),
    ("backbone.extra.0.7.1.{*}", "maps.fc6.{*}"),
    ("backbone.extra.0.7.3.{*}", "maps.fc7.{*}"),
    ("backbone.extra.{index+1}.{*}", "maps.extras.{index}.{*}"),
    *(
        (f"head.classification_head.module_list.{index}.{{*}}", f"ssd_head.logits.{index}.{{*}}", ssd_classes(boxes))
        for index, boxes in enumerate(SSD_BOXES)
    ),
    ("head.regression_head.module_list.{index}.{*}", "ssd_head.deltas.{index}.{*}"),
)

# The keys of a recipe that its detectors take for granted; those of heads count where a model has the head.
CONVENTIONS: dict[str, Any] = {
    "model.pixels.channels": "rgb",
    "model.pixels.mean": [123.675, 116.28, 103.53],
    "model.pixels.deviation": [58.395, 57.12, 57.375],
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
    "model.retina_head.normalizer": "image",
    "model.retina_head.clip_before_nms": True,
    "model.retina_head.detections_per_image": 300,
    "data.resize.method": "torchvision",
    "data.size_divisor": 32,
}


def special_conventions(model: dict[str, Any]) -> dict[str, Any]:
    """What depends on the architecture."""
    backbone = model["backbone"]
    if model["name"] == "ssd":
        return {
            "model.pixels.mean": [122.99925, 116.9991, 103.9992],
            "model.pixels.deviation": [1.0, 1.0, 1.0],
            "model.backbone.round_up": True,
            "model.backbone.frozen_stages": 1,
            "data.resize.fixed": [300, 300],
            "data.size_divisor": 300,
        }
    special: dict[str, Any] = {"model.anchors.rounded": True, "model.anchors.strides": "divided"}
    if backbone["name"].startswith("resnet"):
        special |= {"model.backbone.stride_in_1x1": False, "model.backbone.frozen_stages": 2}
        # Frozen batch norms add nothing to the variance. That holds for the published weights (COCO_V1) and what was
        # trained from them. A model that was trained from an ImageNet backbone added 1e-5, which no tensor tells.
        if backbone["norm"] == "frozen_batch_norm":
            special["model.backbone.norm_eps"] = 0.0
    else:
        special["model.backbone.frozen_layers"] = 7
    if model["name"] == "retinanet":
        sizes = [[int(size * 2 ** (step / 3)) for step in range(3)] for size in (32, 64, 128, 256, 512)]
        special["model.anchors.sizes"] = sizes
        if model["retina_head"]["norm"] == "group_norm":  # its second version
            special["model.retina_head.box_loss"] = "giou"
    if model["name"] == "keypoint_rcnn":  # keypoints lie where COCO's files say; their scores are logits
        special |= {"data.keypoints.offset": 0.0, "predict.keypoint_threshold": 0.0} | coco_keypoints(model)
    return special


def categories(count: int, model: str) -> list[dict[str, Any]]:
    """label -> {"id", "name"} for so many classes of a model of that name; ids begin with 1, as its labels."""
    if model == "keypoint_rcnn" and count == 1:
        return coco_slots()[:1]  # persons
    return coco_slots() if count == 90 else numbered(count)
