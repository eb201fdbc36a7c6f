"""Panoptic FPN: its semantic branch and its merging give Detectron2's numbers and those of plain loops."""

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask
from torch.nn import functional

from mrcnn_cli.models import build_model
from mrcnn_cli.models.panoptic_fpn import MergingConfig, PanopticFPNConfig, merge
from mrcnn_cli.models.semantic_head import CLASSES_AT_ONCE, SemanticHead, SemanticHeadConfig
from mrcnn_cli.structures import IGNORED, Detections, ImageBatch, Masks, Segments, Targets
from tests.models.detectron2_oracle import IMAGES, Reference, components

THINGS = 80


def encoded(masks):
    return [coco_mask.encode(np.asfortranarray(mask.astype(np.uint8))) for mask in masks]


def objects(masks, scores, labels):
    """Detections with these masks [D, H, W], best first."""
    order = np.argsort(-np.asarray(scores), kind="stable")
    return Detections(
        boxes=torch.zeros(len(order), 4),
        scores=torch.as_tensor(np.asarray(scores)[order]),
        labels=torch.as_tensor(np.asarray(labels)[order]),
        size=masks.shape[1:],
        masks=encoded(np.asarray(masks)[order]),
    )


def rows(segments):
    """Per segment (id, whether a thing, Detectron2's category)."""
    table = []
    for number, label in enumerate(segments.labels.tolist(), start=1):
        table.append([number, int(label < THINGS), label if label < THINGS else label - THINGS + 1])
    return table


def merged_by_loops(masks, scores, labels, classes, num_classes, config):
    """What `merge` is said to do, pixel by pixel."""
    ids, found = np.zeros(classes.shape, int), []
    for place in np.argsort(-np.asarray(scores), kind="stable"):
        pixels = [tuple(p) for p in np.argwhere(masks[place])]
        if scores[place] < config.score_threshold or not pixels:
            continue
        free = [p for p in pixels if ids[p] == 0]
        if (len(pixels) - len(free)) / len(pixels) > config.overlap_threshold:
            continue
        found.append(labels[place])
        for p in free:
            ids[p] = len(found)
    for number in range(1, 255):
        pixels = [tuple(p) for p in np.argwhere((classes == number) & (ids == 0))]
        if pixels and len(pixels) >= config.min_stuff_area:
            found.append(num_classes + number - 1)
            for p in pixels:
                ids[p] = len(found)
    return ids, found


@pytest.fixture(scope="module")
def reference():
    return Reference("panoptic_fpn_R_50_3x", "panoptic_fpn_r50_3x")


@pytest.fixture(scope="module")
def model(reference):
    return reference.model()


@pytest.mark.parametrize("index", IMAGES)
def test_semantic_logits_and_segments_are_detectron2s(reference, model, index):
    images, record = reference.images(index), reference.record
    [size], [original] = images.sizes, images.original_sizes
    with torch.inference_mode():
        [logits] = model.semantic_head(model.fpn(model.backbone(model.preprocess(images))))
        [found] = model.predict(images)
        classes = model.semantic_head.classes(logits, size, original)
        whole = functional.interpolate(logits[None], scale_factor=4, mode="bilinear")[..., : size[0], : size[1]]
        whole = functional.interpolate(whole, original, mode="bilinear")[0]
    reference.check(f"img{index}/sem/logits_post", whole, 1e-3)
    assert (whole.argmax(0) == classes).float().mean() > 0.99999  # a tie may go either way
    expected = record[f"img{index}/sem/argmax_stride4"]
    assert (classes[::4, ::4].numpy() == expected).mean() >= 0.999
    counts = np.bincount(classes.flatten().numpy(), minlength=54)
    assert np.abs(counts - record[f"img{index}/sem/class_counts"]).sum() <= 0.002 * counts.sum()
    table = record[f"img{index}/pan/segments"]
    assert rows(found.segments) == table[:, :3].tolist()
    assert (found.segments.ids[::4, ::4].numpy() == record[f"img{index}/pan/ids_stride4"]).mean() >= 0.999
    areas = np.bincount(found.segments.ids.flatten().numpy(), minlength=len(table) + 1)[1:]
    assert (np.abs(areas - table[:, 4]) <= np.maximum(0.005 * table[:, 4], 5)).all()


@pytest.mark.parametrize("limit", [0, 100])
def test_objects_and_stuff_share_the_pixels_as_in_detectron2(limit):
    given = {key.removeprefix("panoptic/"): value for key, value in components().items() if "panoptic/" in key}
    height, width, count = given["hw_n"].tolist()
    masks = np.unpackbits(given["masks_packed"])[: count * height * width].reshape(count, height, width)
    found = objects(masks, given["scores"], given["classes"])
    config = MergingConfig(min_stuff_area=limit)
    segments = merge(found, torch.from_numpy(given["semantic"]), THINGS, config)
    assert np.array_equal(segments.ids.numpy(), given[f"area{limit}/ids"])
    assert rows(segments) == given[f"area{limit}/segments"][:, :3].tolist()


