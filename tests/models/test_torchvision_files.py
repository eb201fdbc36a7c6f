"""torchvision's detectors give the same numbers here: a file of weights, two photographs, end to end."""

import copy

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask

pytest.importorskip("torchvision", reason="torchvision, the oracle of these tests, is not installed")

from mrcnn_cli.data.transforms import inference
from mrcnn_cli.engine.checkpoint import load
from mrcnn_cli.engine.foreign import torchvision as names
from mrcnn_cli.engine.foreign.names import rename
from mrcnn_cli.engine.predict import predict
from mrcnn_cli.models import matching
from mrcnn_cli.structures import ImageBatch, Masks, Targets
from tests.models.detectron2_oracle import first_ones, target
from tests.models.test_against_torchvision import NAMES as LOSSES
from tests.models.torchvision_files import DETECTORS, OVERRIDES, SMALL, as_theirs, detector, pictures
from tests.models.torchvision_oracle import training

PIXELS, SCORE, THRESHOLD = 0.02, 1e-4, 0.05
# Of a picture's 40 detections one may be another: the cuts among its proposals (the best of each level, then of all)
# may fall between two logits that rounding exchanges, which differs with the number of threads.
EXCHANGED = 1


def converted(model, tmp_path, *overrides):
    torch.save(model.state_dict(), tmp_path / "model.pth")
    return load(tmp_path / "model.pth", overrides=[*OVERRIDES, *overrides])


@pytest.mark.parametrize("name", DETECTORS)
@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_detectors_file_gives_its_detections(name, seed, tmp_path):
    # The published one knows persons alone; here it has classes to tell apart, as the others.
    theirs = detector(name, seed, **({"num_classes": 4} if name.startswith("keypoint") else {}))
    checkpoint = converted(theirs, tmp_path)
    assert checkpoint.origin == "torchvision"
    assert len(checkpoint.classes) == (3 if name.startswith("keypoint") else 90)
    for picture, found in zip(pictures(), predict(checkpoint, pictures(), 0.0), strict=True):
        with torch.no_grad():
            [expected] = theirs([as_theirs(picture)])
        certain = expected["scores"] > THRESHOLD + SCORE
        assert certain.sum() >= 20
        assert len(expected["labels"][certain].unique()) >= 3
        assert len(found) == len(certain)
        places = matched(found, expected)
        assert (places[certain] < 0).sum() <= EXCHANGED
        assert places[places >= 0].unique(return_counts=True)[1].max() == 1  # one each
        if "masks" in expected:
            check_masks(found, expected, places)
        if "keypoints" in expected:
            check_keypoints(found, expected, places)


# torchvision's numbers, on pictures of three fifths of its size.
LARGE = {"min_size": 480, "max_size": 800, "rpn_post_nms_top_n_test": 1000, "box_detections_per_img": 100}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["maskrcnn_resnet50_fpn", "maskrcnn_resnet50_fpn_v2"])
def test_in_double_precision_all_100_detections_are_the_same(name, tmp_path, monkeypatch):
    """Of 1,000 proposals, none is exchanged: what differs in single precision is rounding."""
    theirs = copy.deepcopy(detector(name, 0, **LARGE))
    numbers = [f"{SMALL[argument][0]}={number}" for argument, number in LARGE.items()]
    torch.save(theirs.state_dict(), tmp_path / "model.pth")
    ours = load(tmp_path / "model.pth", overrides=numbers)
    theirs, model = theirs.double(), ours.model.double()
    picture = pictures()[0]
    images, _ = theirs.transform([as_theirs(picture).double()])
    monkeypatch.setattr(model.preprocess, "forward", lambda batch: images.tensors)
    with torch.no_grad():
        [expected] = theirs([as_theirs(picture).double()])
        [found] = model.predict(ImageBatch.collate([inference(picture, ours.config.data.resize)], [picture.shape[:2]]))
    assert len(expected["labels"]) == len(found) == 100
    assert len(expected["labels"].unique()) >= 3
    places = matched(found, expected)
    assert sorted(places.tolist()) == list(range(100))
    torch.testing.assert_close(found.boxes[places].double(), expected["boxes"], rtol=0, atol=1e-4)
    torch.testing.assert_close(found.scores[places].double(), expected["scores"], rtol=0, atol=1e-6)
    check_masks(found, expected, places)


@pytest.mark.parametrize(
    "name", ["maskrcnn_resnet50_fpn", pytest.param("maskrcnn_resnet50_fpn_v2", marks=pytest.mark.slow)]
)
def test_where_its_probabilities_saturate_torchvision_has_our_detections_if_it_ranks_by_logits(
    name, tmp_path, monkeypatch
):
    theirs = copy.deepcopy(detector(name, 0))
    with torch.no_grad():
        for parameter in theirs.rpn.head.cls_logits.parameters():
            parameter.mul_(12)
    checkpoint = converted(theirs, tmp_path)
    logits = []
    theirs.rpn.head.register_forward_hook(lambda module, arguments, output: logits.extend(output[0]))
    picture = pictures()[0]
    [found] = predict(checkpoint, [picture], 0.0)
    filtered = theirs.rpn.filter_proposals

    def ranked_by_logits(*arguments):
        with monkeypatch.context() as patch:
            patch.setattr(torch, "sigmoid", lambda logits: logits)
            return filtered(*arguments)

    with torch.no_grad():
        [expected] = theirs([as_theirs(picture)])
        theirs.rpn.filter_proposals, theirs.rpn.score_thresh = ranked_by_logits, -torch.inf
        [by_logits] = theirs([as_theirs(picture)])
    assert (torch.cat([level.flatten() for level in logits]).sigmoid() == 1).double().mean() > 0.05
    assert (matched(found, by_logits) < 0).sum() <= EXCHANGED
    assert (matched(found, expected) < 0).sum() > EXCHANGED


