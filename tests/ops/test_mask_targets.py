import sys

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask

from mrcnn_cli.ops import mask_targets, roi_align


def ellipses(count, height, width, seed=0):
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width] + 0.5
    masks = []
    for _ in range(count):
        cy, cx = random.uniform(0, height), random.uniform(0, width)
        ry, rx = random.uniform(3, height / 2), random.uniform(3, width / 2)
        masks.append(((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2 <= 1)
    return np.stack(masks)


def encode(masks):
    return [coco_mask.encode(np.asfortranarray(mask.astype(np.uint8))) for mask in masks]


def loose_boxes(count, height, width, seed=1):
    random = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=random) * torch.tensor([width, height]) * 0.7 - 4
    return torch.cat([corner, corner + torch.rand(count, 2, generator=random) * 40 + 2], 1)


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("sampling_ratio", [0, 2])
def test_sampling_the_runs_equals_roi_align_of_the_full_masks(aligned, sampling_ratio):
    masks, boxes = ellipses(8, 40, 56), loose_boxes(8, 40, 56)
    rois = torch.cat([torch.arange(8.0)[:, None], boxes], 1)
    full = torch.from_numpy(masks).double()[:, None]
    expected = roi_align(full, rois.double(), 14, 1.0, sampling_ratio, aligned)[:, 0]
    options = {"sampling_ratio": sampling_ratio, "aligned": aligned, "threshold": None}
    targets = mask_targets(encode(masks), boxes, 14, **options)
    torch.testing.assert_close(targets.double(), expected, rtol=0, atol=1e-4)


def test_plain_and_compressed_and_text_counts_mean_the_same():
    masks, boxes = ellipses(3, 30, 20), loose_boxes(3, 30, 20)
    compressed = encode(masks)
    text = [{"size": e["size"], "counts": e["counts"].decode()} for e in compressed]
    plain = []
    for mask in masks:
        flat = np.concatenate([[0], mask.T.reshape(-1).astype(int), [2]])
        edges = np.flatnonzero(np.diff(flat))
        plain.append({"size": list(mask.shape), "counts": np.diff(np.concatenate([[0], edges])).tolist()})
    expected = mask_targets(compressed, boxes, 28)
    assert torch.equal(mask_targets(text, boxes, 28), expected)
    assert torch.equal(mask_targets(plain, boxes, 28), expected)


@pytest.mark.parametrize("name", ["flip", "turn", "enlarge"])
def test_the_matrix_moves_the_annotation_to_the_input(name):
    """A moved mask, cut, equals the cut of the mask that was moved as an image."""
    [mask] = ellipses(1, 32, 32, seed=5)
    if name == "flip":
        matrix, moved = [[-1.0, 0.0, 32.0], [0.0, 1.0, 0.0]], mask[:, ::-1]
    elif name == "turn":  # counter-clockwise, as numpy.rot90: (x, y) -> (y, 32 - x)
        matrix, moved = [[0.0, 1.0, 0.0], [-1.0, 0.0, 32.0]], np.rot90(mask)
    else:
        matrix, moved = [[2.0, 0.0, 0.0], [0.0, 2.0, 0.0]], mask.repeat(2, 0).repeat(2, 1)
    boxes = torch.tensor([[4.0, 2.0, 30.0, 26.0]])
    options = {"sampling_ratio": 4, "threshold": None}
    cut = mask_targets(encode([mask]), boxes, 14, matrix=torch.tensor(matrix, dtype=torch.float64), **options)
    expected = mask_targets(encode([moved]), boxes, 14, **options)
    # Enlarging interpolates between source pixels instead of repeating them: edges differ by part of a bin.
    atol = 0.3 if name == "enlarge" else 1e-5
    torch.testing.assert_close(cut, expected, rtol=0, atol=atol)
    assert (cut - expected).abs().mean() < 0.02


def test_polygons_are_rasterised_on_the_grid_of_the_box():
    square = [[10.0, 10.0, 20.0, 10.0, 20.0, 20.0, 10.0, 20.0]]
    [target] = mask_targets([square], torch.tensor([[10.0, 10.0, 30.0, 30.0]]), 8)
    expected = torch.zeros(8, 8)
    expected[:4, :4] = 1
    assert torch.equal(target, expected)


def test_polygons_follow_the_matrix():
    square = [[5.0, 5.0, 10.0, 5.0, 10.0, 10.0, 5.0, 10.0]]
    doubled = torch.tensor([[2.0, 0.0, 0.0], [0.0, 2.0, 0.0]], dtype=torch.float64)
    [target] = mask_targets([square], torch.tensor([[10.0, 10.0, 30.0, 30.0]]), 8, matrix=doubled)
    assert target.sum() == 16
    assert target[:4, :4].all()


def test_several_parts_are_one_object():
    parts = [[0.0, 0.0, 4.0, 0.0, 4.0, 4.0, 0.0, 4.0], [4.0, 4.0, 8.0, 4.0, 8.0, 8.0, 4.0, 8.0]]
    [target] = mask_targets([parts], torch.tensor([[0.0, 0.0, 8.0, 8.0]]), 8)
    assert target[:4, :4].all()
    assert target[4:, 4:].all()
    assert target.sum() == 32


def test_polygons_and_runs_of_one_shape_agree_up_to_the_edge():
    y, x = np.mgrid[:60, :60] + 0.5
    mask = (x >= 12) & (x < 41) & (y >= 8) & (y < 50)
    polygon = [[12.0, 8.0, 41.0, 8.0, 41.0, 50.0, 12.0, 50.0]]
    boxes = torch.tensor([[5.0, 5.0, 45.0, 55.0]])
    both = mask_targets([polygon, encode([mask])[0]], boxes.repeat(2, 1), 28)
    assert (both[0] != both[1]).float().mean() < 0.03


def test_no_objects_give_an_empty_tensor():
    assert mask_targets([], torch.zeros(0, 4), 28).shape == (0, 28, 28)


def test_an_empty_box_has_an_empty_target():
    masks = ellipses(1, 20, 20)
    assert mask_targets(encode(masks), torch.tensor([[5.0, 5.0, 5.0, 5.0]]), 7).sum() == 0


def test_large_boxes_are_sampled_in_pieces(monkeypatch):
    masks, boxes = ellipses(4, 90, 90), torch.tensor([[0.0, 0.0, 90.0, 90.0]]).repeat(4, 1)
    whole = mask_targets(encode(masks), boxes, 14, threshold=None)
    monkeypatch.setattr(sys.modules["mrcnn_cli.ops.mask_targets"], "POINTS_AT_A_TIME", 100)
    assert torch.equal(mask_targets(encode(masks), boxes, 14, threshold=None), whole)


def test_faulty_input_is_named():
    with pytest.raises(ValueError, match=r"boxes must be \[1, 4\].*got \[2, 4\]"):
        mask_targets([[[0.0, 0.0, 4.0, 0.0, 4.0, 4.0]]], torch.zeros(2, 4), 8)
    with pytest.raises(ValueError, match="run lengths of a 4 x 4 mask add up to 10 pixels"):
        mask_targets([{"size": [4, 4], "counts": [4, 6]}], torch.tensor([[0.0, 0.0, 4.0, 4.0]]), 8)
