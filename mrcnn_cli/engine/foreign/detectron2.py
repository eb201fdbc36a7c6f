"""Detectron2: its names and its conventions."""

from typing import Any

from mrcnn_cli.engine.foreign.categories import coco_categories, coco_keypoints, numbered
from mrcnn_cli.engine.foreign.names import Table

NAME = "Detectron2"

COMPUTED = "is computed anew"
CLASSIFIER = "of the ImageNet classifier"

# Backbones stand below `backbone.bottom_up` where there is a pyramid, directly below `backbone` in C4 and DC5 models,
# and on top of the file where it holds a backbone alone.
_RESNET = (
    ("stem.conv1.{*}", "stem.{*}"),
    ("res{stage+2}.{block}.conv2_offset.{*}", "stages.{stage}.{block}.conv2.offset.{*}"),
    ("res{stage+2}.{block}.{*}", "stages.{stage}.{block}.{*}"),
)

NAMES: Table = (
    *((f"backbone.bottom_up.{theirs}", f"backbone.{ours}") for theirs, ours in _RESNET),
    *((f"backbone.{theirs}", f"backbone.{ours}") for theirs, ours in _RESNET),
    *((theirs, f"backbone.{ours}") for theirs, ours in _RESNET),
    ("linear.{*}", None, CLASSIFIER),
    ("fc1000.{*}", None, CLASSIFIER),
    # the pyramid, which begins with level 2, or 3 in RetinaNet
    ("backbone.fpn_lateral{level+first}.{*}", "fpn.laterals.{level}.{*}"),
    ("backbone.fpn_output{level+first}.{*}", "fpn.outputs.{level}.{*}"),
    ("backbone.top_block.p{level+6}.{*}", "fpn.tops.{level}.{*}"),
    # the region proposal network
    ("proposal_generator.rpn_head.conv.conv{index+0}.{*}", "rpn.convs.{index}.{*}"),  # MODEL.RPN.CONV_DIMS of several
    ("proposal_generator.rpn_head.conv.{*}", "rpn.convs.0.{*}"),
    ("proposal_generator.rpn_head.objectness_logits.{*}", "rpn.logits.{*}"),
    ("proposal_generator.rpn_head.anchor_deltas.{*}", "rpn.deltas.{*}"),
    # boxes of a cascade
    ("roi_heads.box_head.{stage+0}.conv{index+1}.{*}", "box_heads.{stage}.convs.{index}.{*}"),
    ("roi_heads.box_head.{stage+0}.fc{index+1}.{*}", "box_heads.{stage}.fcs.{index}.{*}"),
    ("roi_heads.box_predictor.{stage+0}.cls_score.{*}", "box_heads.{stage}.logits.{*}"),
    ("roi_heads.box_predictor.{stage+0}.bbox_pred.{*}", "box_heads.{stage}.deltas.{*}"),
    # boxes
    ("roi_heads.box_head.conv{index+1}.{*}", "box_head.convs.{index}.{*}"),
    ("roi_heads.box_head.fc{index+1}.{*}", "box_head.fcs.{index}.{*}"),
    ("roi_heads.box_predictor.cls_score.{*}", "box_head.logits.{*}"),
    ("roi_heads.box_predictor.bbox_pred.{*}", "box_head.deltas.{*}"),
    ("roi_heads.res5.{*}", "box_head.stage.{*}"),  # C4
    # masks
    ("roi_heads.mask_head.mask_fcn{index+1}.{*}", "mask_head.convs.{index}.{*}"),
    ("roi_heads.mask_head.deconv.{*}", "mask_head.upsample.{*}"),
    ("roi_heads.mask_head.predictor.{*}", "mask_head.logits.{*}"),
    # keypoints
    ("roi_heads.keypoint_head.conv_fcn{index+1}.{*}", "keypoint_head.convs.{index}.{*}"),
    ("roi_heads.keypoint_head.score_lowres.{*}", "keypoint_head.logits.{*}"),
    # stuff; between the convolutions of a level its map is enlarged, which counts as a layer on both sides
    ("sem_seg_head.p{level+2}.{layer}.{*}", "semantic_head.levels.{level}.{layer}.{*}"),
    ("sem_seg_head.predictor.{*}", "semantic_head.logits.{*}"),
    # RetinaNet; between two convolutions stands an activation
    *((f"head.cls_subnet.{2 * i}.{{*}}", f"retina_head.class_convs.{i}.{{*}}") for i in range(8)),
    *((f"head.bbox_subnet.{2 * i}.{{*}}", f"retina_head.box_convs.{i}.{{*}}") for i in range(8)),
    ("head.cls_score.{*}", "retina_head.logits.{*}"),
    ("head.bbox_pred.{*}", "retina_head.deltas.{*}"),
    # buffers of older versions
    ("pixel_mean", None, COMPUTED),
    ("pixel_std", None, COMPUTED),
    ("{part}.anchor_generator.cell_anchors.{*}", None, COMPUTED),
    ("anchor_generator.cell_anchors.{*}", None, COMPUTED),
)

