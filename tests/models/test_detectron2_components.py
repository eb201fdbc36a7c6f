"""Single components against Detectron2's recorded inputs and outputs."""

import math

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask

from mrcnn_cli.data.transforms import Resize
from mrcnn_cli.models.box_head import Found
from mrcnn_cli.models.convolution import FrozenBatchNorm, scale_and_shift
from mrcnn_cli.models.results import detections
from mrcnn_cli.ops import (
    batched_nms,
    box_iou,
    clip_boxes,
    decode,
    deform_conv2d,
    encode,
    generalized_box_iou_loss,
    grid_anchors,
    mask_targets,
    multilevel_roi_align,
    paste_masks,
    roi_align,
    sigmoid_focal_loss,
)
from tests.models.detectron2_oracle import components, fill, target

WEIGHTS = {"w1": (1, 1, 1, 1), "w10": (10, 10, 5, 5), "w20": (20, 20, 10, 10), "w30": (30, 30, 15, 15)}
RATIOS = (0.5, 1.0, 2.0)
OCTAVE = tuple(2 ** (third / 3) for third in range(3))
ANCHORS = {  # sizes per level, offset
    "fpn": ([[32], [64], [128], [256], [512]], 0.0),
    "c4": ([[32, 64, 128, 256, 512]], 0.0),
    "retinanet": ([[side * factor for factor in OCTAVE] for side in (32, 64, 128, 256, 512)], 0.0),
    "fpn_offset05": ([[32], [64], [128], [256], [512]], 0.5),
}


def given(key):
    return torch.from_numpy(components()[key])


def equal(found, key, tolerance=1e-5):
    torch.testing.assert_close(found, given(key), rtol=tolerance, atol=tolerance)


def bits(key, count):
    """The first `count` packed bits, as booleans."""
    return torch.from_numpy(np.unpackbits(components()[key])[:count].astype(bool))


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("ratio", [0, 2])
def test_roi_align_and_its_gradient(aligned, ratio):
    features, key = given("roi_align/feat").requires_grad_(), f"roi_align/aligned{int(aligned)}_sr{ratio}"
    out = roi_align(features, given("roi_align/rois"), (7, 7), 0.25, ratio, aligned)
    equal(out, f"{key}/out")
    out.sum().backward()
    equal(features.grad, f"{key}/grad_of_sum", 1e-4)


def test_boxes_are_pooled_from_their_levels():
    maps = [
        torch.from_numpy(fill()._normals(f"component/pooler/p{level}", (1, 4, side, side), "").astype(np.float32))
        for level, side in zip(range(2, 6), (128, 64, 32, 16), strict=True)
    ]
    scales = [1 / 4, 1 / 8, 1 / 16, 1 / 32]
    equal(multilevel_roi_align(maps, [given("pooler/boxes")], 7, scales, 0, True), "pooler/out")


@pytest.mark.parametrize(("key", "first"), [("levels/p2_p5", 2), ("levels/p3_p5", 3)])
def test_levels_of_boxes(key, first):
    """Each level's map holds its own number, so that the pooled value tells where a box came from."""
    levels = range(first, 6)
    maps = [torch.full((1, 1, 2048 >> level, 2048 >> level), float(level)) for level in levels]
    boxes = given("levels/boxes")
    found = multilevel_roi_align(maps, [boxes], 1, [2.0**-level for level in levels], 1, True)[:, 0, 0, 0]
    inside = ((boxes[:, :2] >= 0) & (boxes[:, 2:] <= 2016) & (boxes[:, 2:] >= boxes[:, :2])).all(1)
    assert inside.sum() > 100
    expected = given(key) + (first if int(given(key).max()) <= 5 - first else 0)
    assert torch.equal(found[inside].round().long(), expected[inside])


@pytest.mark.parametrize("name", WEIGHTS)
def test_box_coding(name):
    weights = WEIGHTS[name]
    equal(encode(given("b2b/target"), given("b2b/src"), weights), f"b2b/{name}/encode")
    deltas = given("b2b/deltas").unflatten(1, (2, 4))
    found = decode(deltas, given("b2b/src")[:, None], weights, float(components()["b2b/scale_clamp"]))
    torch.testing.assert_close(found.flatten(1), given(f"b2b/{name}/decode"), rtol=1e-6, atol=1e-3)
    assert math.isclose(float(components()["b2b/scale_clamp"]), math.log(1000 / 16))


@pytest.mark.parametrize("name", ANCHORS)
def test_anchors(name):
    sizes, offset = ANCHORS[name]
    grids, strides = components()[f"anchors/{name}/grid_hw"], components()[f"anchors/{name}/strides"]
    levels = [
        grid_anchors(level, RATIOS, tuple(grid.tolist()), int(stride), offset=offset)
        for level, grid, stride in zip(sizes, grids, strides, strict=True)
    ]
    assert [len(level) for level in levels] == components()[f"anchors/{name}/counts"].tolist()
    anchors = torch.cat(levels)
    equal(anchors[:30], f"anchors/{name}/first30")
    equal(anchors[-30:], f"anchors/{name}/last30")
    rows = torch.from_numpy(fill().sample_indices(len(anchors)))
    equal(anchors[rows], f"anchors/{name}/rows200")
    np.testing.assert_allclose(anchors.double().sum(0), components()[f"anchors/{name}/sum"], rtol=1e-6, atol=0.5)


