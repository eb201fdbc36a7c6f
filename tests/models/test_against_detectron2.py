"""Our models give Detectron2's numbers, with the weights that its own were filled with."""

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask

from mrcnn_cli.models import matching
from mrcnn_cli.models.cascade_rcnn import CascadeRCNN, refined
from mrcnn_cli.structures import ImageBatch
from tests.models.detectron2_oracle import (
    BORDERLINE,
    FEATURES,
    GRADIENT,
    GRADIENT_NORM,
    HEADS,
    IMAGES,
    LOSS,
    Reference,
    extras,
    first_ones,
    pairs,
    target,
    without_objects,
)

# name of the record -> (our recipe, what the record overrides, tolerances that are wider than most: see its README)
MODELS = {
    "mask_rcnn_R_50_FPN_3x": ("mask_rcnn_r50_fpn_3x", (), {}),
    "faster_rcnn_R_50_FPN_3x": ("faster_rcnn_r50_fpn_3x", (), {}),
    "keypoint_rcnn_R_50_FPN_3x": ("keypoint_rcnn_r50_fpn_3x", (), {}),
    "panoptic_fpn_R_50_3x": ("panoptic_fpn_r50_3x", (), {}),
    "mask_rcnn_R_50_C4_3x": (
        "mask_rcnn_r50_c4_3x",
        ("model.rpn.post_nms_top_n=100", "model.box_head.samples_per_image=64"),
        {},
    ),
    "mask_rcnn_R_50_FPN_3x_dconv_c3-c5": ("mask_rcnn_r50_fpn_3x_dconv", (), {}),
    "mask_rcnn_R_50_FPN_3x_gn": (
        "mask_rcnn_r50_fpn_3x_gn",
        ("model.rpn.post_nms_top_n=300", "model.box_head.samples_per_image=256"),
        {"features": 2e-3, "heads": 1e-2, "pixels": 0.1, "score": 5e-3},
    ),
    "cascade_mask_rcnn_R_50_FPN_3x": ("cascade_mask_rcnn_r50_fpn_3x", (), {"pixels": 0.1}),
}
LOSSES = {
    "loss_rpn_cls": "loss_rpn_objectness",
    "loss_rpn_loc": "loss_rpn_box",
    "loss_cls": "loss_class",
    "loss_box_reg": "loss_box",
    "loss_mask": "loss_mask",
    "loss_keypoint": "loss_keypoint",
    "loss_sem_seg": "loss_semantic",
    **{f"loss_cls_stage{stage}": f"loss_class_stage{stage}" for stage in range(3)},
    **{f"loss_box_reg_stage{stage}": f"loss_box_stage{stage}" for stage in range(3)},
}


@pytest.fixture(scope="module", params=MODELS)
def case(request):
    """(the record, our model, its wider tolerances)."""
    recipe, overrides, tolerances = MODELS[request.param]
    reference = Reference(request.param, recipe, overrides)
    return reference, reference.model(), tolerances


@pytest.mark.parametrize("index", IMAGES)
def test_pixels_features_and_proposals_are_detectron2s(case, index):
    reference, model, tolerances = case
    check_proposals(reference, model, index, tolerances.get("features", FEATURES))


def check_proposals(reference, model, index, tolerance=FEATURES):
    """Of one image, and everything before them."""
    images = reference.images(index)
    with torch.inference_mode():
        pixels = model.preprocess(images)
        reference.check(f"img{index}/input", pixels, 1e-5)
        maps = model.backbone(pixels)
        features = model.fpn(maps)
        logits, deltas = model.rpn(features)
        [proposals] = model.rpn.proposals(logits, deltas, images.sizes)
    for level, found in enumerate(maps, start=2):
        if f"img{index}/feat/res{level}/shape" in reference.record:
            reference.check(f"img{index}/feat/res{level}", found, tolerance)
    names = [f"p{level}" for level in range(2, 7)] if len(features) > 1 else [f"res{len(maps) + 1}"]
    for name, found, logit, delta in zip(names, features, logits, deltas, strict=True):
        reference.check(f"img{index}/feat/{name}", found, tolerance)
        reference.check(f"img{index}/rpn/logits/{name}", logit, tolerance)
        reference.check(f"img{index}/rpn/deltas/{name}", delta, tolerance)
    expected = torch.from_numpy(reference.record[f"img{index}/rpn/top_boxes"])
    assert len(proposals) == reference.record[f"img{index}/rpn/num_proposals"]
    near = proposals[: len(expected) + 5]  # the last of the hundred may have changed places with the next
    found = pairs(near, torch.zeros(len(near)), expected, torch.zeros(len(expected)), 0.01)
    assert (found >= 0).all()


