"""Panoptic quality equals that of COCO's panopticapi, whose figures are recorded here, and of a plain loop."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from mrcnn_cli.errors import UserError
from mrcnn_cli.evaluation.panoptic import PanopticQuality, segments_info
from mrcnn_cli.structures import Segments

SAMPLE = Path(__file__).parents[3] / "shared" / "data" / "converters" / "panopticapi_sample"
CATEGORIES = [{"id": 10 * i, "name": f"class {i}", "isthing": int(i <= 3)} for i in range(1, 7)]

# What panopticapi's pq_compute_single_core says of `pictures(range(40))` and of the sample moved by `moved`.
RECORDED = {
    "pq": 0.37699295272479766,
    "sq": 0.7512870401453285,
    "rq": 0.5018708798155999,
    "pq_categories": 5,
    "pq_things": 0.35291281718226086,
    "sq_things": 0.7470541393181503,
    "rq_things": 0.47306327306327306,
    "pq_categories_things": 3,
    "pq_stuff": 0.4131131560386029,
    "sq_stuff": 0.7576363913860957,
    "rq_stuff": 0.5450822899440901,
    "pq_categories_stuff": 2,
}
RECORDED_OF_SAMPLE = {
    "pq": 0.4460938753554884,
    "sq": 0.5600708985310178,
    "rq": 0.5778423772609819,
    "pq_categories": 8,
    "pq_things": 0.26976554494919697,
    "sq_things": 0.4977195913002558,
    "rq_things": 0.4056847545219638,
    "pq_categories_things": 4,
    "pq_stuff": 0.6224222057617798,
    "sq_stuff": 0.6224222057617798,
    "rq_stuff": 0.75,
    "pq_categories_stuff": 4,
}


def picture(seed, height=60, width=80):
    """(true ids, true segments, predicted ids, predicted segments): crowds, void, splits, misses, wrong categories."""
    random = np.random.default_rng(seed)
    truth = np.zeros((height, width), np.int64)
    for number in range(1, 13):
        y, x, rows, columns = random.integers(0, [height - 8, width - 8, 30, 40])
        truth[y : y + rows + 4, x : x + columns + 4] = number * 70001
    found = np.roll(truth, random.integers(-2, 3, 2), (0, 1)) // 70001
    category = {number: 10 * int(random.integers(1, 6)) for number in range(1, 13)}
    info = [{"id": number * 70001, "category_id": category[number], "iscrowd": 0} for number in range(1, 13)]
    for entry in info:
        entry["iscrowd"] = int(entry["category_id"] <= 30 and random.random() < 0.25)
    for number in range(1, 13):
        draw, inside = random.random(), found == number
        part = inside & (np.arange(width) % 7 < 3)
        if draw < 0.2:
            found[inside] = 0
        elif draw < 0.35:
            category[number] = 10 * int(random.integers(1, 6))
        elif draw < 0.5 and part.any() and (inside & ~part).any():
            found[part] = number + 20
            category[number + 20] = category[number]
    left = int(random.integers(0, width - 10))
    truth[:, left : left + 10] = 0
    info = [{**entry, "area": int((truth == entry["id"]).sum())} for entry in info if (truth == entry["id"]).any()]
    present = np.unique(found[found > 0]).tolist()
    return truth, info, found, [{"id": number, "category_id": category[number]} for number in present]


def moved(truth, info):
    """A prediction made of the truth: moved, every fifth segment missing, every seventh of another category."""
    found = np.roll(truth, (3, 5), (0, 1))
    categories = sorted({entry["category_id"] for entry in info})
    segments = []
    for place, entry in enumerate(sorted(info, key=lambda entry: entry["id"])):
        number, category = entry["id"], entry["category_id"]
        if place % 5 == 4:
            found[found == number] = 0
            continue
        if place % 7 == 6:
            category = categories[(categories.index(category) + 1) % len(categories)]
        if (found == number).any():
            segments.append({"id": number, "category_id": category})
    return found, segments


def counted_by_loops(pictures):
    """category -> [sum of overlaps, matches, false positives, misses], by the words of the paper and COCO's rules."""
    counts = {category["id"]: [0.0, 0, 0, 0] for category in CATEGORIES}
    for truth, info, found, found_info in pictures:
        matched_truth, matched_found = set(), set()
        for t in info:
            for f in found_info:
                inside_t, inside_f = truth == t["id"], found == f["id"]
                shared = (inside_t & inside_f).sum()
                overlap = shared / ((inside_t | inside_f).sum() - (inside_f & (truth == 0)).sum())
                if t["category_id"] == f["category_id"] and overlap > 0.5 and not t["iscrowd"]:
                    matched_truth.add(t["id"])
                    matched_found.add(f["id"])
                    counts[t["category_id"]][0] += overlap
                    counts[t["category_id"]][1] += 1
        for t in info:
            if not t["iscrowd"] and t["id"] not in matched_truth:
                counts[t["category_id"]][3] += 1
        for f in found_info:
            if f["id"] in matched_found:
                continue
            inside = found == f["id"]
            excused = (inside & (truth == 0)).sum()
            for t in [t for t in info if t["iscrowd"] and t["category_id"] == f["category_id"]][-1:]:
                excused += (inside & (truth == t["id"])).sum()
            if excused / inside.sum() <= 0.5:
                counts[f["category_id"]][2] += 1
    return counts


