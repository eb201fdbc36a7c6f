import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask

from mrcnn_cli.ops import paste_masks, paste_masks_dense


def paste_by_loop(mask, box, height, width, threshold):
    """Bilinear sampling at every pixel centre, one pixel at a time, zero outside of the grid."""
    size = mask.shape[0]
    x1, y1, x2, y2 = box
    image = np.zeros((height, width), dtype=bool)
    for row in range(height):
        for column in range(width):
            v = (row + 0.5 - y1) / (y2 - y1) * size - 0.5
            u = (column + 0.5 - x1) / (x2 - x1) * size - 0.5
            value = 0.0
            for i in (int(np.floor(v)), int(np.floor(v)) + 1):
                for j in (int(np.floor(u)), int(np.floor(u)) + 1):
                    if 0 <= i < size and 0 <= j < size:
                        value += (1 - abs(v - i)) * (1 - abs(u - j)) * mask[i, j]
            image[row, column] = value >= threshold
    return image


BOXES = [
    [3.2, 4.1, 20.7, 17.9],
    [-6.0, -3.5, 9.0, 12.0],  # reaches out at the top left
    [15.0, 10.0, 60.0, 50.0],  # and at the bottom right
    [0.0, 0.0, 31.0, 23.0],  # the whole image
    [8.4, 8.4, 8.9, 8.8],  # smaller than a pixel
]


@pytest.fixture
def masks():
    return torch.rand(len(BOXES), 7, 7, generator=torch.Generator().manual_seed(3))


def test_pasting_equals_the_loop(masks):
    pasted = paste_masks_dense(masks, torch.tensor(BOXES), (23, 31))
    for mask, box, image in zip(masks.double().numpy(), BOXES, pasted.numpy(), strict=True):
        np.testing.assert_array_equal(image, paste_by_loop(mask, box, 23, 31, 0.5))


def test_run_lengths_equal_pycocotools_encoding_of_the_dense_paste(masks):
    boxes = torch.tensor(BOXES)
    masks[3] = 1.0  # columns full from top to bottom, whose runs join
    dense = paste_masks_dense(masks, boxes, (23, 31), 0.4)
    for image, encoding in zip(dense.numpy(), paste_masks(masks, boxes, (23, 31), 0.4), strict=True):
        assert encoding == coco_mask.encode(np.asfortranarray(image.astype(np.uint8)))


def test_a_mask_that_fills_the_image_is_one_run():
    [encoding] = paste_masks(torch.ones(1, 4, 4), torch.tensor([[-10.0, -10.0, 30.0, 30.0]]), (8, 9))
    assert coco_mask.area(encoding) == 72


@pytest.mark.parametrize(
    "box", [[5.0, 5.0, 5.0, 9.0], [9.0, 9.0, 5.0, 5.0], [float("nan")] * 4, [0.0, 0.0, float("inf"), 5.0]]
)
def test_degenerate_boxes_give_empty_masks(box):
    [encoding] = paste_masks(torch.ones(1, 4, 4), torch.tensor([box]), (8, 9))
    assert coco_mask.area(encoding) == 0


def test_no_masks_give_no_encodings():
    assert paste_masks(torch.zeros(0, 28, 28), torch.zeros(0, 4), (10, 10)) == []
    assert paste_masks_dense(torch.zeros(0, 28, 28), torch.zeros(0, 4), (10, 10)).shape == (0, 10, 10)


def test_wrong_shapes_are_named():
    with pytest.raises(ValueError, match=r"masks must be \[N, M, M\], got \[1, 4, 5\]"):
        paste_masks(torch.zeros(1, 4, 5), torch.zeros(1, 4), (10, 10))
    with pytest.raises(ValueError, match=r"boxes must be \[2, 4\].*got \[1, 4\]"):
        paste_masks(torch.zeros(2, 4, 4), torch.zeros(1, 4), (10, 10))