def check_keypoints(found, expected, places):
    """But for the few whose heatmaps have two cells that are nearly equal, keypoints lie where they should.

    One detection may have all of its own: its box is as large as those that rounding moves from level to level.
    """
    both = places >= 0
    keypoints = found.keypoints[places[both]]
    distance = (keypoints[..., :2] - expected["keypoints"][both, :, :2]).abs().amax(-1)
    same = (distance <= PIXELS).double().mean(1).argsort()[EXCHANGED:]
    assert (distance[same] <= PIXELS).double().mean() >= 0.99
    scores = expected["keypoints_scores"][both]
    torch.testing.assert_close(keypoints[same, :, 2], scores[same], rtol=0, atol=10 * SCORE)


def matched(found, expected):
    """For each of the expected detections the place of the same among those found; -1 where there is none."""
    boxes = (found.boxes[None] - expected["boxes"][:, None]).abs().amax(2)
    same = found.labels[None] == expected["labels"][:, None] - 1
    same &= (found.scores[None] - expected["scores"][:, None]).abs() <= SCORE
    nearest = boxes.masked_fill(~same, torch.inf).min(1)
    return torch.where(nearest.values <= PIXELS, nearest.indices, -1)


def check_masks(found, expected, places):
    """At most a thousandth of the pixels along the masks' borders differ.

    A mask is left out if a corner of its enlarged box is so near to a whole pixel that rounding decides to which
    torchvision cuts it.
    """
    boxes = expected["boxes"]
    size = 28
    centre, half = (boxes[:, 2:] + boxes[:, :2]) / 2, (boxes[:, 2:] - boxes[:, :2]) / 2 * ((size + 2) / size)
    corners = torch.cat([centre - half, centre + half], 1)
    clear = ((corners - corners.round()).abs() > PIXELS).all(1) & (places >= 0)
    assert clear.sum() >= 20
    wrong = border = 0
    for theirs, place in zip(expected["masks"][clear, 0], places[clear].tolist(), strict=True):
        there = (theirs >= 0.5).numpy()
        wrong += int((there ^ coco_mask.decode(found.masks[place]).astype(bool)).sum())
        border += int(borders(there))
    assert border > 1000
    assert wrong <= max(border / 1000, 2), f"{wrong} of {border} border pixels differ"


def borders(mask):
    """The number of pixels of a mask that have a neighbour outside of it."""
    inner = np.pad(mask, 1)
    inner = inner[1:-1, :-2] & inner[1:-1, 2:] & inner[:-2, 1:-1] & inner[2:, 1:-1]
    return (mask & ~inner).sum()


@pytest.mark.parametrize(
    "name",
    [
        "maskrcnn_resnet50_fpn",
        pytest.param("maskrcnn_resnet50_fpn_v2", marks=pytest.mark.slow),
        "keypointrcnn_resnet50_fpn",
    ],
)
def test_losses_and_gradients_of_the_same_samples_are_theirs(name, tmp_path, monkeypatch):
    """In double precision, where no ReLU switches on rounding."""
    monkeypatch.setattr(matching, "_choose", first_ones)
    monkeypatch.setattr(torch, "randperm", lambda count, **_: torch.arange(count))
    theirs = copy.deepcopy(detector(name, 0))
    ours = converted(theirs, tmp_path, "model.backbone.frozen_stages=0")
    picture = pictures()[0]
    truth = target(len(ours.classes), bitmaps=True)
    theirs, model = training(theirs).double(), training(ours.model).double()

    masks = torch.from_numpy(np.stack([coco_mask.decode(mask) for mask in truth.masks.segmentations]))
    their_truth = {"boxes": truth.boxes.double(), "labels": truth.labels + 1}
    their_truth |= {"masks": masks, "keypoints": truth.keypoints}
    expected = theirs([as_theirs(picture).double()], [dict(their_truth)])
    pixels = inference(picture, ours.config.data.resize)
    images, [shrunk] = theirs.transform([as_theirs(picture).double()], [dict(their_truth)])
    preprocessed = model.preprocess(ImageBatch.collate([pixels])).double()
    torch.testing.assert_close(preprocessed, images.tensors, rtol=0, atol=1e-4)
    monkeypatch.setattr(model.preprocess, "forward", lambda batch: images.tensors)
    encoded = [coco_mask.encode(np.asfortranarray(mask)) for mask in shrunk["masks"].numpy()]
    boxes, none = shrunk["boxes"], torch.zeros(0, 4, dtype=torch.float64)
    our_masks = Masks(encoded, torch.eye(2, 3, dtype=torch.float64))
    our_truth = Targets(boxes, truth.labels, none, our_masks, keypoints=shrunk["keypoints"])
    losses = model(ImageBatch.collate([pixels]), [our_truth])
    assert set(losses) == {LOSSES[name] for name in expected}
    for name, loss in expected.items():
        assert losses[LOSSES[name]].item() == pytest.approx(loss.item(), rel=1e-4), name

    sum(expected.values()).backward()
    sum(losses.values()).backward()
    gradients = {n: p.grad for n, p in theirs.named_parameters() if p.grad is not None}
    renamed = rename(gradients, names.NAMES).tensors
    ours_by_name = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    assert ours_by_name.keys() == renamed.keys()
    assert len(renamed) > 80
    for parameter, gradient in renamed.items():
        error = (ours_by_name[parameter] - gradient).norm()
        # The bias of a heatmap, on which a softmax does not depend, has a gradient of rounding alone.
        assert error <= 1e-4 * gradient.norm() + 1e-7, f"{parameter}: off by {error / gradient.norm():.1e}"
