import sys

import pytest
import torch

from mrcnn_cli.ops import box_iou, match_anchors
from mrcnn_cli.ops.box_iou import box_coverage


def iou_of(a, b):
    """Intersection over union of two boxes, spelled out."""
    width = max(min(a[2], b[2]) - max(a[0], b[0]), 0.0)
    height = max(min(a[3], b[3]) - max(a[1], b[1]), 0.0)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - width * height
    return width * height / union if union > 0 else 0.0


def match_by_loop(anchors, boxes, low, high, allow_low_quality):
    table = [[iou_of(a, b) for b in boxes] for a in anchors]
    matched = []
    for row in table:
        best = max(range(len(boxes)), key=lambda g: (row[g], -g))
        matched.append(best if row[best] >= high else -1 if row[best] < low else -2)
    if allow_low_quality:
        for g in range(len(boxes)):
            top = max(row[g] for row in table)
            for a, row in enumerate(table):
                if row[g] == top:
                    matched[a] = max(range(len(boxes)), key=lambda k: (row[k], -k))
    return matched


def boxes_on_a_grid(count, seed):
    """Whole-number boxes, so that ties and exact thresholds happen and float32 equals float64."""
    random = torch.Generator().manual_seed(seed)
    corner = torch.randint(0, 12, (count, 2), generator=random)
    return torch.cat([corner, corner + torch.randint(1, 9, (count, 2), generator=random)], 1).double()


@pytest.mark.parametrize("allow_low_quality", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_matching_equals_the_loop_with_ties_and_exact_thresholds(seed, allow_low_quality):
    anchors, boxes = boxes_on_a_grid(60, seed), boxes_on_a_grid(7, 100 + seed)
    expected = match_by_loop(anchors.tolist(), boxes.tolist(), 0.25, 0.5, allow_low_quality)
    assert match_anchors(anchors, boxes, 0.25, 0.5, allow_low_quality).tolist() == expected


def test_matching_in_chunks_equals_matching_at_once(monkeypatch):
    anchors, boxes = boxes_on_a_grid(100, 0), boxes_on_a_grid(9, 1)
    whole = match_anchors(anchors, boxes, 0.3, 0.7, True, boxes_on_a_grid(3, 2))
    monkeypatch.setattr(sys.modules["mrcnn_cli.ops.match_anchors"], "PAIRS_AT_A_TIME", 50)
    assert torch.equal(match_anchors(anchors, boxes, 0.3, 0.7, True, boxes_on_a_grid(3, 2)), whole)


def test_without_objects_every_anchor_is_background():
    assert match_anchors(boxes_on_a_grid(5, 0), torch.zeros(0, 4), 0.3, 0.7, True).tolist() == [-1] * 5


def test_without_anchors_there_is_nothing_to_match():
    assert match_anchors(torch.zeros(0, 4), boxes_on_a_grid(3, 0), 0.3, 0.7, True).shape == (0,)


def test_background_in_a_crowd_is_ignored_but_objects_are_not():
    anchors = torch.tensor([[0.0, 0.0, 10.0, 10.0], [50.0, 50.0, 60.0, 60.0], [4.0, 0.0, 14.0, 10.0]])
    objects, crowd = torch.tensor([[50.0, 50.0, 60.0, 60.0]]), torch.tensor([[0.0, 0.0, 10.0, 60.0]])
    crowd_over_all = torch.tensor([[0.0, 0.0, 100.0, 100.0]])
    assert match_anchors(anchors, objects, 0.5, 0.5, ignore=crowd).tolist() == [-2, 0, -1]
    assert match_anchors(anchors, objects, 0.5, 0.5, ignore=crowd_over_all).tolist() == [-2, 0, -2]


def test_iou_equals_the_loop_and_empty_boxes_have_none():
    first, second = boxes_on_a_grid(20, 3), boxes_on_a_grid(10, 4)
    first[0, 2:] = first[0, :2]
    second[0] = first[0]
    expected = torch.tensor([[iou_of(a, b) for b in second.tolist()] for a in first.tolist()], dtype=torch.float64)
    torch.testing.assert_close(box_iou(first, second), expected)
    assert box_iou(first, second)[0, 0] == 0


def test_coverage_is_the_share_of_the_box_itself():
    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0], [3.0, 3.0, 3.0, 9.0]])
    assert box_coverage(boxes, torch.tensor([[5.0, 0.0, 100.0, 10.0]])).tolist() == [[0.5], [0.0]]
