"""COCO metrics: equal to pycocotools' own, on files from elsewhere and on small scenes whose answer is known."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from pycocotools import mask as run_lengths
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mrcnn_cli.errors import UserError
from mrcnn_cli.evaluation import coco
from mrcnn_cli.structures import Detections

REFERENCE = Path(__file__).parents[3] / "shared" / "data" / "evaluator"
STATISTICS = [f"ap{suffix}" for suffix in ("", "50", "75", "_small", "_medium", "_large")] + [
    f"ar{suffix}" for suffix in ("1", "10", "100", "_small", "_medium", "_large")
]  # the order of COCOeval.stats
PAIRS = [
    "cocoapi_bbox",
    "cocoapi_segm",
    "cocoapi_segm_as_bbox",
    "coco_free_train_bbox",
    "coco_free_train_segm",
    "coco_free_val_bbox",
    "coco_free_val_segm",
]


def rectangle(x, y, width, height):
    return [[x, y, x + width, y, x + width, y + height, x, y + height]]


def scene(objects, size=(200, 300), images=2, names=("cell", "bead")):
    """A COCO truth from (image, category, [x, y, w, h]) triples whose masks fill their boxes."""
    return {
        "images": [{"id": i, "file_name": f"{i}.png", "height": size[0], "width": size[1]} for i in range(images)],
        "categories": [{"id": 10 * (k + 1), "name": name} for k, name in enumerate(names)],
        "annotations": [
            {
                "id": number,
                "image_id": image,
                "category_id": category,
                "bbox": list(map(float, box)),
                "area": float(box[2] * box[3]),
                "iscrowd": 0,
                "segmentation": rectangle(*box),
            }
            for number, (image, category, box) in enumerate(objects, start=1)
        ],
    }


def perfect(truth, score=0.9):
    """A results list that repeats the truth."""
    sizes = {image["id"]: (image["height"], image["width"]) for image in truth["images"]}
    entries = []
    for annotation in truth["annotations"]:
        mask = run_lengths.merge(run_lengths.frPyObjects(annotation["segmentation"], *sizes[annotation["image_id"]]))
        entries.append(
            {
                "image_id": annotation["image_id"],
                "category_id": annotation["category_id"],
                "bbox": list(annotation["bbox"]),
                "score": score,
                "segmentation": {"size": list(mask["size"]), "counts": mask["counts"].decode()},
            }
        )
    return entries


def noisy(seed=0, images=6, objects=14):
    """A made-up truth and results with misses, duplicates, shifts and wrong classes."""
    random = np.random.default_rng(seed)
    triples = [
        (int(random.integers(images)), int(random.choice([10, 20])), [int(v) for v in (*at, *extent)])
        for at, extent in zip(
            random.integers(0, 100, (images * objects, 2)), random.integers(6, 100, (images * objects, 2)), strict=True
        )
    ]
    truth = scene(triples, images=images)
    for annotation in truth["annotations"][::9]:
        annotation["iscrowd"] = 1
    moved = copy.deepcopy(truth)
    for annotation in moved["annotations"]:
        x, y, width, height = annotation["bbox"]
        shift = random.normal(0, 0.08, 2) * (width, height)
        box = [float(max(x + shift[0], 0)), float(max(y + shift[1], 0)), width, height]
        annotation["bbox"], annotation["segmentation"] = box, rectangle(*box)
        if random.random() < 0.1:
            annotation["category_id"] = 30 - annotation["category_id"]
    entries = [entry for entry in perfect(moved) + perfect(moved) if random.random() < 0.55]
    for entry in entries:
        entry["score"] = float(random.random())
    return truth, entries


def peer(truth, entries, iou_type, capsys):
    """The twelve numbers of pycocotools used as its manual says."""
    answers = COCO()
    answers.dataset = copy.deepcopy(truth) | {"info": {}}
    answers.createIndex()
    entries = copy.deepcopy(entries)
    if iou_type == "segm":
        for entry in entries:
            entry.pop("bbox", None)
    evaluator = COCOeval(answers, answers.loadRes(entries), iou_type)
    evaluator.evaluate()
    evaluator.accumulate()
    evaluator.summarize()
    capsys.readouterr()
    return evaluator.stats.tolist()


def numbers(metrics, kind):
    return [-1 if metrics[f"{kind}_{key}"] is None else metrics[f"{kind}_{key}"] for key in STATISTICS]


@pytest.mark.parametrize("pair", PAIRS)
def test_the_numbers_are_those_that_pycocotools_gave_on_published_files(pair):
    if not REFERENCE.is_dir():
        pytest.skip("the evaluator's reference files are not beside this checkout (../shared/data/evaluator)")
    expected = json.loads((REFERENCE / "expected.json").read_text())[pair]
    kind = {"bbox": "box", "segm": "mask"}[expected["iou_type"]]
    truth = json.loads((REFERENCE / expected["gt"]).read_text())
    metrics = coco.evaluate(truth, json.loads((REFERENCE / expected["dt"]).read_text()), masks=kind == "mask")
    assert numbers(metrics, kind) == pytest.approx(expected["stats"], abs=1e-12)
    names = {str(category["id"]): category["name"] for category in truth["categories"]}
    per_class = {names[category]: value for category, value in expected["ap_per_category"].items()}
    found = {name: -1 if v[f"{kind}_ap"] is None else v[f"{kind}_ap"] for name, v in metrics["classes"].items()}
    assert {name: found[name] for name in per_class} == pytest.approx(per_class, abs=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_the_numbers_are_those_of_summarize_on_made_up_scenes(seed, capsys):
    truth, entries = noisy(seed)
    metrics = coco.evaluate(truth, entries, masks=True)
    assert numbers(metrics, "box") == pytest.approx(peer(truth, entries, "bbox", capsys), abs=1e-12)
    assert numbers(metrics, "mask") == pytest.approx(peer(truth, entries, "segm", capsys), abs=1e-12)
    assert 0.05 < metrics["mask_ap"] < 0.95  # a scene that tells good from bad


def test_the_truth_repeated_scores_one_and_everything_is_counted():
    truth = scene([(0, 10, [5, 5, 20, 20]), (0, 20, [60, 60, 50, 50]), (1, 10, [0, 0, 120, 120])])
    metrics = coco.evaluate(truth, perfect(truth), masks=True)
    for kind in ("box", "mask"):
        for key in ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large", "ar1", "ar100"):
            assert metrics[f"{kind}_{key}"] == pytest.approx(1.0)
    assert metrics["classes"] == {
        "cell": {"box_ap": pytest.approx(1.0), "mask_ap": pytest.approx(1.0)},
        "bead": {"box_ap": pytest.approx(1.0), "mask_ap": pytest.approx(1.0)},
    }
    assert (metrics["images"], metrics["objects"], metrics["detections"]) == (2, 3, 3)
    json.dumps(metrics, allow_nan=False)


def test_nothing_is_printed_and_nothing_that_was_given_is_changed(capsys):
    truth, entries = noisy(1)
    before = copy.deepcopy((truth, entries))
    coco.evaluate(truth, entries, masks=True)
    assert capsys.readouterr() == ("", "")
    assert (truth, entries) == before


def test_no_detections_score_zero_and_sizes_without_truth_score_none():
    truth = scene([(0, 10, [5, 5, 20, 20])])
    metrics = coco.evaluate(truth, [], masks=True)
    assert metrics["box_ap"] == metrics["mask_ap50"] == metrics["box_ar100"] == metrics["box_ap_small"] == 0.0
    assert metrics["box_ap_large"] is None
    assert metrics["mask_ar_medium"] is None
    assert metrics["classes"]["bead"] == {"box_ap": None, "mask_ap": None}
    assert metrics["detections"] == 0


@pytest.mark.parametrize("empty", [{"annotations": []}, {"annotations": [], "categories": []}])
def test_a_truth_without_objects_scores_none(empty):
    metrics = coco.evaluate(scene([]) | empty, [], masks=True)
    assert metrics["box_ap"] is None
    assert metrics["objects"] == 0


def test_a_truth_without_masks_is_evaluated_by_boxes_alone():
    truth = scene([(0, 10, [5, 5, 20, 20])])
    entries = perfect(truth)
    del truth["annotations"][0]["segmentation"]
    metrics = coco.evaluate(truth, entries, masks=True)
    assert metrics["box_ap"] == pytest.approx(1.0)
    assert not [key for key in metrics if key.startswith("mask")]


def test_masks_are_left_aside_when_not_asked_for():
    truth = scene([(0, 10, [5, 5, 20, 20])])
    metrics = coco.evaluate(truth, perfect(truth), masks=False)
    assert not [key for key in metrics if key.startswith("mask")]
    assert metrics["classes"]["cell"] == {"box_ap": pytest.approx(1.0)}


def test_more_than_a_hundred_objects_in_an_image_need_a_higher_limit():
    boxes = [(0, 10, [12 * column, 12 * row, 10, 10]) for row in range(12) for column in range(12)]
    truth = scene(boxes, images=1)
    entries = perfect(truth)
    default, raised = (coco.evaluate(truth, entries, masks=True, max_detections=limit) for limit in (100, 300))
    assert default["box_ar100"] == pytest.approx(100 / 144)
    assert default["box_ap"] < 0.75
    assert raised["box_ar300"] == raised["box_ap"] == raised["mask_ap"] == raised["mask_ap75"] == pytest.approx(1.0)
    assert raised["mask_ap_small"] == pytest.approx(1.0)
    assert "box_ar100" not in raised


def test_a_limit_below_ten_keeps_only_the_recalls_up_to_it():
    truth = scene([(0, 10, [30 * k, 5, 20, 20]) for k in range(8)])
    metrics = coco.evaluate(truth, perfect(truth), masks=False, max_detections=4)
    assert metrics["box_ar4"] == pytest.approx(0.5)
    assert metrics["box_ar1"] == pytest.approx(1 / 8)
    assert "box_ar10" not in metrics
    with pytest.raises(UserError, match="at least 1"):
        coco.evaluate(truth, [], masks=False, max_detections=0)


def test_an_object_whose_id_is_zero_can_be_found():
    truth = scene([(0, 10, [5, 5, 20, 20])])
    truth["annotations"][0]["id"] = 0
    assert coco.evaluate(truth, perfect(truth), masks=True)["mask_ap"] == pytest.approx(1.0)


def test_objects_that_share_an_id_or_have_none_all_count():
    truth = scene([(0, 10, [5, 5, 20, 20]), (0, 10, [50, 5, 20, 20]), (1, 20, [9, 9, 30, 30])])
    truth["annotations"][1]["id"] = truth["annotations"][0]["id"]
    del truth["annotations"][2]["id"]
    assert coco.evaluate(truth, perfect(truth), masks=True)["mask_ap"] == pytest.approx(1.0)


def test_what_annotation_files_leave_out_is_filled_in():
    truth, entries = noisy(2)
    for annotation in truth["annotations"]:
        annotation["iscrowd"] = 0
    expected = coco.evaluate(truth, entries, masks=True)
    for annotation in truth["annotations"]:
        del annotation["area"], annotation["iscrowd"], annotation["bbox"]
    assert coco.evaluate(truth, entries, masks=True) == expected


def test_a_crowd_is_neither_missed_nor_a_mistake():
    truth = scene([(0, 10, [5, 5, 20, 20]), (0, 10, [100, 5, 80, 80])])
    entries = perfect(truth)
    truth["annotations"][1]["iscrowd"] = 1
    entries[1]["score"] = 0.99  # before the true positive, so that a false positive would cost precision
    metrics = coco.evaluate(truth, entries, masks=True)
    assert metrics["mask_ap"] == metrics["box_ap"] == pytest.approx(1.0)
    assert metrics["objects"] == 1
    assert coco.evaluate(truth, entries[:1], masks=True)["box_ar100"] == pytest.approx(1.0)


@pytest.mark.parametrize("broken", [[], [[1.0, 2.0, 3.0, 4.0]], {"size": [200, 300], "counts": ""}, None])
def test_an_object_without_a_usable_mask_counts_by_its_box_but_not_by_its_mask(broken):
    truth = scene([(0, 10, [5, 5, 20, 20]), (0, 10, [100, 5, 80, 80])])
    entries = perfect(truth)
    truth["annotations"][1]["segmentation"] = broken
    metrics = coco.evaluate(truth, entries[:1], masks=True)
    assert metrics["mask_ar100"] == pytest.approx(1.0)
    assert metrics["box_ar100"] == pytest.approx(0.5)
    entries[1]["score"] = 0.99
    assert coco.evaluate(truth, entries, masks=True)["mask_ap"] == pytest.approx(1.0)


def test_polygons_and_both_forms_of_run_lengths_are_one_truth():
    truth = scene([(0, 10, [5, 5, 20, 20]), (1, 10, [50, 60, 70, 80])])
    entries = perfect(truth)
    compressed, plain = copy.deepcopy(truth), copy.deepcopy(truth)
    for annotation, entry, other in zip(compressed["annotations"], entries, plain["annotations"], strict=True):
        annotation["segmentation"] = entry["segmentation"]
        x, y, width, height = map(int, annotation["bbox"])
        pixels = np.zeros((200, 300), np.uint8)
        pixels[y : y + height, x : x + width] = 1
        columns = pixels.T.ravel()
        ends = np.flatnonzero(np.diff(columns)) + 1
        counts = np.diff(np.concatenate([[0], ends, [columns.size]])).tolist()
        other["segmentation"] = {"size": [200, 300], "counts": counts}
    expected = coco.evaluate(truth, entries, masks=True)
    assert coco.evaluate(compressed, entries, masks=True) == coco.evaluate(plain, entries, masks=True) == expected


def test_results_without_boxes_are_judged_by_the_boxes_of_their_masks():
    truth = scene([(0, 10, [5, 5, 20, 20])])
    entries = perfect(truth)
    del entries[0]["bbox"]
    assert coco.evaluate(truth, entries, masks=True)["box_ap"] == pytest.approx(1.0)


def test_classes_of_the_same_name_are_told_apart():
    truth = scene([(0, 10, [5, 5, 20, 20])], names=("cell", "cell"))
    assert list(coco.evaluate(truth, [], masks=False)["classes"]) == ["cell", "cell (20)"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t, r: t.pop("images"), "'images'"),
        (lambda t, r: t.update(annotations={}), "'annotations'"),
        (lambda t, r: t["annotations"][0].update(image_id=77), "77"),
        (lambda t, r: r[0].update(image_id=78), "78"),
        (lambda t, r: r[0].pop("segmentation"), "no 'segmentation'"),
        (lambda t, r: (r[0].pop("segmentation"), r[0].pop("bbox")), "no 'segmentation'"),
        (lambda t, r: r[0].update(segmentation=[[1, 2]]), "run-length"),
        (lambda t, r: (t["annotations"][0].pop("bbox"), t["annotations"][0].pop("segmentation")), "neither"),
        (lambda t, r: t["images"][0].pop("height"), "'height'"),
    ],
)
def test_files_that_do_not_fit_are_refused_in_one_line(change, words):
    truth = scene([(0, 10, [5, 5, 20, 20]), (0, 10, [50, 5, 20, 20])])
    entries = perfect(truth)
    change(truth, entries)
    with pytest.raises(UserError, match=words) as caught:
        coco.evaluate(truth, entries, masks=True)
    assert "\n" not in str(caught.value)


def detections(masks=True):
    pixels = np.zeros((40, 60), np.uint8)
    pixels[5:15, 10:30] = 1
    mask = run_lengths.encode(np.asfortranarray(pixels))
    return Detections(
        boxes=torch.tensor([[10.1, 5.2, 30.3, 15.4], [0, 0, 60, 40]]),
        scores=torch.tensor([0.9, 0.1]),
        labels=torch.tensor([1, 0]),
        size=(40, 60),
        masks=[mask, mask] if masks else None,
    )


def test_results_are_entries_that_json_and_pycocotools_take(tmp_path, capsys):
    entries = coco.results(detections(), 7, [10, 20], "folder/seven.png")
    assert entries[0] == {
        "image_id": 7,
        "category_id": 20,
        "bbox": pytest.approx([10.1, 5.2, 20.2, 10.2], abs=1e-5),
        "score": 0.9,
        "segmentation": {"size": [40, 60], "counts": detections().masks[0]["counts"].decode()},
        "file_name": "folder/seven.png",
    }
    assert json.loads(json.dumps(entries)) == entries
    truth = COCO()
    truth.dataset = scene([]) | {"info": {}, "images": [{"id": 7, "height": 40, "width": 60}]}
    truth.createIndex()
    (tmp_path / "predictions.json").write_text(json.dumps(entries))
    loaded = truth.loadRes(str(tmp_path / "predictions.json"))
    capsys.readouterr()
    assert run_lengths.area(loaded.annToRLE(loaded.anns[1])) == 200
    assert loaded.anns[1]["bbox"] == entries[0]["bbox"]


def test_results_keep_every_bit_of_a_float32():
    boxes = torch.rand(50, 4) * 100
    scores = torch.rand(50)
    found = Detections(boxes, scores, torch.zeros(50, dtype=torch.int64), (100, 100))
    entries = json.loads(json.dumps(coco.results(found, 1, [1], "a.png")))
    assert torch.equal(torch.tensor([entry["score"] for entry in entries]), scores)
    assert torch.equal(torch.tensor([entry["bbox"][:2] for entry in entries]), boxes[:, :2])
    assert torch.equal(torch.tensor([entry["bbox"][2:] for entry in entries]), boxes[:, 2:] - boxes[:, :2])


def test_detections_come_back_from_their_results():
    for found in (detections(), detections(masks=False), detections().take(torch.zeros(0, dtype=torch.int64))):
        entries = json.loads(json.dumps(coco.results(found, 7, [10, 20], "seven.png")))
        back = coco.detections(entries, [10, 20], (40, 60))
        torch.testing.assert_close(back.boxes, found.boxes)
        assert torch.equal(back.scores, found.scores)
        assert torch.equal(back.labels, found.labels)
        assert back.size == (40, 60)
        assert back.masks == (found.masks or None)


def test_results_of_a_model_without_masks_have_no_segmentation():
    assert all("segmentation" not in entry for entry in coco.results(detections(masks=False), 1, [10, 20], "a.png"))


def test_results_of_an_empty_image_are_an_empty_list():
    none = Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64), (4, 4), [])
    assert coco.results(none, 1, [10], "a.png") == []


def test_the_truth_as_detections_scores_one_against_itself():
    truth, _ = noisy(3)
    entries = []
    for image in truth["images"]:
        found = coco.truth_detections(truth, image["id"], [20, 10])
        entries += coco.results(found, image["id"], [20, 10], image["file_name"])
    metrics = coco.evaluate(truth, entries, masks=True)
    assert metrics["mask_ap"] == metrics["box_ap"] == pytest.approx(1.0)
    assert metrics["detections"] == metrics["objects"]


def test_the_truth_as_detections_handles_images_without_objects_and_without_masks():
    truth = scene([(0, 10, [5, 5, 20, 20])])
    assert len(coco.truth_detections(truth, 1, [10, 20])) == 0
    truth["annotations"][0]["segmentation"] = []
    found = coco.truth_detections(truth, 0, [10, 20])
    assert found.masks is None
    assert found.boxes.tolist() == [[5, 5, 25, 25]]
    with pytest.raises(UserError, match="99"):
        coco.truth_detections(truth, 99, [10])