@pytest.mark.parametrize("index", IMAGES)
def test_the_box_head_says_of_given_boxes_what_detectron2s_says(case, index):
    reference, model, tolerances = case
    tolerance, images = tolerances.get("heads", HEADS), reference.images(index)
    boxes = [torch.from_numpy(reference.record[f"img{index}/rpn/top_boxes"][:20])]
    cascade = isinstance(model, CascadeRCNN)
    heads = {f"box_stage{i}": head for i, head in enumerate(model.box_heads)} if cascade else {"box": model.box_head}
    with torch.inference_mode():
        features = model.fpn(model.backbone(model.preprocess(images)))
        for name, head in heads.items():
            logits, deltas = head(features, boxes)
            for key, found in (("cls_logits", logits), ("deltas", deltas.flatten(1))):
                expected = reference.record[f"img{index}/{name}/{key}_first20"]
                assert np.abs(found.numpy() - expected).max() <= tolerance * expected.std(), (name, key)
            if cascade:
                boxes = refined(head, deltas, boxes, images.sizes)


@pytest.mark.parametrize("index", IMAGES)
def test_detections_masks_and_keypoints_are_detectron2s(case, index):
    reference, model, tolerances = case
    images, record, prefix = reference.images(index), reference.record, f"img{index}/post"
    with torch.inference_mode():
        [found] = model.predict(images)
    assert found.size == tuple(record[f"{prefix}/size"].tolist())
    factor = max(found.size[0] / images.sizes[0][0], 1.0)
    pixels = tolerances.get("pixels", 0.02) * factor
    places = compare(found, record, prefix, pixels, tolerances.get("score", 1e-3))
    if found.keypoints is not None:
        both = places >= 0
        keypoints, expected = found.keypoints[places[both]], torch.from_numpy(record[f"{prefix}/keypoints"])[both]
        sides = (found.boxes[:, 2:] - found.boxes[:, :2])[places[both]].amax(1, keepdim=True)
        distance = (keypoints[..., :2] - expected[..., :2]).abs().amax(-1)
        assert (distance <= 0.1 * factor).double().mean() >= 0.95
        assert (distance <= (2 * sides / 56).clamp(min=0.1 * factor)).all()  # the other of two nearly equal cells
        assert (keypoints[..., 2] - expected[..., 2]).abs().max() <= 2e-3
    if found.masks is None:
        return
    for number, counts in enumerate(record[f"{prefix}/mask_rle_top10"]):
        if places[number] < 0:
            continue
        expected, mask = {"size": list(found.size), "counts": counts.encode()}, found.masks[places[number]]
        overlap = coco_mask.iou([mask], [expected], [0])[0, 0]
        assert overlap >= 0.995 or coco_mask.area(expected) == coco_mask.area(mask) == 0
    for place, expected in zip(places.tolist(), record[f"{prefix}/mask_area"].tolist(), strict=True):
        if place >= 0:
            assert abs(int(coco_mask.area(found.masks[place])) - expected) <= max(0.005 * expected, 5)


def compare(found, record, prefix, pixels, score):
    """Detections equal the recorded ones as a set, but for those so near to the threshold that rounding decides."""
    boxes, scores = torch.from_numpy(record[f"{prefix}/boxes"]), torch.from_numpy(record[f"{prefix}/scores"])
    labels = torch.from_numpy(record[f"{prefix}/classes"])
    assert len(scores) > 0
    places = pairs(found.boxes, found.labels, boxes, labels, pixels)
    assert (places[scores > BORDERLINE] >= 0).all(), "detections of Detectron2 are missing"
    back = pairs(boxes, labels, found.boxes, found.labels, pixels)
    assert (back[found.scores > BORDERLINE] >= 0).all(), "there are detections that Detectron2 does not have"
    both = places >= 0
    assert (found.scores[places[both]] - scores[both]).abs().max() <= score
    return places


