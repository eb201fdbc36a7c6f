"""Keypoint metrics: equal to pycocotools' own, and object keypoint similarity by hand."""

import copy
import json
import math

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mrcnn_cli.errors import UserError
from mrcnn_cli.evaluation import coco
from mrcnn_cli.evaluation.keypoints import COCO_SIGMAS, UNIFORM_SIGMA, keypoint_sigmas
from mrcnn_cli.structures import Detections

NAMES = list(COCO_SIGMAS)
STATISTICS = ["ap", "ap50", "ap75", "ap_medium", "ap_large", "ar20", None, None, "ar_medium", "ar_large"]


def scene(seed=0, images=5, people=4, points=17, noise=0.03):
    """People with keypoints, a few crowds and some without any keypoint; results with noise, misses and duplicates."""
    random = np.random.default_rng(seed)
    annotations, results = [], []
    for image in range(1, images + 1):
        for _ in range(people):
            x, y = random.uniform(0, 300, 2)
            width, height = random.uniform(30, 250, 2)
            at = random.uniform((x, y), (x + width, y + height), (points, 2))
            seen = random.integers(0, 3, points) if random.random() < 0.85 else np.zeros(points, int)
            keypoints = np.concatenate([at * (seen > 0)[:, None], seen[:, None]], 1)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image,
                    "category_id": 1,
                    "bbox": [x, y, width, height],
                    "area": width * height * 0.6,
                    "iscrowd": int(random.random() < 0.1),
                    "keypoints": keypoints.reshape(-1).tolist(),
                    "num_keypoints": int((seen > 0).sum()),
                }
            )
            for _ in range(random.integers(0, 3)):
                found = at + random.normal(0, noise * math.sqrt(width * height), (points, 2))
                entry = {"image_id": image, "category_id": 1, "bbox": [x, y, width, height]}
                values = np.concatenate([found, random.random((points, 1))], 1).reshape(-1).tolist()
                results.append({**entry, "score": float(random.random()), "keypoints": values})
    truth = {
        "images": [{"id": i, "file_name": f"{i}.jpg", "height": 600, "width": 600} for i in range(1, images + 1)],
        "categories": [{"id": 1, "name": "person", "keypoints": NAMES[:points], "skeleton": []}],
        "annotations": annotations,
    }
    return truth, results


def peer(truth, results, sigmas):
    """The ten numbers of pycocotools used as its manual says."""
    answers = COCO()
    answers.dataset = copy.deepcopy(truth) | {"info": {}}
    answers.createIndex()
    evaluator = COCOeval(answers, answers.loadRes(copy.deepcopy(results)), "keypoints")
    evaluator.params.kpt_oks_sigmas = np.array(sigmas)
    evaluator.evaluate()
    evaluator.accumulate()
    evaluator.summarize()
    return evaluator.stats.tolist()


@pytest.mark.parametrize(("seed", "points"), [(0, 17), (1, 17), (2, 17), (3, 4)])
def test_the_numbers_are_those_of_summarize(seed, points):
    truth, results = scene(seed, points=points)
    sigmas = keypoint_sigmas(NAMES[:points])
    metrics = coco.evaluate(truth, results, masks=False, keypoint_sigmas=sigmas)
    expected = peer(truth, [{k: v for k, v in entry.items() if k != "bbox"} for entry in results], sigmas)
    compared = [(metrics[f"keypoint_{key}"], value) for key, value in zip(STATISTICS, expected, strict=True) if key]
    assert [-1 if found is None else found for found, _ in compared] == pytest.approx(
        [v for _, v in compared], abs=1e-12
    )
    assert 0.05 < metrics["keypoint_ap"] < 0.95
    assert metrics["classes"]["person"]["keypoint_ap"] == pytest.approx(metrics["keypoint_ap"])
    assert metrics["keypoint_sigmas"] == list(sigmas)


@pytest.mark.parametrize(("similarity", "ap"), [(0.501, 0.1), (0.749, 0.5), (0.951, 1.0), (0.49, 0.0)])
def test_average_precision_counts_the_thresholds_below_the_similarity(similarity, ap):
    sigma, area = 0.1, 5000.0
    distance = math.sqrt(-math.log(similarity) * 2 * area * (2 * sigma) ** 2)
    annotation = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 100, 50], "area": area}
    truth = {
        "images": [{"id": 1, "height": 100, "width": 100}],
        "categories": [{"id": 1, "name": "mouse"}],
        "annotations": [{**annotation, "keypoints": [20, 20, 2, 0, 0, 0]}],  # what is not labelled does not count
    }
    entry = {"image_id": 1, "category_id": 1, "score": 0.5, "bbox": [0, 0, 100, 50]}
    results = [{**entry, "keypoints": [20 + distance, 20, 0.1, 99, 99, 0.1]}]
    metrics = coco.evaluate(truth, results, masks=False, keypoint_sigmas=[sigma, sigma])
    assert metrics["keypoint_ap"] == pytest.approx(ap)


