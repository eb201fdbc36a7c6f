"""Heatmaps and keypoints: against Detectron2's record, torchvision's functions and a plain loop."""

import math
import warnings

import numpy as np
import pytest
import torch
from torch.nn import functional

from mrcnn_cli.models.box_head import Sampled
from mrcnn_cli.models.keypoint_head import (
    NOT_LEARNT,
    KeypointHead,
    KeypointHeadConfig,
    heatmap_cells,
    heatmap_keypoints,
)
from mrcnn_cli.structures import Targets
from tests.models.detectron2_oracle import components, inputs


def roi_heads():
    pytest.importorskip("torchvision", reason="torchvision, the oracle of this test, is not installed")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torchvision.models.detection import roi_heads
    return roi_heads


def random_scene(seed, regions=40, points=5):
    """Boxes with corners and keypoints on a coarse grid, so that many keypoints lie exactly on an edge."""
    random = np.random.default_rng(seed)
    corners = random.integers(0, 20, (regions, 2)) * 4.0
    boxes = np.concatenate([corners, corners + random.integers(1, 12, (regions, 2)) * 4.0], 1)
    places = random.integers(0, 24, (regions, points, 2)) * 4.0 + random.choice([0.0, 1.3], (regions, points, 2))
    keypoints = np.concatenate([places, random.integers(0, 3, (regions, points, 1))], 2)
    return torch.tensor(boxes, dtype=torch.float32), torch.tensor(keypoints, dtype=torch.float32)


def test_cells_are_detectron2s():
    record = components()
    boxes = torch.from_numpy(record["kp_encode/boxes"])
    keypoints = torch.from_numpy(inputs()["gt/keypoints"]).repeat_interleave(4, 0)  # four boxes around each object
    expected = torch.from_numpy(record["kp_encode/target_index"])
    expected[torch.from_numpy(record["kp_encode/valid"]) == 0] = NOT_LEARNT
    assert torch.equal(heatmap_cells(keypoints, boxes, 56), expected)


@pytest.mark.parametrize("seed", [0, 1])
def test_cells_are_those_of_a_plain_loop_and_of_torchvision(seed):
    boxes, keypoints = random_scene(seed)
    size = 8
    found = heatmap_cells(keypoints, boxes, size)
    for (x1, y1, x2, y2), points, cells in zip(boxes.tolist(), keypoints.tolist(), found.tolist(), strict=True):
        for (x, y, visibility), cell in zip(points, cells, strict=True):
            if visibility == 0 or not (x1 <= x <= x2 and y1 <= y <= y2):
                assert cell == NOT_LEARNT
                continue
            column = size - 1 if x == x2 else math.floor((x - x1) * (size / (x2 - x1)))
            row = size - 1 if y == y2 else math.floor((y - y1) * (size / (y2 - y1)))
            assert cell == row * size + column
    assert 0 < (found == NOT_LEARNT).sum() < found.numel()
    theirs, valid = roi_heads().keypoints_to_heatmap(keypoints, boxes, size)
    assert torch.equal(found, torch.where(valid > 0, theirs, NOT_LEARNT))


def test_keypoints_are_read_off_heatmaps_as_detectron2_does():
    record = components()
    maps, boxes = torch.from_numpy(record["kp_decode/maps"]), torch.from_numpy(record["kp_decode/boxes"])
    expected = torch.from_numpy(record["kp_decode/out_x_y_logit_score"])
    for score, column in (("probability", 3), ("logit", 2)):
        found = heatmap_keypoints(maps, boxes, score)
        torch.testing.assert_close(found[..., :2], expected[..., :2], rtol=0, atol=1e-5)
        torch.testing.assert_close(found[..., 2], expected[..., column], rtol=1e-5, atol=1e-5)


def test_keypoints_are_read_off_heatmaps_as_torchvision_does():
    random = torch.Generator().manual_seed(0)
    maps = torch.randn(6, 3, 12, 12, generator=random)
    corners = torch.rand(6, 2, generator=random) * 50
    sides = torch.tensor([[0.3, 0.4], [1.0, 7.5], [12.0, 12.0], [90.7, 3.2], [33.3, 45.0], [5.0, 200.9]])
    boxes = torch.cat([corners, corners + sides], 1)
    expected, scores = roi_heads().heatmaps_to_keypoints(maps, boxes)
    found = heatmap_keypoints(maps, boxes, "logit")
    torch.testing.assert_close(found[..., :2], expected[..., :2], rtol=0, atol=1e-5)
    torch.testing.assert_close(found[..., 2], scores, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [28, 56])
