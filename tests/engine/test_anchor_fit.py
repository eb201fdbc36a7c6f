"""Anchors held against objects: the closed form equals all anchors one by one, and clusters find what was planted."""

from pathlib import Path

import numpy as np
import pytest
import torch

from mrcnn_cli.data.check.tables import Split, read_table
from mrcnn_cli.engine.anchor_fit import Objects, anchors_of, best_overlaps, clusters, fit, objects_of, suggestion
from mrcnn_cli.engine.run import read_config
from mrcnn_cli.models import build_model
from mrcnn_cli.models.rpn import level_anchors
from mrcnn_cli.ops import box_iou

RECIPES = ("mask_rcnn_lite0_fpn", "nuclei", "faster_rcnn_r50_c4_1x", "retinanet_r50_fpn_1x")


def objects_like(boxes, size):
    count = len(boxes)
    zeros = np.zeros(count, int)
    return Objects(boxes, np.tile(size, (count, 1)), np.full(count, "thing", object), zeros, zeros)


def some_boxes(count, size, seed=0):
    random = np.random.default_rng(seed)
    sides = random.uniform(4, 150, (count, 2))
    low = random.uniform(0, 1, (count, 2)) * (np.array(size[::-1]) - sides).clip(0)
    return np.concatenate([low, low + sides], 1)


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_best_overlap_is_that_of_all_anchors_one_by_one(recipe):
    config = read_config(recipe)
    size = (192, 256)  # multiples of every stride
    boxes = some_boxes(60, size)
    model = build_model(config.model, 1)
    head = model.retina_head if recipe.startswith("retinanet") else model.rpn
    maps = [torch.empty(1, 1, -(-size[0] // stride), -(-size[1] // stride)) for stride in head.strides]
    every = torch.cat(level_anchors(config.model.anchors, maps, head.strides))
    expected = box_iou(torch.as_tensor(boxes), every.double()).amax(1)
    found = best_overlaps(objects_like(boxes, size), anchors_of(config))
    assert torch.allclose(torch.as_tensor(found), expected, atol=1e-6)


def test_clusters_are_the_shapes_that_were_drawn():
    random = np.random.default_rng(3)
    truth = np.array([[10.0, 30.0], [60.0, 60.0], [200.0, 50.0]])
    shapes = truth[random.integers(0, 3, 600)] * random.uniform(0.95, 1.05, (600, 2))
    found = clusters(shapes, 3, random)
    assert np.allclose(found[found[:, 0].argsort()], truth, rtol=0.02)


def test_more_clusters_than_shapes_are_no_fault():
    assert np.allclose(clusters(np.array([[8.0, 4.0]]), 3, np.random.default_rng(0)), [8, 4])


def test_suggested_anchors_fit_better_where_the_recipe_has_none_of_that_shape():
    config = read_config("mask_rcnn_lite0_fpn")
    random = np.random.default_rng(1)
    low = random.uniform(0, 300, (400, 2))
    boxes = np.concatenate([low, low + np.array([12.0, 90.0]) * random.uniform(0.8, 1.2, (400, 2))], 1)
    objects = objects_like(boxes, (512, 512))
    present = anchors_of(config)
    suggested = suggestion(objects, present)
    assert fit(objects, suggested).recall_50 > fit(objects, present).recall_50 + 0.3
    assert len(suggested.sizes) == len(present.sizes)
    assert suggestion(objects, present) == suggested


def test_objects_are_seen_as_the_recipe_resizes_them():
    content = {
        "images": [{"id": 1, "file_name": "a.png", "height": 100, "width": 200}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 1, "bbox": [10, 20, 30, 40]},
            {"id": 2, "image_id": 1, "category_id": 1, "bbox": [0, 0, 100, 100], "iscrowd": 1},
        ],
        "categories": [{"id": 1, "name": "thing"}],
    }
    table, _ = read_table(Split("train", Path(), Path("a.json"), content))
    objects = objects_of([table], read_config("mask_rcnn_lite0_fpn", {"data.resize": {"scale": 2.0}}))
    assert objects.boxes.tolist() == [[20, 40, 80, 120]]
    assert objects.sizes.tolist() == [[200, 400]]