def test_the_truth_found_again_is_perfect_and_is_not_changed():
    truth, _ = scene(4)
    results = [
        {**{key: a[key] for key in ("image_id", "category_id", "bbox", "keypoints")}, "score": 0.9}
        for a in truth["annotations"]
        if a["num_keypoints"] and not a["iscrowd"]
    ]
    before = copy.deepcopy((truth, results))
    metrics = coco.evaluate(truth, results, masks=False, keypoint_sigmas=keypoint_sigmas(NAMES))
    assert metrics["keypoint_ap"] == metrics["keypoint_ar20"] == 1
    assert (truth, results) == before


def test_the_number_of_detections_that_count_can_be_raised():
    truth, _ = scene(5, images=1, people=40)
    results = [
        {**{key: a[key] for key in ("image_id", "category_id", "bbox", "keypoints")}, "score": 0.9}
        for a in truth["annotations"]
    ]
    few = coco.evaluate(truth, results, masks=False, keypoint_sigmas=keypoint_sigmas(NAMES))
    many = coco.evaluate(
        truth, results, masks=False, keypoint_sigmas=keypoint_sigmas(NAMES), max_keypoint_detections=50
    )
    assert few["keypoint_ar20"] < 0.7
    assert many["keypoint_ar50"] == 1


def test_keypoints_are_left_aside_where_nobody_wants_them_or_the_truth_has_none():
    truth, results = scene(0)
    assert "keypoint_ap" not in coco.evaluate(truth, results, masks=False)
    for annotation in truth["annotations"]:
        del annotation["keypoints"]
    assert "keypoint_ap" not in coco.evaluate(truth, results, masks=False, keypoint_sigmas=keypoint_sigmas(NAMES))


@pytest.mark.parametrize("keypoints", [None, [1.0, 2.0, 0.5]])
def test_results_without_as_many_keypoints_are_refused(keypoints):
    truth, results = scene(0)
    results[0]["keypoints"] = keypoints
    with pytest.raises(UserError, match="an entry has no 'keypoints' of 17 points"):
        coco.evaluate(truth, results, masks=False, keypoint_sigmas=keypoint_sigmas(NAMES))


def test_a_truth_with_another_number_of_keypoints_is_refused():
    truth, results = scene(0)
    with pytest.raises(UserError, match="an object has 51 numbers for its 4 keypoints"):
        coco.evaluate(truth, results, masks=False, keypoint_sigmas=[0.1] * 4)


def test_sigmas_are_cocos_for_cocos_names_and_uniform_elsewhere():
    assert keypoint_sigmas(NAMES) == pytest.approx(COCOeval(iouType="keypoints").params.kpt_oks_sigmas)
    assert keypoint_sigmas(NAMES[::-1]) == keypoint_sigmas(NAMES)[::-1]
    assert keypoint_sigmas(["snout", "tail"]) == (UNIFORM_SIGMA, UNIFORM_SIGMA)
    assert keypoint_sigmas(NAMES[:5]) == (UNIFORM_SIGMA,) * 5
    assert keypoint_sigmas(["snout", "tail"], 0.1) == (0.1, 0.1)
    assert keypoint_sigmas(NAMES[:2], [0.1, 0.2]) == (0.1, 0.2)
    with pytest.raises(UserError, match=r"evaluate.keypoint_sigmas: has 3 values, but there are 2 keypoints \(a, b\)"):
        keypoint_sigmas(["a", "b"], [0.1, 0.1, 0.1])


def detected():
    keypoints = torch.tensor([[[10.5, 20.25, 0.9], [30.5, 40.5, 0.1]]])
    return Detections(
        torch.tensor([[1.0, 2.0, 50.0, 60.0]]), torch.tensor([0.75]), torch.tensor([0]), (100, 100), None, keypoints
    )


def test_results_are_in_the_coordinates_of_the_file():
    [entry] = coco.results(detected(), 7, [3], "a.jpg", 0.5)
    assert entry["keypoints"] == pytest.approx([10, 19.75, 0.9, 30, 40, 0.1])
    assert json.loads(json.dumps(entry)) == entry
    back = coco.detections([entry], [3], (100, 100), 0.5)
    torch.testing.assert_close(back.keypoints, detected().keypoints)
    assert coco.results(detected(), 7, [3], "a.jpg")[0]["keypoints"][:2] == [10.5, 20.25]


def test_the_truth_is_drawn_in_our_coordinates_without_what_is_not_labelled():
    truth, _ = scene(0)
    truth["annotations"][0] |= {"iscrowd": 0, "keypoints": [4.0, 5.0, 1] + [9.0, 9.0, 2] * 8 + [0, 0, 0] * 8}
    found = coco.truth_detections(truth, 1, [1], 0.5)
    assert found.keypoints[0, 0].tolist() == [4.5, 5.5, 1]
    assert found.keypoints[0, :, 2].tolist() == [1] * 9 + [0] * 8
    for annotation in truth["annotations"]:
        del annotation["keypoints"]
    assert coco.truth_detections(truth, 1, [1]).keypoints is None
