"""The two halves of Faster R-CNN apart: proposals alone, and Fast R-CNN on given ones, beside Detectron2's numbers."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from mrcnn_cli.data.transforms import resized_proposals
from mrcnn_cli.models import matching
from tests.models.detectron2_oracle import HEADS, IMAGES, Reference, first_ones, inputs, pairs, target
from tests.models.test_against_detectron2 import check_losses_and_gradients, check_proposals, compare


@pytest.fixture(scope="module")
def lone():
    reference = Reference("rpn_R_50_FPN_1x", "rpn_r50_fpn_1x")
    return reference, reference.model()


@pytest.mark.parametrize("index", IMAGES)
def test_a_network_of_proposals_alone_has_detectron2s(lone, index):
    reference, model = lone
    check_proposals(reference, model, index)
    record = reference.record
    with torch.inference_mode():
        [found] = model.predict(reference.images(index))
    assert found.size == tuple(record[f"img{index}/post/size"].tolist())
    assert len(found) == record[f"img{index}/post/num_proposals"]
    expected = torch.from_numpy(record[f"img{index}/post/proposal_boxes_top100"])
    scores = torch.from_numpy(record[f"img{index}/post/objectness_top100"]).sigmoid()
    nothing = torch.zeros(len(expected))
    places = pairs(found.boxes[:105], torch.zeros(105), expected, nothing, 0.01 * found.size[0] / 256)
    assert (places >= 0).all()
    torch.testing.assert_close(found.scores[places], scores, atol=1e-3, rtol=0)
    assert (found.labels == 0).all()


def test_its_losses_and_gradients_are_detectron2s(lone, monkeypatch):
    monkeypatch.setattr(matching, "_choose", first_ones)
    check_losses_and_gradients(*lone)


@pytest.fixture(scope="module")
def fast():
    reference = Reference("fast_rcnn_R_50_FPN_1x", "fast_rcnn_r50_fpn_1x")
    return reference, reference.model()


def given(index):
    """The proposals of an image, best first, in pixels of the network's input."""
    boxes, logits = (inputs()[f"given_proposals/img{index}_{part}"] for part in ("boxes", "logits"))
    size = inputs()[f"img{index}_bgr"].shape[:2]
    return resized_proposals(boxes[np.argsort(-logits, kind="stable")], size, size)


@pytest.mark.parametrize("index", IMAGES)
def test_what_fast_rcnn_finds_in_given_proposals_is_what_detectron2s_finds(fast, index):
    reference, model = fast
    record, images = reference.record, replace(reference.images(index), proposals=[given(index)])
    with torch.inference_mode():
        features = model.fpn(model.backbone(model.preprocess(images)))
        logits, deltas = model.box_head(features, [given(index)[:20]])
        [found] = model.predict(images)
    for key, ours in (("cls_logits", logits), ("deltas", deltas.flatten(1))):
        expected = record[f"img{index}/box/{key}_first20"]
        assert np.abs(ours.numpy() - expected).max() <= HEADS * expected.std()
    factor = max(found.size[0] / images.sizes[0][0], 1.0)
    compare(found, record, f"img{index}/post", 0.02 * factor, 1e-3)


def test_fast_rcnns_samples_losses_and_gradients_are_detectron2s(fast, monkeypatch):
    reference, model = fast
    monkeypatch.setattr(matching, "_choose", first_ones)
    truth = replace(target(), proposals=given(0))
    [sampled] = model.box_head.sample([truth.proposals], [truth])
    expected = torch.from_numpy(reference.record["train/sampled/proposal_boxes"])
    assert (sampled.boxes - expected).abs().max() <= 1e-3
    assert sampled.labels.tolist() == reference.record["train/sampled/gt_classes"].tolist()
    check_losses_and_gradients(reference, model, truth)


def test_fast_rcnn_has_no_network_of_proposals_and_takes_the_best_of_the_given(fast):
    _, model = fast
    assert not any("rpn" in name for name, _ in model.named_parameters())
    images = replace(fast[0].images(0), proposals=[given(0)])
    few = replace(images, proposals=[given(0)[:7]])
    model.config, whole = model.config.model_copy(update={"proposals_top_n": 7}), model.config
    try:
        with torch.inference_mode():
            [cut], [expected] = model.predict(images), model.predict(few)
    finally:
        model.config = whole
    torch.testing.assert_close(cut.boxes, expected.boxes)
    assert 0 < len(cut) < 34


def test_fast_rcnn_without_proposals_says_so(fast):
    reference, model = fast
    with pytest.raises(ValueError, match="finds no proposals of its own"):
        model.predict(reference.images(0))
    with pytest.raises(ValueError, match="finds no proposals of its own"):
        model(reference.images(0), [target()])