# The keys of a recipe that its zoo takes for granted; those of heads count where a model has the head.
CONVENTIONS: dict[str, Any] = {
    "model.pixels.channels": "bgr",
    "model.pixels.mean": [103.53, 116.28, 123.675],
    "model.pixels.deviation": [1.0, 1.0, 1.0],
    "model.backbone.frozen_stages": 2,
    "model.rpn.loss_denominator": "samples_per_image",
    "model.rpn.smooth_l1_beta": 0.0,
    "model.rpn.post_nms_top_n_train": 1000,
    "model.rpn.min_size": 0.0,
    "model.box_head.roi.sampling_ratio": 0,
    "model.box_head.smooth_l1_beta": 0.0,
    "model.mask_head.roi.sampling_ratio": 0,
    "model.keypoint_head.roi.sampling_ratio": 0,
    "data.resize.method": "pillow",
    "data.size_divisor": 32,
}


def special_conventions(model: dict[str, Any]) -> dict[str, Any]:
    """What depends on the architecture."""
    backbone, special = model["backbone"], {}
    # The ImageNet weights of MSRA stride in the first convolution of a bottleneck; those of FAIR's ResNeXt and of the
    # models with group norm in the second, and ResNeXt-101's alone saw pixels divided by their deviation.
    special["model.backbone.stride_in_1x1"] = backbone["groups"] == 1 and backbone["norm"] != "group_norm"
    if backbone["groups"] > 1 and backbone["name"] != "resnet152":
        special["model.pixels.deviation"] = [57.375, 57.12, 58.395]
    if not model["fpn"]["pyramid"]:  # C4 and DC5
        special |= {
            "model.rpn.pre_nms_top_n_train": 12000,
            "model.rpn.pre_nms_top_n": 6000,
            "model.rpn.post_nms_top_n_train": 2000,
            "data.size_divisor": 0,
        }
    if model["name"] == "keypoint_rcnn":
        special |= {"model.rpn.post_nms_top_n_train": 1500, "model.box_head.smooth_l1_beta": 0.5}
        special |= coco_keypoints(model)
    if model["name"] == "cascade_rcnn":
        special["model.rpn.post_nms_top_n_train"] = 2000
    if model["name"] == "proposal_network":
        special["model.rpn.post_nms_top_n"] = 2000
        if not model["fpn"]["pyramid"]:
            special["model.rpn.pre_nms_top_n"] = 12000
    return special


def categories(count: int, model: str) -> list[dict[str, Any]]:
    """label -> {"id", "name"} for so many classes of a model of that name."""
    if model == "proposal_network":
        return [{"id": 1, "name": "object"}]
    if model == "keypoint_rcnn" and count == 1:
        return coco_categories()[:1]  # persons
    return coco_categories() if count == 80 else numbered(count)
