"""Keypoint R-CNN against torchvision's, on the same weights and photographs, and its two forms."""

import warnings
from dataclasses import replace

import pytest
import torch

from mrcnn_cli.models import build_model
from mrcnn_cli.models.keypoint_rcnn import KeypointRCNN, KeypointRCNNConfig
from mrcnn_cli.structures import ImageBatch, Targets
from tests.models.detectron2_oracle import inputs, pairs
from tests.models.test_models import NOTHING, SMALL, SOMETHING, images

CLASSES, POINTS = 3, 5
EVERYTHING = 1_000_000  # a mini-batch that takes every anchor and every proposal: no draw is left to chance
LOSSES = {
    "loss_objectness": "loss_rpn_objectness",
    "loss_rpn_box_reg": "loss_rpn_box",
    "loss_classifier": "loss_class",
    "loss_box_reg": "loss_box",
    "loss_keypoint": "loss_keypoint",
}


def recipe():
    """Ours in torchvision's conventions."""
    roi = {"sampling_ratio": 2, "aligned": False}
    return KeypointRCNNConfig.model_validate(
        {
            "name": "keypoint_rcnn",
            "num_keypoints": POINTS,
            "pixels": {"mean": [123.675, 116.28, 103.53], "deviation": [58.395, 57.12, 57.375]},
            "backbone": {"name": "resnet50", "norm": "batch_norm"},
            "anchors": {"rounded": True},
            "rpn": {"samples_per_image": EVERYTHING, "post_nms_top_n_train": 40, "post_nms_top_n": 100},
            "box_head": {
                "roi": {"resolution": 7, **roi},
                "samples_per_image": EVERYTHING,
                "smooth_l1_beta": 1 / 9,
                "min_size": 0.01,
            },
            "keypoint_head": {"roi": {"resolution": 14, **roi}, "score": "logit"},
        }
    )


def photographs():
    """Parts of two, uint8 [3, H, W], RGB."""
    pictures = [torch.from_numpy(inputs()[f"img{i}_bgr"][..., ::-1].copy()).permute(2, 0, 1) for i in range(2)]
    return [pictures[0][:, 40:200, 100:324], pictures[1][:, 40:248, 60:220]]


@pytest.fixture(scope="module", params=[0, 1])
def pair(request):
    """(torchvision's model, ours) with the same weights; scores and boxes are spread over their range."""
    pytest.importorskip("torchvision", reason="torchvision, the oracle of these tests, is not installed")
    from tests.models.torchvision_oracle import copy_weights

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torchvision.models.detection import keypointrcnn_resnet50_fpn
    torch.manual_seed(request.param)
    theirs = keypointrcnn_resnet50_fpn(
        weights=None,
        weights_backbone=None,
        num_classes=CLASSES + 1,
        num_keypoints=POINTS,
        min_size=160,  # the short side of the photographs, so that nothing is resized
        rpn_batch_size_per_image=EVERYTHING,
        rpn_post_nms_top_n_train=40,
        rpn_post_nms_top_n_test=100,
        box_batch_size_per_image=EVERYTHING,
    )
    pictures = [picture.float() / 255 for picture in photographs()]
    with torch.no_grad():
        norms = [module for module in theirs.modules() if isinstance(module, torch.nn.BatchNorm2d)]
        for norm in norms:  # statistics of real activations, used as they are from now on
            norm.momentum = 1.0
        batch, _ = theirs.transform(pictures)
        theirs.backbone.body.train()(batch.tensors)
        theirs.rpn.head.cls_logits.weight *= 10
        theirs.rpn.head.bbox_pred.weight *= 3
        spread(theirs.eval(), pictures)
    ours = KeypointRCNN(recipe(), CLASSES)
    copy_weights(theirs, ours)
    return theirs, ours


def spread(model, pictures):
    """Class logits with a deviation of 0.6 around 0, of the background around 3.2."""
    predictor, seen = model.roi_heads.box_predictor, []
    handle = predictor.register_forward_hook(lambda module, given, found: seen.append(found[0]))
    threshold, model.roi_heads.score_thresh = model.roi_heads.score_thresh, 2.0  # nothing found: no keypoints yet
    model(pictures)
    model.roi_heads.score_thresh = threshold
    handle.remove()
    deviation, mean = torch.std_mean(seen[0], 0)
    predictor.cls_score.weight *= 0.6 / deviation[:, None]
    predictor.cls_score.bias.sub_(mean).mul_(0.6 / deviation)
    predictor.cls_score.bias[0] += 3.2


def test_detections_and_keypoints_equal_torchvisions(pair):
    theirs, ours = pair
    batch = ImageBatch.collate(photographs())
    with torch.no_grad():
        answers = theirs.eval()([picture.float() / 255 for picture in photographs()])
        found = ours.eval().predict(batch)
    for there, here in zip(answers, found, strict=True):
        labels, certain = there["labels"] - 1, (there["scores"] - 0.05).abs() > 1e-4  # of the threshold
        assert 20 <= len(labels) < 100
        assert len(labels.unique()) > 1
        assert len(here) - len(labels) <= (~certain).sum()
        places = pairs(here.boxes, here.labels, there["boxes"], labels, 0.02)
        assert (places[certain] >= 0).all()
        both = places >= 0
        torch.testing.assert_close(here.scores[places[both]], there["scores"][both], rtol=0, atol=1e-4)
        keypoints, expected = here.keypoints[places[both]], there["keypoints"][both]
        distance = (keypoints[..., :2] - expected[..., :2]).abs().amax(-1)
        assert (distance <= 0.02).double().mean() >= 0.98  # the highest of two nearly equal cells may change
        torch.testing.assert_close(keypoints[..., 2], there["keypoints_scores"][both], rtol=1e-3, atol=1e-3)