def test_losses_and_gradients_are_detectron2s(case, monkeypatch):
    reference, model, _ = case
    monkeypatch.setattr(matching, "_choose", first_ones)
    check_losses_and_gradients(reference, model)


def check_losses_and_gradients(reference, model, truth=None):
    """Of image 0; the model comes back in evaluation mode."""
    record = reference.record
    model.train()
    try:
        losses = model(reference.images(0), [target(reference.num_classes) if truth is None else truth])
        expected = dict(zip(record["train/loss/names"], record["train/loss/values"], strict=True))
        assert {LOSSES[name] for name in expected} == set(losses)
        for name, value in expected.items():
            assert abs(losses[LOSSES[name]].item() - value) <= LOSS * abs(value), name
        if "train/grad/all_names" not in record:
            return  # Detectron2 has no backward pass for it on a CPU
        sum(losses.values()).backward()
    finally:
        model.eval()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    norms = record["train/grad/all_norms"]
    for name, norm in zip(record["train/grad/all_names"], norms, strict=True):
        if norm > 1e-3 * norms.max():
            assert abs(gradients[reference.ours(name)].norm().item() - norm) <= GRADIENT_NORM * norm, name
    for name, places, expected in zip(
        *(record[f"train/grad/{key}"] for key in ("sampled_names", "sample_idx", "samples")), strict=True
    ):
        found = gradients[reference.ours(name)].contiguous().reshape(-1)[torch.from_numpy(places)].numpy()
        assert np.abs(found - expected).max() <= GRADIENT * np.abs(expected).max(), name
    for name in record["train/grad/frozen_names"]:
        assert gradients.get(reference.ours(name)) is None, name


# ---- batches, images without objects, masks as bitmaps

EXTRAS = ("mask_rcnn_R_50_FPN_3x", "keypoint_rcnn_R_50_FPN_3x")


@pytest.fixture(scope="module", params=EXTRAS)
def filled(request):
    """(name of the record, the record, our model)"""
    reference = Reference(request.param, *MODELS[request.param][:2])
    return request.param, reference, reference.model()


def both_images(reference):
    images = [reference.images(index) for index in IMAGES]
    pixels = [batch.pixels[0, :, : batch.sizes[0][0], : batch.sizes[0][1]] for batch in images]
    return ImageBatch.collate(pixels, [batch.original_sizes[0] for batch in images])


def test_a_batch_of_two_images_is_detectron2s(filled):
    name, reference, model = filled
    images, record = both_images(reference), extras()
    assert [1, *images.pixels.shape[1:]] == [1, *record[f"{name}/batch2/input_shape"][1:].tolist()]
    with torch.inference_mode():
        for index, found in enumerate(model.predict(images)):
            factor = max(found.size[0] / images.sizes[index][0], 1.0)
            compare(found, record, f"{name}/batch2/post{index}", 0.02 * factor, 1e-3)


def test_losses_without_objects_and_of_bitmaps_are_detectron2s(filled, monkeypatch):
    name, reference, model = filled
    monkeypatch.setattr(matching, "_choose", first_ones)
    truth, record = target(reference.num_classes), extras()
    batches = {
        "train_empty_gt": [without_objects(truth)],
        "train_batch2_second_empty": [truth, without_objects(truth)],
        "train_bitmask_gt": [target(reference.num_classes, bitmaps=True)],
    }
    recorded = sorted({key.split("/")[1] for key in record if key.startswith(f"{name}/train")})
    assert len(recorded) == (3 if "mask_head" in dict(model.named_children()) else 2)
    for kind in recorded:
        images = both_images(reference) if len(batches[kind]) == 2 else reference.images(0)
        try:
            with torch.no_grad():
                losses = model.train()(images, batches[kind])
        finally:
            model.eval()
        for loss, value in zip(*(record[f"{name}/{kind}/loss_{part}"] for part in ("names", "values")), strict=True):
            assert abs(losses[LOSSES[loss]].item() - value) <= LOSS * abs(value), (kind, loss)