def quality(pictures, categories=CATEGORIES):
    counter = PanopticQuality(categories)
    for one in pictures:
        counter.add(*one)
    return counter.metrics()


def test_metrics_are_those_that_panopticapi_gives():
    metrics = quality(picture(seed) for seed in range(40))
    for key, value in RECORDED.items():
        assert metrics[key] == pytest.approx(value, abs=1e-12), key


@pytest.mark.parametrize("seed", range(20))
def test_each_class_is_counted_as_a_plain_loop_counts(seed):
    pictures = [picture(100 + seed), picture(200 + seed)]
    counter = PanopticQuality(CATEGORIES)
    for one in pictures:
        counter.add(*one)
    for place, (overlaps, matched, wrong, missed) in enumerate(counted_by_loops(pictures).values()):
        assert sum(counter.overlaps[place]) == pytest.approx(overlaps, abs=1e-12)
        assert (counter.matched[place], counter.wrong[place], counter.missed[place]) == (matched, wrong, missed)


def test_the_truth_predicted_is_perfect_and_classes_that_never_occur_do_not_count():
    truth, info, _, _ = picture(0)
    metrics = quality([(truth, info, truth, [entry for entry in info if not entry["iscrowd"]] + crowds_of(info))])
    assert metrics["pq"] == metrics["sq"] == metrics["rq"] == 1.0
    assert metrics["classes"]["class 6"] == {"pq": None, "sq": None, "rq": None}
    present = {entry["category_id"] for entry in info if not entry["iscrowd"]}
    assert metrics["pq_categories"] == len(present)


def test_pictures_counted_apart_in_any_order_have_the_bits_of_those_counted_together():
    pictures = [picture(seed) for seed in range(30)]
    together = quality(pictures)
    for start in (1, 11, 17):
        counter = PanopticQuality(CATEGORIES)
        for part in (pictures[start:], pictures[:start]):
            other = PanopticQuality(CATEGORIES)
            for one in part:
                other.add(*one)
            counter.merge(json.loads(json.dumps(other.counts())))
        assert counter.metrics() == together


def crowds_of(info):
    return [{"id": entry["id"], "category_id": entry["category_id"]} for entry in info if entry["iscrowd"]]


def test_nothing_to_count_has_no_quality():
    metrics = PanopticQuality(CATEGORIES).metrics()
    assert metrics["pq"] is metrics["sq_things"] is metrics["rq_stuff"] is None
    assert metrics["pq_categories"] == 0


def test_ids_of_a_truth_that_are_not_listed_are_neither_void_nor_a_segment():
    truth = np.array([[5, 5, 5, 9, 9]])
    info, found_info = [{"id": 5, "category_id": 10}], [{"id": 1, "category_id": 10}]
    found = np.array([[1, 1, 1, 1, 1]])
    assert quality([(truth, info, found, found_info)])["sq"] == pytest.approx(3 / 5)
    assert quality([(np.where(truth == 9, 0, truth), info, found, found_info)])["sq"] == 1.0


@pytest.mark.parametrize(
    ("found", "info", "message"),
    [
        ([[1, 2]], [{"id": 1, "category_id": 10}], "predicted ids of the map are not in 'segments_info'"),
        ([[1, 1]], [{"id": 1, "category_id": 10}, {"id": 4, "category_id": 10}], "segment 4 has no pixels"),
        ([[1, 1]], [{"id": 1, "category_id": 77}], "unknown category_id 77"),
        ([[1, 1, 1]], [{"id": 1, "category_id": 10}], r"the truth is 1 x 2 .* the prediction 1 x 3"),
    ],
)
def test_predictions_that_contradict_themselves_are_named(found, info, message):
    with pytest.raises(UserError, match=f"a.png: .*{message}"):
        PanopticQuality(CATEGORIES).add(
            np.array([[3, 3]]), [{"id": 3, "category_id": 10}], np.array(found), info, "a.png"
        )


def test_segments_become_entries_of_the_format():
    ids = torch.tensor([[0, 1, 1], [2, 2, 1]], dtype=torch.int32)
    segments = Segments(ids, torch.tensor([1, 2]), torch.tensor([0.75, 1.0]))
    thing, stuff = segments_info(segments, (5, 6, 90), 2)
    assert thing == {
        "id": 1,
        "category_id": 6,
        "isthing": 1,
        "area": 3,
        "bbox": [1, 0, 2, 2],
        "iscrowd": 0,
        "score": 0.75,
    }
    assert stuff == {"id": 2, "category_id": 90, "isthing": 0, "area": 2, "bbox": [0, 1, 2, 1], "iscrowd": 0}


@pytest.mark.skipif(not SAMPLE.is_dir(), reason="needs panopticapi's sample in ../shared")
def test_metrics_of_panopticapis_sample_are_those_that_it_gives_itself():
    from mrcnn_cli.data.panoptic import read_ids

    content = json.loads((SAMPLE / "panoptic_examples.json").read_text())
    counter = PanopticQuality(content["categories"])
    for entry in content["annotations"]:
        truth, info = read_ids(SAMPLE / "panoptic_examples" / entry["file_name"]), entry["segments_info"]
        counter.add(truth, info, *moved(truth, info))
    metrics = counter.metrics()
    for key, value in RECORDED_OF_SAMPLE.items():
        assert metrics[key] == pytest.approx(value, abs=1e-12), key
