"""Our Mask R-CNN against torchvision's, on the same weights and inputs."""

import pytest
import torch

pytest.importorskip("torchvision", reason="torchvision, the oracle of these tests, is not installed")

from tests.models.torchvision_oracle import batch, pair, training

NAMES = {
    "loss_objectness": "loss_rpn_objectness",
    "loss_rpn_box_reg": "loss_rpn_box",
    "loss_classifier": "loss_class",
    "loss_box_reg": "loss_box",
    "loss_mask": "loss_mask",
    "loss_keypoint": "loss_keypoint",
}


@pytest.mark.parametrize("backbone", ["resnet18", "resnet50"])
def test_losses_equal_torchvisions_on_the_same_anchors_and_proposals(backbone):
    theirs, ours = pair(backbone=backbone)
    their_images, their_targets, images, targets = batch()
    expected = training(theirs)(their_images, their_targets)
    losses = training(ours)(images, targets)
    assert set(losses) == {NAMES[name] for name in expected}
    for name, our_name in ((name, NAMES[name]) for name in expected):
        torch.testing.assert_close(
            losses[our_name], expected[name], rtol=1e-4, atol=0, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_gradients_equal_torchvisions_where_they_enter_the_backbone():
    theirs, ours = pair()
    their_images, their_targets, images, targets = batch()
    sum(training(theirs)(their_images, their_targets).values()).backward()
    sum(training(ours)(images, targets).values()).backward()
    expected, gradient = theirs.backbone.body.conv1.weight.grad, ours.backbone.stem.weight.grad
    assert (gradient - expected).norm() <= 5e-3 * expected.norm()  # ReLUs that switch on rounding
    expected, gradient = theirs.backbone.fpn.inner_blocks[0][0].weight.grad, ours.fpn.laterals[0].weight.grad
    assert (gradient - expected).norm() <= 5e-3 * expected.norm()  # ReLUs that switch on rounding


def test_detections_equal_torchvisions():
    theirs, ours = pair()
    their_images, _, images, _ = batch()
    with torch.no_grad():
        expected, detections = theirs.eval()(their_images), ours.eval().predict(images)
    for there, here in zip(expected, detections, strict=True):
        assert len(here) == len(there["scores"]) > 0
        torch.testing.assert_close(here.scores, there["scores"], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(here.boxes, there["boxes"], rtol=0, atol=1e-2)
        assert torch.equal(here.labels, there["labels"] - 1)


def test_mask_probabilities_equal_torchvisions():
    theirs, ours = pair()
    _, _, images, _ = batch()
    captured = {}
    theirs.roi_heads.mask_predictor.register_forward_hook(lambda m, i, o: captured.update(logits=o))
    boxes = [torch.tensor([[10.0, 20.0, 70.0, 60.0], [5.0, 5.0, 30.0, 90.0]]), torch.tensor([[1.0, 2.0, 33.0, 44.0]])]
    labels = [torch.tensor([0, 2]), torch.tensor([1])]
    with torch.no_grad():
        features = ours.eval().fpn(ours.backbone(ours.preprocess(images)))
        ours_logits = ours.mask_head(features, boxes, labels)
        named = {str(i): f for i, f in enumerate(features[:4])}
        theirs.eval()
        pooled = theirs.roi_heads.mask_roi_pool(named, boxes, images.sizes)
        theirs.roi_heads.mask_predictor(theirs.roi_heads.mask_head(pooled))
    expected = captured["logits"][torch.arange(3), torch.cat(labels) + 1]
    torch.testing.assert_close(ours_logits.sigmoid(), expected.sigmoid(), rtol=0, atol=1e-4)