@pytest.mark.parametrize("seed", range(8))
def test_merging_does_what_a_plain_loop_does(seed):
    random = np.random.default_rng(seed)
    masks = np.zeros((7, 24, 30), bool)
    for mask in masks[1:]:  # the first covers nothing
        y, x, height, width = random.integers(0, [20, 25, 16, 20])
        mask[y : y + height + 1, x : x + width + 1] = True
    masks[6] = masks[5]  # a duplicate of other class
    scores, labels = random.permutation(np.linspace(0.3, 0.9, 7)).astype(np.float32), random.integers(0, 3, 7)
    classes = random.integers(0, 4, (24, 30)).astype(np.uint8)
    config = MergingConfig(overlap_threshold=0.3, min_stuff_area=int(random.integers(0, 120)))
    segments = merge(objects(masks, scores, labels), torch.from_numpy(classes), 3, config)
    ids, found = merged_by_loops(masks, scores, labels, classes, 3, config)
    assert np.array_equal(segments.ids.numpy(), ids)
    assert segments.labels.tolist() == found


def test_a_picture_without_objects_and_stuff_is_void():
    nothing = objects(np.zeros((0, 4, 5), bool), np.zeros(0, np.float32), np.zeros(0, int))
    segments = merge(nothing, torch.zeros(4, 5, dtype=torch.uint8), 3, MergingConfig(min_stuff_area=0))
    assert len(segments) == 0
    assert segments.ids.shape == (4, 5)
    assert not segments.ids.any()


def test_segments_below_a_score_become_void_and_the_others_are_numbered_anew():
    ids = torch.tensor([[0, 1, 2], [3, 3, 1]], dtype=torch.int32)
    segments = Segments(ids, torch.tensor([4, 5, 9]), torch.tensor([0.9, 0.6, 1.0])).above(0.7)
    assert segments.ids.tolist() == [[0, 1, 0], [2, 2, 1]]
    assert segments.labels.tolist() == [4, 9]


def test_the_classes_of_pixels_do_not_depend_on_how_many_are_enlarged_at_once():
    torch.manual_seed(0)
    head = SemanticHead(SemanticHeadConfig(conv_channels=8), 8, (4, 8), 2 * CLASSES_AT_ONCE + 5)
    logits = torch.randn(2 * CLASSES_AT_ONCE + 6, 12, 16)
    whole = functional.interpolate(logits[None], scale_factor=4, mode="bilinear")[..., :45, :61]
    whole = functional.interpolate(whole, (30, 77), mode="bilinear")[0]
    classes = head.classes(logits, (45, 61), (30, 77))
    assert torch.equal(classes, whole.argmax(0).to(torch.uint8))
    assert classes.max() > CLASSES_AT_ONCE


def test_the_loss_is_the_mean_over_labelled_pixels_of_the_whole_batch():
    torch.manual_seed(0)
    head = SemanticHead(SemanticHeadConfig(conv_channels=8, loss_weight=0.5), 8, (4, 8), 3)
    logits = torch.randn(2, 4, 8, 8)
    maps = [torch.randint(0, 4, size, dtype=torch.uint8) for size in ((32, 20), (17, 32))]
    maps[0][3:9] = IGNORED
    none = torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4), None
    loss = head.losses(logits, [Targets(*none, semantic) for semantic in maps])["loss_semantic"]
    terms = []
    for picture, semantic in zip(functional.interpolate(logits, scale_factor=4, mode="bilinear"), maps, strict=True):
        for y, x in (semantic != IGNORED).nonzero().tolist():
            terms.append(-picture[:, y, x].log_softmax(0)[int(semantic[y, x])])
    torch.testing.assert_close(loss, 0.5 * torch.stack(terms).mean())
    unlabelled = head.losses(logits, [Targets(*none, torch.full_like(s, IGNORED)) for s in maps])["loss_semantic"]
    assert unlabelled == 0


@pytest.mark.parametrize("size", [(64, 96), (50, 70)])
def test_inputs_of_any_size_are_trained_on_and_predicted(size):
    torch.manual_seed(0)
    table = {
        "name": "panoptic_fpn",
        "num_stuff": 3,
        "backbone": {"name": "resnet18", "width": 8, "norm": "batch_norm"},
        "fpn": {"channels": 16},
        "box_head": {"fc_channels": 32},
        "mask_head": {"conv_channels": 16},
        "semantic_head": {"conv_channels": 16},
        "merging": {"min_stuff_area": 1},
    }
    model = build_model(PanopticFPNConfig.model_validate(table), 2)
    images = ImageBatch.collate([torch.randint(0, 256, (3, *size), dtype=torch.uint8)] * 2, divisor=0)
    square = Masks([[[10.0, 10, 40, 10, 40, 45, 10, 45]]], torch.eye(2, 3, dtype=torch.float64))
    semantic = torch.randint(0, 4, size, dtype=torch.uint8)
    boxes = torch.tensor([[10.0, 10.0, 40.0, 45.0]])
    target = Targets(boxes, torch.tensor([1]), torch.zeros(0, 4), square, semantic)
    losses = model.train()(images, [target, target])
    sum(losses.values()).backward()
    assert not [name for name, parameter in model.named_parameters() if parameter.grad is None]
    with torch.inference_mode():
        for found in model.eval().predict(images):
            assert found.segments.ids.shape == size
            assert found.segments.ids.max() == len(found.segments)


def test_a_semantic_head_without_a_pyramid_is_refused():
    with pytest.raises(ValueError, match="needs a pyramid"):
        PanopticFPNConfig.model_validate(
            {
                "name": "panoptic_fpn",
                "backbone": {"name": "resnet18"},
                "fpn": {"pyramid": False},
                "anchors": {"sizes": [[32]]},
            }
        )
