"""Tiles put back at their places give the picture's objects again."""

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from mrcnn_cli.data.tiles import Tiling, cut_annotations

HEIGHT, WIDTH = 130, 205


def objects(seed: int, kind: str) -> list[dict]:
    generator = np.random.default_rng(seed)
    y, x = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    found = []
    for number in range(12):
        centre, radii = generator.uniform((0, 0), (WIDTH, HEIGHT)), generator.uniform(4, 45, 2)
        mask = (((x - centre[0]) / radii[0]) ** 2 + ((y - centre[1]) / radii[1]) ** 2 <= 1) & ((x + y) % 17 > 3)
        rows, columns = mask.nonzero()
        box = [int(columns.min()), int(rows.min()), int(np.ptp(columns)) + 1, int(np.ptp(rows)) + 1]
        annotation = {"id": 100 + number, "category_id": number % 3, "iscrowd": 0, "bbox": box, "area": 7}
        if kind == "runs":
            encoding = coco_mask.encode(np.asfortranarray(mask, np.uint8))
            annotation["segmentation"] = {"size": [HEIGHT, WIDTH], "counts": encoding["counts"].decode()}
        elif kind == "polygons":
            corners = generator.integers(0, (WIDTH + 1, HEIGHT + 1), (9, 2))
            low, high = corners.min(0), corners.max(0)
            annotation |= {"segmentation": [corners.ravel().tolist()], "bbox": [*low.tolist(), *(high - low).tolist()]}
        found.append(annotation)
    return found


def pixels(annotation: dict, height: int, width: int) -> np.ndarray:
    segmentation = annotation["segmentation"]
    if isinstance(segmentation, list):
        segmentation = coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width))
    return coco_mask.decode(segmentation).astype(bool)


