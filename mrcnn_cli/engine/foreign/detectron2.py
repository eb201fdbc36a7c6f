"""Detectron2: its names and its conventions."""

from mrcnn_cli.engine.foreign.names import Table

NAME = "Detectron2"

COMPUTED = "is computed anew"
CLASSIFIER = "of the ImageNet classifier"

# Backbones stand below `backbone.bottom_up` where there is a pyramid, directly below `backbone` in C4 and DC5 models,
# and on top of the file where it holds a backbone alone.
_RESNET: Table = (
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
    # the pyramid
    ("backbone.fpn_lateral{level+2}.{*}", "fpn.laterals.{level}.{*}"),
    ("backbone.fpn_output{level+2}.{*}", "fpn.outputs.{level}.{*}"),
    ("backbone.top_block.p{level+6}.{*}", "fpn.tops.{level}.{*}"),
    # the region proposal network
    ("proposal_generator.rpn_head.conv.conv{index+0}.{*}", "rpn.convs.{index}.{*}"),  # MODEL.RPN.CONV_DIMS of several
    ("proposal_generator.rpn_head.conv.{*}", "rpn.convs.0.{*}"),
    ("proposal_generator.rpn_head.objectness_logits.{*}", "rpn.logits.{*}"),
    ("proposal_generator.rpn_head.anchor_deltas.{*}", "rpn.deltas.{*}"),
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
    # buffers of older versions
    ("pixel_mean", None, COMPUTED),
    ("pixel_std", None, COMPUTED),
    ("{part}.anchor_generator.cell_anchors.{*}", None, COMPUTED),
    ("anchor_generator.cell_anchors.{*}", None, COMPUTED),
)