def test_a_keypoint_that_is_encoded_and_decoded_is_off_by_half_a_cell_at_most(size):
    boxes, keypoints = random_scene(3, regions=25)
    cells = heatmap_cells(keypoints, boxes, size)
    heatmaps = torch.zeros(*cells.shape, size * size)
    heatmaps.scatter_(2, cells.clamp(min=0)[..., None], 10.0)
    found = heatmap_keypoints(heatmaps.unflatten(2, (size, size)), boxes)
    learnt = cells != NOT_LEARNT
    cell = ((boxes[:, 2:] - boxes[:, :2]) / size)[:, None].expand(-1, cells.shape[1], 2)
    error = (found[..., :2] - keypoints[..., :2]).abs()
    assert (error <= (0.5 * cell).clamp(min=0.5) + 0.5)[learnt].all()  # and half a pixel for being resized


def head(**changes):
    torch.manual_seed(0)
    table = {"roi": {"resolution": 7}, "num_conv": 1, "conv_channels": 8, **changes}
    return KeypointHead(KeypointHeadConfig.model_validate(table), 4, [4], num_keypoints=3)


def targets(keypoints, boxes):
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    labels = torch.zeros(len(boxes), dtype=torch.int64)
    keypoints = torch.tensor(keypoints, dtype=torch.float32).reshape(-1, 3, 3)
    return Targets(boxes, labels, torch.zeros(0, 4), keypoints=keypoints)


def sampled(boxes, objects):
    labels = torch.zeros(len(boxes), dtype=torch.int64)
    return Sampled(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4), labels, torch.tensor(objects).long())


SEEN, UNSEEN, FAR = [10.0, 10.0, 2.0], [10.0, 10.0, 0.0], [90.0, 90.0, 2.0]


def test_only_regions_with_a_keypoint_inside_are_learnt():
    truth = targets([[SEEN, UNSEEN, FAR], [UNSEEN, UNSEEN, UNSEEN]], [[0, 0, 20, 20], [5, 5, 30, 30]])
    samples = sampled([[0, 0, 20, 20], [5, 5, 30, 30], [12, 12, 40, 40]], [0, 1, 0])
    boxes, cells = head().wanted([samples, sampled([], [])], [truth, targets([], [])])
    assert [b.tolist() for b in boxes] == [[[0, 0, 20, 20]], []]
    assert cells.tolist() == [[14 * 28 + 14, NOT_LEARNT, NOT_LEARNT]]


def test_the_loss_is_the_mean_cross_entropy_of_the_labelled_keypoints():
    logits = torch.randn(2, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    cells = torch.tensor([[3, NOT_LEARNT, 15], [NOT_LEARNT, 0, NOT_LEARNT]])
    loss = head().losses(logits, cells)["loss_keypoint"]
    places = [(0, 0, 3), (0, 2, 15), (1, 1, 0)]
    expected = sum(-functional.log_softmax(logits[r, p].flatten(), 0)[cell] for r, p, cell in places) / 3
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert (logits.grad.flatten(2).abs().sum(2) > 0).tolist() == (cells != NOT_LEARNT).tolist()


def test_without_any_keypoint_the_loss_is_zero_and_every_parameter_has_a_gradient():
    model = head()
    truth = targets([[UNSEEN, UNSEEN, FAR]], [[0, 0, 20, 20]])
    boxes, cells = model.wanted([sampled([[0, 0, 20, 20]], [0])], [truth])
    loss = model.losses(model([torch.randn(1, 4, 16, 16)], boxes), cells)["loss_keypoint"]
    assert loss.item() == 0
    loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_a_heatmap_has_four_times_the_resolution_of_its_region():
    maps = head()([torch.randn(1, 4, 16, 16)], [torch.tensor([[0.0, 0.0, 20.0, 30.0], [3.0, 4.0, 9.0, 9.0]])])
    assert maps.shape == (2, 3, 28, 28)
    assert head()([torch.randn(1, 4, 16, 16)], [torch.zeros(0, 4)]).shape == (0, 3, 28, 28)