@pytest.mark.parametrize(("size", "overlap"), [(64, 0), (64, 20), (50, 49), (100, 33), (205, 10), (500, 100)])
def test_tiles_cover_the_picture_and_overlap_as_wanted(size, overlap):
    windows = Tiling(size, overlap, 0.0).windows(HEIGHT, WIDTH)
    seen = np.zeros((HEIGHT, WIDTH), bool)
    for x1, y1, x2, y2 in windows:
        assert (x2 - x1, y2 - y1) == (min(size, WIDTH), min(size, HEIGHT))
        assert 0 <= x1 < x2 <= WIDTH
        assert 0 <= y1 < y2 <= HEIGHT
        seen[y1:y2, x1:x2] = True
    assert seen.all()
    assert len(set(windows)) == len(windows)
    for starts, length in (({w[0] for w in windows}, WIDTH), ({w[1] for w in windows}, HEIGHT)):
        steps = np.diff(sorted(starts))
        assert (steps <= size - overlap).all()
        assert len(starts) <= -(-max(length - size, 0) // (size - overlap)) + 1


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("overlap", [0, 30])
def test_bitmaps_put_together_again_are_the_same_to_the_pixel(seed, overlap):
    truth = objects(seed, "runs")
    whole = {a["id"]: np.zeros((HEIGHT, WIDTH), bool) for a in truth}
    for (x1, y1, x2, y2), shown in cut_annotations(truth, HEIGHT, WIDTH, Tiling(64, overlap, 0.3)):
        for part in shown:
            mask = pixels(part, y2 - y1, x2 - x1)
            original = next(a for a in truth if a["id"] == part["source_id"])
            assert np.array_equal(mask, pixels(original, HEIGHT, WIDTH)[y1:y2, x1:x2])
            assert part["category_id"] == original["category_id"]
            rows, columns = mask.nonzero()
            box = [columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1]
            assert part["bbox"] == box
            complete = mask.sum() == pixels(original, HEIGHT, WIDTH).sum()
            assert part["area"] == (7 if complete else mask.sum())  # an area that was given stays
            assert part["iscrowd"] == (mask.sum() < 0.3 * pixels(original, HEIGHT, WIDTH).sum())
            whole[part["source_id"]][y1:y2, x1:x2] |= mask
    for original in truth:
        assert np.array_equal(whole[original["id"]], pixels(original, HEIGHT, WIDTH))


@pytest.mark.parametrize("seed", range(8))
def test_polygons_are_clipped_at_the_tiles_edges(seed):
    truth = objects(seed, "polygons")
    for (x1, y1, x2, y2), shown in cut_annotations(truth, HEIGHT, WIDTH, Tiling(64, 16, 0.0)):
        for part in shown:
            original = next(a for a in truth if a["id"] == part["source_id"])
            expected = pixels(original, HEIGHT, WIDTH)[y1:y2, x1:x2]
            found = pixels(part, y2 - y1, x2 - x1)
            # Corners on the edge are new, and pycocotools rounds along each edge: only borders may differ.
            near = np.pad(np.stack([expected, found]), ((0, 0), (1, 1), (1, 1)), mode="edge")
            around = [near[:, i : i + found.shape[0], j : j + found.shape[1]] for i in range(3) for j in range(3)]
            border = (np.any(around, axis=0) & ~np.all(around, axis=0)).any(0)
            assert not ((found ^ expected) & ~border).any()
            assert (found ^ expected).mean() < 0.04
            corners = np.concatenate([np.reshape(polygon, (-1, 2)) for polygon in part["segmentation"]])
            box = np.array(part["bbox"])
            assert corners.min(0) == pytest.approx(box[:2])
            assert corners.max(0) == pytest.approx(box[:2] + box[2:])
            assert (corners >= 0).all()
            assert (corners <= (x2 - x1, y2 - y1)).all()


def test_an_object_within_a_tile_only_moves():
    annotation = {
        "id": 5,
        "category_id": 1,
        "iscrowd": 0,
        "bbox": [70.25, 5.5, 10.5, 11.0],
        "area": 50.0,
        "segmentation": [[70.25, 5.5, 80.75, 6.0, 75.5, 16.5]],
    }
    (_, first), (window, second), *rest = cut_annotations([annotation], 64, 128, Tiling(64, 0, 0.5))
    assert window == (64, 0, 128, 64)
    assert first == [] == rest
    expected = {"bbox": [6.25, 5.5, 10.5, 11.0], "segmentation": [[6.25, 5.5, 16.75, 6.0, 11.5, 16.5]]}
    assert second == [{"source_id": 5, "category_id": 1, "iscrowd": 0, "area": 50.0} | expected]


def test_boxes_without_masks_are_cut_and_what_is_left_of_little_is_ignored():
    annotation = {"id": 1, "category_id": 1, "iscrowd": 0, "bbox": [54, 10, 20, 10], "area": 200.0}
    (_, first), (_, second) = cut_annotations([annotation], 64, 128, Tiling(64, 0, 0.5))
    assert [(part["bbox"], part["iscrowd"]) for part in first + second] == [([54, 10, 10, 10], 0), ([0, 10, 10, 10], 0)]
    (_, first), (_, second) = cut_annotations([annotation | {"bbox": [50, 10, 20, 10]}], 64, 128, Tiling(64, 0, 0.5))
    assert [part["iscrowd"] for part in first + second] == [0, 1]


def test_a_box_around_a_mask_that_does_not_reach_into_a_tile_is_no_object_there():
    annotation = {"id": 1, "category_id": 1, "iscrowd": 0, "bbox": [10, 10, 80, 40], "area": 1.0}
    annotation["segmentation"] = [[10, 10, 60, 10, 60, 50, 10, 50]]
    (_, first), (_, second) = cut_annotations([annotation], 64, 128, Tiling(64, 0, 0.0))
    assert len(first) == 1
    assert second == []


def test_keypoints_move_and_those_outside_are_not_labelled():
    annotation = {"id": 1, "category_id": 1, "iscrowd": 0, "bbox": [54, 10, 20, 10], "area": 200.0}
    annotation |= {"keypoints": [63, 12, 2, 64, 13, 1, 0, 0, 0], "num_keypoints": 2}
    (_, (first,)), (_, (second,)) = cut_annotations([annotation], 64, 128, Tiling(64, 0, 0.0))
    assert first["keypoints"] == [63, 12, 2, 0, 0, 0, 0, 0, 0]
    assert second["keypoints"] == [0, 0, 0, 0, 13, 1, 0, 0, 0]
    assert first["num_keypoints"] == second["num_keypoints"] == 1


def test_crowds_stay_crowds():
    annotation = {"id": 1, "category_id": 1, "iscrowd": 1, "bbox": [10, 10, 80, 40], "area": 1.0}
    tiles = cut_annotations([annotation], 64, 128, Tiling(64, 0, 0.0))
    assert [part["iscrowd"] for _, shown in tiles for part in shown] == [1, 1]
