"""Keypoint R-CNN alone and with masks: images without objects, and keypoints in the original picture."""

from dataclasses import replace

import pytest
import torch

from mrcnn_cli.models import build_model
from mrcnn_cli.models.keypoint_rcnn import KeypointRCNNConfig
from mrcnn_cli.structures import ImageBatch
from tests.models.test_models import NOTHING, SMALL, SOMETHING, images


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
