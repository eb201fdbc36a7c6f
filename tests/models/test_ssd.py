"""SSD: default boxes, matching, hard negatives. Its numbers are compared in test_light_against_torchvision."""

import pytest
import torch
from torch.nn import functional

from mrcnn_cli.engine.run import read_config
from mrcnn_cli.errors import UserError
from mrcnn_cli.models import build_model
from mrcnn_cli.models.ssd import DefaultBoxesConfig, SSDHead, SSDHeadConfig
from mrcnn_cli.structures import ImageBatch, Targets

CELLS = (38, 19, 10, 5, 3, 1)
CLASSES = 3


def head(**changes):
    torch.manual_seed(0)
    return SSDHead(SSDHeadConfig(**changes), DefaultBoxesConfig(), 300, CLASSES)


def boxes():
    return head().default_boxes([torch.zeros(1, 1, cells, cells) for cells in CELLS])


def targets_of(boxes, labels, crowds=()):
    return Targets(
        torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        torch.tensor(labels, dtype=torch.int64),
        torch.tensor(crowds, dtype=torch.float32).reshape(-1, 4),
    )


def test_there_are_8732_default_boxes_as_in_the_paper():
    found = boxes()
    assert found.shape == (8732, 4)
    assert found[:4].tolist() == [
        pytest.approx([4 - 10.5, 4 - 10.5, 4 + 10.5, 4 + 10.5]),
        pytest.approx([4 - 15.37, 4 - 15.37, 4 + 15.37, 4 + 15.37], abs=0.01),  # sqrt(.07 * .15) * 300 / 2
        pytest.approx([4 - 14.85, 4 - 7.42, 4 + 14.85, 4 + 7.42], abs=0.01),
        pytest.approx([4 - 7.42, 4 - 14.85, 4 + 7.42, 4 + 14.85], abs=0.01),
    ]
    sides = found[-4:, 2:] - found[-4:, :2]
    assert sides.max() == 300  # .87 * sqrt(2) would be wider than the picture


def test_an_object_that_overlaps_nothing_enough_still_has_its_best_box():
    found = boxes()
    tiny = targets_of([[100, 100, 103, 103]], [2])
    matched = head().match(found, tiny)
    assert (matched >= 0).sum() == 1
    assert (matched == 0).nonzero()[0, 0] == box_iou_by_hand(found, tiny.boxes[0]).argmax()


def test_of_two_objects_with_one_best_box_the_later_has_it():
    found = boxes()
    matched = head().match(found, targets_of([[100, 100, 103, 103], [100, 100, 103, 103.1]], [1, 2]))
    assert matched[matched >= 0].tolist() == [1]


def box_iou_by_hand(boxes, box):
    low, high = torch.maximum(boxes[:, :2], box[:2]), torch.minimum(boxes[:, 2:], box[2:])
    overlap = (high - low).clamp(min=0).prod(1)
    return overlap / ((boxes[:, 2:] - boxes[:, :2]).prod(1) + (box[2:] - box[:2]).prod() - overlap)


def test_the_class_loss_is_that_of_the_positives_and_three_times_as_many_of_the_hardest_negatives():
    model, found = head(), boxes()
    target = targets_of([[50, 60, 150, 200]], [1])
    logits, deltas = torch.randn(1, len(found), CLASSES + 1), torch.zeros(1, len(found), 4)
    losses = model.losses(logits, deltas, found, [target])
    positive = model.match(found, target) >= 0
    count = int(positive.sum())
    assert count > 3
    as_background = functional.cross_entropy(logits[0], torch.full((len(found),), CLASSES), reduction="none")
    as_object = functional.cross_entropy(logits[0, positive], torch.ones(count, dtype=torch.long), reduction="sum")
    expected = (as_object + as_background[~positive].sort(descending=True).values[: 3 * count].sum()) / count
    torch.testing.assert_close(losses["loss_class"], expected)


def test_the_losses_of_parts_add_up_to_those_of_the_batch():
    model, found = head(), boxes()
    truths = [targets_of([[50, 60, 150, 200]], [1]), targets_of([[0, 0, 90, 90], [200, 10, 290, 80]], [0, 2])]
    logits, deltas = torch.randn(2, len(found), CLASSES + 1), torch.randn(2, len(found), 4)
    whole = model.losses(logits, deltas, found, truths)
    positives = sum(int((model.match(found, truth) >= 0).sum()) for truth in truths)
    parts = [
        model.losses(logits[i : i + 1], deltas[i : i + 1], found, truths[i : i + 1], lambda count: positives)
        for i in range(2)
    ]
    for name, loss in whole.items():
        torch.testing.assert_close(sum(part[name] for part in parts), loss)


def test_boxes_in_crowds_are_no_negatives():
    model, found = head(), boxes()
    target = targets_of([[250, 250, 290, 290]], [0], [[0, 0, 200, 200]])
    logits, deltas = torch.zeros(1, len(found), CLASSES + 1), torch.zeros(1, len(found), 4)
    centre = (found[:, :2] + found[:, 2:]) / 2
    small = (found[:, 2:] - found[:, :2]).amax(1) < 30
    inside = (centre < 150).all(1) & (centre > 50).all(1) & small
    logits[0, inside, 1] = 50.0  # by far the hardest
    assert model.losses(logits, deltas, found, [target])["loss_class"] < 10


@pytest.fixture(scope="module")
def ssd():
    torch.manual_seed(0)
    config = read_config("ssd300_vgg16", {"model.backbone.weights": "none", "model.backbone.frozen_stages": 0})
    return build_model(config.model, CLASSES)


def test_images_without_objects_are_trained_on_and_every_parameter_takes_part(ssd):
    images = ImageBatch.collate([torch.zeros(3, 300, 300, dtype=torch.uint8)], divisor=300)
    losses = ssd.train()(images, [targets_of([], [])])
    assert {name: loss.item() for name, loss in losses.items()} == {"loss_class": 0, "loss_box": 0}
    sum(losses.values()).backward()
    assert not [name for name, parameter in ssd.named_parameters() if parameter.grad is None]


def test_images_of_another_size_are_refused(ssd):
    images = ImageBatch.collate([torch.zeros(3, 320, 320, dtype=torch.uint8)])
    with pytest.raises(ValueError, match="SSD sees images of 300 x 300 alone, got 320 x 320"):
        ssd.predict(images)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"data.resize": {"short_side": 300}}, "sees images of 300 x 300 alone: set data.resize"),
        ({"data.size_divisor": 32}, "and data.size_divisor = 300"),
        ({"data.augment.scale": [0.5, 2.0]}, "set crop = 300"),
        ({"model.backbone.round_up": "false"}, "backbone.round_up must be true"),
        ({"model.default_boxes.strides": [8, 16]}, "must have 6 entries"),
    ],
)
def test_a_recipe_that_would_show_it_other_sizes_is_refused(change, words):
    with pytest.raises(UserError) as caught:
        read_config("ssd300_vgg16", change)
    assert words in str(caught.value)