def test_overlap_clipping_and_suppression():
    boxes = given("iou/boxes")
    equal(box_iou(boxes, boxes), "iou/matrix")
    equal(clip_boxes(given("clip/in"), (80, 100)), "clip/out_hw80_100")
    for threshold in (0.3, 0.5, 0.7):
        keep = batched_nms(given("nms/boxes"), given("nms/scores"), given("nms/classes"), threshold)
        assert torch.equal(keep, given(f"nms/keep_{threshold}"))


def test_pasted_masks():
    size = tuple(components()["paste/image_hw"].tolist())
    found = paste_masks(given("paste/masks"), given("paste/boxes"), size, 0.5)
    masks = torch.from_numpy(coco_mask.decode(found)).permute(2, 0, 1).bool()
    expected = bits("paste/packed", masks.numel()).view(masks.shape)
    assert (masks != expected).sum((1, 2)).max() <= 2


def test_polygons_and_bitmaps_cut_to_regions():
    boxes, instance = given("rasterize/boxes"), components()["rasterize/instance"].tolist()
    polygons = target().masks.segmentations
    shape = (len(boxes), 28, 28)
    found = mask_targets([polygons[i] for i in instance], boxes, 28)
    assert (found.bool() != bits("rasterize/polygon_28", math.prod(shape)).view(shape)).sum((1, 2)).max() <= 2
    height, width = components()["rasterize/bitmask_hw"].tolist()
    whole = bits("rasterize/bitmask_full_packed", 3 * height * width).view(3, height, width)
    runs = [coco_mask.encode(np.asfortranarray(mask.numpy().astype(np.uint8))) for mask in whole]
    for size in (28, 14):
        found = mask_targets([runs[i] for i in instance], boxes, size, sampling_ratio=0, aligned=True, threshold=0.5)
        expected = bits(f"rasterize/bitmask_crop_{size}", len(boxes) * size * size).view(len(boxes), size, size)
        assert (found.bool() != expected).sum((1, 2)).max() <= 2


def test_focal_loss():
    logits, truth = given("focal/logits").requires_grad_(), given("focal/targets")
    loss = sigmoid_focal_loss(logits, truth, 0.25, 2.0)
    equal(loss, "focal/loss_a025_g2")
    loss.sum().backward()
    equal(logits.grad, "focal/grad_of_sum")
    equal(sigmoid_focal_loss(logits, truth, -1, 0), "focal/loss_aneg1_g0")


def test_generalized_iou_loss():
    boxes = given("giou/pred").requires_grad_()
    loss = generalized_box_iou_loss(boxes, given("giou/target"))
    equal(loss, "giou/loss")
    loss.sum().backward()
    equal(boxes.grad, "giou/grad_of_sum")


@pytest.mark.parametrize("beta", [0.0, 1 / 9, 0.5, 1.0])
def test_smooth_l1(beta):
    difference = given("smooth_l1/diff")
    loss = torch.nn.functional.smooth_l1_loss(difference, torch.zeros_like(difference), reduction="none", beta=beta)
    equal(loss, f"smooth_l1/beta{beta:.4f}")


def test_sizes_of_resized_pictures():
    for height, width, short, long, out_height, out_width in components()["resize/h_w_short_max_outh_outw"].tolist():
        assert Resize(short_side=short, long_side=long).size(height, width) == (out_height, out_width)


def test_deformable_convolution():
    x, weight, offset = given("dcn/x"), given("dcn/weight"), given("dcn/offset")
    equal(deform_conv2d(x, offset, weight, None, 1, 1, 1), "dcn/v1_out")
    strided = offset[:, :, ::2, ::2]
    equal(deform_conv2d(x, strided, weight, None, 2, 1, 1), "dcn/v1_stride2_out")


def test_frozen_batch_norm():
    norm = FrozenBatchNorm(4)
    norm.load_state_dict({key: given(f"fbn/{key}") for key in ("weight", "bias", "running_mean", "running_var")})
    scale, shift = scale_and_shift(norm)
    equal(given("fbn/x") * scale[:, None, None] + shift[:, None, None], "fbn/out_nograd")


def test_boxes_are_scaled_to_the_picture_and_empty_ones_left_out():
    boxes = given("postprocess/in_boxes_h100_w200")
    scores = torch.linspace(0.9, 0.6, len(boxes))
    found = detections(Found(boxes, scores, torch.zeros(len(boxes), dtype=torch.long)), (100, 200), (333, 777))
    equal(found.boxes, "postprocess/out_boxes_h333_w777")