def truth():
    """Three objects per photograph: (torchvision's targets, ours)."""
    random = torch.Generator().manual_seed(0)
    theirs, ours = [], []
    for picture in photographs():
        height, width = picture.shape[1:]
        corners = torch.rand(3, 2, generator=random) * torch.tensor([width / 2, height / 2])
        boxes = torch.cat([corners, corners + 30 + torch.rand(3, 2, generator=random) * 90], 1)
        labels = torch.tensor([0, 1, 2])
        places = (
            boxes[:, None, :2] + torch.rand(3, POINTS, 2, generator=random) * (boxes[:, 2:] - boxes[:, :2])[:, None]
        )
        seen = torch.randint(0, 3, (3, POINTS, 1), generator=random)
        keypoints = torch.cat([places, seen], 2)
        theirs.append({"boxes": boxes, "labels": labels + 1, "keypoints": keypoints})
        ours.append(Targets(boxes, labels, torch.zeros(0, 4), keypoints=keypoints))
    return theirs, ours


def test_losses_and_gradients_equal_torchvisions(pair):
    from tests.models.torchvision_oracle import training

    theirs, ours = pair
    their_targets, targets = truth()
    expected = training(theirs)([picture.float() / 255 for picture in photographs()], their_targets)
    losses = training(ours)(ImageBatch.collate(photographs()), targets)
    assert set(losses) == set(LOSSES.values())
    for name, our_name in LOSSES.items():
        torch.testing.assert_close(
            losses[our_name], expected[name], rtol=1e-4, atol=0, msg=lambda m, n=name: f"{n}: {m}"
        )
    sum(expected.values()).backward()
    sum(losses.values()).backward()
    background_last = [1, 2, 3, 0]
    compared = [
        (theirs.roi_heads.keypoint_predictor.kps_score_lowres, ours.keypoint_head.logits, ..., 5e-4),
        (theirs.roi_heads.box_predictor.cls_score, ours.box_head.logits, background_last, 5e-4),
        # From here on there are ReLUs between, of which some switch on rounding.
        (theirs.roi_heads.keypoint_head[0], ours.keypoint_head.convs[0], ..., 3e-2),
        (theirs.roi_heads.box_head.fc6, ours.box_head.fcs[0], ..., 3e-2),
        (theirs.backbone.fpn.inner_blocks[0][0], ours.fpn.laterals[0], ..., 3e-2),
    ]
    for there, here, order, tolerance in compared:
        wanted, gradient = there.weight.grad[order], here.weight.grad
        assert (gradient - wanted).norm() <= tolerance * wanted.norm()


def keypoint_rcnn(**changes):
    torch.manual_seed(0)
    table = {"name": "keypoint_rcnn", **SMALL, "keypoint_head": {"num_conv": 2, "conv_channels": 16}, **changes}
    return build_model(KeypointRCNNConfig.model_validate(table), 2)


def with_keypoints(targets, points=17):
    """The same objects with a keypoint in each corner and in the middle, all others not labelled."""
    corners = [torch.stack([targets.boxes[:, x], targets.boxes[:, y]], 1) for x in (0, 2) for y in (1, 3)]
    places = torch.stack([*corners, sum(corners) / 4], 1)
    keypoints = torch.zeros(len(targets), points, 3)
    keypoints[:, :5] = torch.cat([places, torch.full((len(targets), 5, 1), 2.0)], 2)
    return replace(targets, keypoints=keypoints)


@pytest.mark.parametrize("masks", [False, True])
@pytest.mark.parametrize("batch", [[SOMETHING, NOTHING], [NOTHING, NOTHING]])
def test_images_without_objects_are_trained_on_and_every_parameter_takes_part(masks, batch):
    model = keypoint_rcnn(**({"mask_head": {"conv_channels": 16}} if masks else {})).train()
    losses = model(images(), [with_keypoints(targets) for targets in batch])
    assert ("loss_mask" in losses) is masks
    assert all(torch.isfinite(loss) for loss in losses.values())
    sum(losses.values()).backward()
    assert not [name for name, parameter in model.named_parameters() if parameter.grad is None]
    learnt = any(len(targets) for targets in batch)
    assert (losses["loss_keypoint"].item() > 0) is learnt


@pytest.mark.parametrize("masks", [False, True])
def test_keypoints_lie_in_their_boxes_in_the_original_picture(masks):
    head = {"mask_head": {"conv_channels": 16}} if masks else {}
    model = keypoint_rcnn(num_keypoints=3, box_head={"fc_channels": 32, "score_threshold": 0.0}, **head).eval()
    batch = ImageBatch(images(1).pixels, [(60, 90)], [(30, 180)])
    with torch.inference_mode():
        [found] = model.predict(batch)
    assert len(found) > 0
    assert found.keypoints.shape == (len(found), 3, 3)
    at, low, high = found.keypoints[..., :2], found.boxes[:, None, :2], found.boxes[:, None, 2:]
    assert ((at >= low) & (at <= high + 1)).all()  # sides below a pixel count as one
    assert ((found.keypoints[..., 2] > 0) & (found.keypoints[..., 2] <= 1)).all()
    assert (found.masks is not None) is masks
    some = found.take(torch.tensor([2, 0]))
    assert torch.equal(some.keypoints, found.keypoints[[2, 0]])
    assert (some.masks == [found.masks[2], found.masks[0]]) if masks else some.masks is None


def test_the_number_of_keypoints_is_cocos_unless_it_is_known():
    assert keypoint_rcnn().keypoint_head.logits.out_channels == 17
    assert keypoint_rcnn(num_keypoints=4).keypoint_head.logits.out_channels == 4
