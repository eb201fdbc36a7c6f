"""COCO files: what is read, what is repaired with a count, and what is refused with a clear line."""

import json
import math

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mrcnn_cli.data.annotations import ImageRecord, ImageRecords
from mrcnn_cli.data.coco import Dataset
from mrcnn_cli.errors import UserError
from mrcnn_cli.ops.run_lengths import run_lengths
from tests.data.conftest import runs


def refused(files, *words: str, **more) -> None:
    with pytest.raises(UserError) as caught:
        files.read(**more)
    text = str(caught.value)
    assert "\n" not in text
    for word in (str(files.path), *words):
        assert word in text, text


def test_a_data_set_is_read_as_the_file_says(files):
    dataset = files.read()
    assert dataset.classes == ("cell",)
    assert dataset.category_ids == (7,)
    assert dataset.warnings == []
    assert dataset.has_masks
    assert [(r.id, r.file_name, r.height, r.width) for r in dataset.images] == [
        (1, "a.png", 40, 60),
        (2, "b.png", 30, 30),
        (5, "c.png", 32, 48),
    ]
    assert len(dataset) == 3
    first, empty, last = dataset.annotations
    assert first.boxes.tolist() == [[5, 4, 15, 16], [30, 20, 38, 26]]
    assert first.boxes.dtype == np.float32
    assert first.ids.tolist() == [11, 12]
    assert first.segmentations == [
        [[5, 4, 15, 4, 15, 16, 5, 16]],
        {"size": [40, 60], "counts": files.annotation(12)["segmentation"]["counts"].encode()},
    ]
    assert len(empty) == 0
    assert empty.boxes.shape == (0, 4)
    assert empty.segmentations == []
    assert last.crowds.tolist() == [False, True]
    assert last.image_id == 5
    image, annotations = dataset.sample(2)
    assert image.shape == (32, 48, 3)
    assert annotations.ids.tolist() == [13, 14]


def test_annotations_of_an_image_may_lie_anywhere_in_the_file(files):
    files.annotations.reverse()
    dataset = files.read()
    assert [annotations.ids.tolist() for annotations in dataset.annotations] == [[12, 11], [], [14, 13]]
    assert dataset.annotations[0].segmentations[1] == [[5, 4, 15, 4, 15, 16, 5, 16]]
    assert dataset.annotations[-1].boxes.tolist() == [[20, 10, 40, 30], [1, 2, 6, 9]]


def test_float_boxes_stay_floats(files):
    files.annotation(11)["bbox"] = [5.25, 4.5, 9.125, 11.0625]
    dataset = files.read()
    assert dataset.annotations[0].boxes[0].tolist() == [5.25, 4.5, 14.375, 15.5625]
    assert dataset.coco()["annotations"][0]["bbox"] == [5.25, 4.5, 9.125, 11.0625]


def test_labels_follow_the_category_ids(files):
    files.content["categories"] = [{"id": 9, "name": "b"}, {"id": 7, "name": "c"}, {"id": 8, "name": "a"}]
    files.annotation(12)["category_id"] = 9
    dataset = files.read()
    assert dataset.classes == ("c", "a", "b")
    assert dataset.category_ids == (7, 8, 9)
    assert dataset.annotations[0].labels.tolist() == [0, 2]


def test_given_classes_set_the_labels_by_name(files):
    files.content["categories"] = [{"id": 9, "name": "b"}, {"id": 7, "name": "c"}]
    dataset = files.read(classes=["a", "b", "c"])
    assert dataset.classes == ("a", "b", "c")
    assert dataset.category_ids[1:] == (9, 7)
    assert dataset.category_ids[0] not in (9, 7)
    assert dataset.annotations[0].labels.tolist() == [2, 2]
    assert {c["id"] for c in dataset.coco()["categories"]} == set(dataset.category_ids)


def test_a_category_that_is_not_among_the_given_classes_is_refused(files):
    refused(files, "'cell'", "'a', 'b'", classes=["a", "b"])


def test_a_missing_annotation_file_is_refused(files):
    with pytest.raises(UserError, match=r"coco\.json: no such annotation file"):
        Dataset.read(files.folder, files.path)


def test_a_folder_is_no_annotation_file(files):
    with pytest.raises(UserError, match="cannot be read"):
        Dataset.read(files.folder, files.folder)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "not JSON"),
        ('{"images": [', "not JSON"),
        ("\ud800", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", "holds a list at the top"),
        ("3", "holds a number at the top"),
        ("{}", "has no 'images'"),
        ('{"images": [], "annotations": []}', "has no 'categories' (but 'images', 'annotations')"),
        ('{"images": {}, "annotations": [], "categories": []}', "'images' is an object"),
        ('{"images": [], "annotations": [7], "categories": []}', "annotations[0] is a number"),
        ('{"images": [], "annotations": null, "categories": []}', "'annotations' is null"),
    ],
)
def test_a_file_that_is_not_coco_is_told_what_coco_needs(files, text, words):
    files.path.write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(UserError) as caught:
        Dataset.read(files.folder, files.path)
    assert words in str(caught.value)
    assert "COCO needs an object with the lists 'images', 'annotations' and 'categories'" in str(caught.value)


def test_no_images_are_refused(files):
    files.content["images"] = []
    refused(files, "'images' is empty")


def test_no_categories_are_refused(files):
    files.content["categories"] = []
    refused(files, "'categories' is empty")


def test_a_missing_folder_is_refused(files):
    files.write()
    with pytest.raises(UserError, match="nowhere: no such folder"):
        Dataset.read(files.folder / "nowhere", files.path)


def test_listed_images_that_do_not_exist_are_counted_and_the_first_is_named(files):
    (files.folder / "b.png").unlink()
    (files.folder / "c.png").unlink()
    refused(files, str(files.folder / "b.png"), "2 of 3 images are missing")


def test_images_may_lie_in_folders_below(files):
    (files.folder / "deep").mkdir()
    (files.folder / "b.png").rename(files.folder / "deep" / "b.png")
    files.images[1]["file_name"] = "deep/b.png"
    assert files.read().sample(1)[0].shape == (30, 30, 3)
    files.images[1]["file_name"] = "deep/d.png"
    refused(files, "d.png", "1 of 3")
    files.images[1]["file_name"] = "deeper/b.png"
    refused(files, "1 of 3")
    files.images[1]["file_name"] = str(files.folder / "deep" / "b.png")
    assert files.read().sample(1)[0].shape == (30, 30, 3)


@pytest.mark.parametrize(("key", "value"), [("id", None), ("id", "1"), ("id", 1.5), ("id", True), ("id", 10**30)])
@pytest.mark.parametrize("table", ["images", "categories"])
def test_ids_must_be_whole_numbers(files, table, key, value):
    files.content[table][0][key] = value
    refused(files, f"{table}[0]", "'id'", "whole number")


@pytest.mark.parametrize("value", [None, 3, ""])
def test_names_must_be_names(files, value):
    files.images[1]["file_name"] = value
    refused(files, "image 2", "'file_name'")
    files.images[1]["file_name"] = "b.png"
    files.content["categories"][0]["name"] = value
    refused(files, "categories[0]", "'name'")


@pytest.mark.parametrize("value", [0, -3, "40", 1.5])
def test_sizes_must_be_sizes(files, value):
    files.images[0]["height"] = value
    refused(files, "a.png")


def test_sizes_that_are_missing_are_taken_from_the_files(files):
    del files.images[0]["height"]
    files.images[2]["width"] = None
    dataset = files.read()
    assert [(r.height, r.width) for r in dataset.images] == [(40, 60), (30, 30), (32, 48)]
    assert dataset.warnings == ["2 images without height and width taken from the file (first: a.png)"]


def test_a_size_that_disagrees_with_the_file_is_refused_when_the_image_is_read(files):
    files.images[1] |= {"height": 31, "width": 33}
    dataset = files.read()
    dataset.sample(0)
    with pytest.raises(UserError, match=r"b\.png: is 30 x 30 .* says 31 x 33; annotations only fit the picture"):
        dataset.sample(1)


def test_a_size_before_the_exif_orientation_gets_a_hint_of_its_own(files):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (60, 40)).save(files.folder / "a.png", exif=exif)
    with pytest.raises(UserError, match=r"is 60 x 40 .* says 40 x 60, its size before the file's EXIF orientation"):
        files.read().sample(0)
    files.images[0] |= {"height": 60, "width": 40}
    files.content["annotations"] = []
    assert files.read().sample(0)[0].shape == (60, 40, 3)


@pytest.mark.parametrize(("table", "what"), [("images", "images"), ("categories", "categories")])
def test_duplicate_ids_are_refused(files, table, what):
    files.content[table].append(dict(files.content[table][0]))
    refused(files, f"two {what} have the id {files.content[table][0]['id']}")


def test_duplicate_annotation_ids_are_refused(files):
    files.annotation(14)["id"] = 11
    refused(files, "two annotations have the id 11")


def test_duplicate_category_names_are_refused(files):
    files.content["categories"].append({"id": 8, "name": "cell"})
    refused(files, "two categories have the name 'cell'")


@pytest.mark.parametrize(("key", "value"), [("image_id", 99), ("category_id", 0)])
def test_unknown_references_name_the_annotation(files, key, value):
    files.annotation(12)[key] = value
    refused(files, "annotation 12", f"unknown {key} {value}")


@pytest.mark.parametrize("key", ["image_id", "category_id"])
def test_missing_references_name_the_annotation(files, key):
    del files.annotation(12)[key]
    refused(files, "annotation 12", f"has no '{key}'")


@pytest.mark.parametrize(
    ("bbox", "fault"),
    [
        ([5, 4, 0, 12], "zero area"),
        ([5, 4, 10, 0.0], "zero area"),
        ([5, 4, -3, 12], "negative size"),
        ([5, 4, math.nan, 12], "not finite"),
        ([math.inf, 4, 3, 12], "not finite"),
        ([10**400, 4, 3, 12], "not finite"),
        ([60, 4, 5, 12], "outside of its image"),
        ([-9, -9, 8, 8], "outside of its image"),
    ],
)
def test_boxes_that_hold_nothing_are_left_out_and_counted(files, bbox, fault):
    files.annotation(12)["bbox"] = bbox
    files.annotation(13)["bbox"] = bbox
    dataset = files.read()
    assert [annotations.ids.tolist() for annotations in dataset.annotations] == [[11], [], [14]]
    (warning,) = dataset.warnings
    assert fault in warning
    assert warning.startswith("2 annotations with a box")
    assert warning.endswith("left out (first: annotation 12 of image a.png)")
    assert [a["id"] for a in dataset.coco()["annotations"]] == [11, 14]


@pytest.mark.parametrize("bbox", [[1, 2, 3], [1, 2, 3, "4"], "1 2 3 4", {"x": 1}, [None] * 4])
def test_a_box_that_is_no_box_is_refused(files, bbox):
    files.annotation(12)["bbox"] = bbox
    refused(files, "annotation 12", "'bbox'")


def test_boxes_that_leave_the_image_are_clipped_and_counted(files):
    files.annotation(12)["bbox"] = [50, -5, 20, 30]
    files.annotation(11)["bbox"] = [-0.01, 4, 10, 36.01]  # rounding: no fault, and evaluation sees it as it is
    dataset = files.read()
    assert np.allclose(dataset.annotations[0].boxes, [[0, 4, 9.99, 40], [50, 0, 60, 25]])
    assert dataset.annotations[0].boxes[0, 0] == 0
    assert dataset.warnings == [
        "1 annotation with a box that leaves its image clipped (first: annotation 12 of image a.png)"
    ]
    truth = {a["id"]: a["bbox"] for a in dataset.coco()["annotations"]}
    assert truth[12] == [50, 0, 10, 25]
    assert truth[11] == [-0.01, 4, 10, 36.01]


@pytest.mark.parametrize(
    ("polygon", "fault"),
    [
        ([], "fewer than 3 points"),
        ([1, 2, 3, 4], "fewer than 3 points"),
        ([1, 2, 3, 4, 5, 6, 7], "half a point"),
        ([1, 2, 3, 4, 5, math.nan], "not finite"),
        ([1, 2, 3, 4, 5, 1e15], "far outside"),
        ([1, 2, -3e7, 4, 5, 6], "far outside"),
    ],
)
def test_faulty_polygons_are_left_out_and_counted(files, polygon, fault):
    good = [5, 4, 15, 4, 15, 16]
    files.annotation(11)["segmentation"] = [polygon, good]
    dataset = files.read()
    assert dataset.annotations[0].segmentations[0] == [good]
    (warning,) = dataset.warnings
    assert warning.startswith("1 polygon with")
    assert fault in warning


def test_annotations_left_without_a_mask_go_too_where_there_are_masks(files):
    files.annotation(11)["segmentation"] = [[1, 2, 3]]
    files.annotation(12)["segmentation"] = runs((40, 60), ())  # everything
    files.annotation(13)["segmentation"] = runs((32, 48), (slice(0, 0),))  # nothing
    del files.annotation(14)["segmentation"]
    dataset = files.read()
    assert [annotations.ids.tolist() for annotations in dataset.annotations] == [[12], [], []]
    assert dataset.warnings[-1] == "3 annotations without a mask left out (first: annotation 11 of image a.png)"


@pytest.mark.parametrize("segmentation", [None, []])
def test_a_file_without_masks_is_a_file_of_boxes(files, segmentation):
    for annotation in files.annotations:
        annotation["segmentation"] = segmentation
    dataset = files.read()
    assert not dataset.has_masks
    assert dataset.warnings == []
    assert dataset.annotations[0].segmentations is None
    assert len(dataset.annotations[0]) == 2
    assert "segmentation" not in dataset.coco()["annotations"][0]


@pytest.mark.parametrize("segmentation", ["abc", 3, [1, 2, 3, 4, 5, 6], [{"x": 1}], [[1, 2, 3, 4, 5, "6"]], [[[1, 2]]]])
def test_a_segmentation_of_an_unknown_kind_is_refused(files, segmentation):
    files.annotation(12)["segmentation"] = segmentation
    refused(files, "annotation 12")


@pytest.mark.parametrize(
    "encoding",
    [
        {"size": [60, 40], "counts": [2400]},
        {"size": [40, 60]},
        {"counts": [2400]},
        {"size": [40, 60], "counts": [2399]},
        {"size": [40, 60], "counts": [2500, -100]},
        {"size": [40, 60], "counts": [2400.0]},
        {"size": [40, 60], "counts": "0~"},
        {"size": [40, 60], "counts": "\u00e9"},
        {"size": [40, 60], "counts": "1234"},
        {"size": [40, 60], "counts": None},
        {"size": "40x60", "counts": [2400]},
    ],
)
def test_malformed_runs_name_the_annotation(files, encoding):
    files.annotation(12)["segmentation"] = encoding
    refused(files, "annotation 12", "run-length encoding", "encode it again")


def test_plain_and_compressed_runs_are_one(files):
    compressed = files.read()
    encoding = files.annotation(12)["segmentation"]
    files.annotation(12)["segmentation"] = encoding | {"counts": run_lengths(encoding).tolist()}
    assert files.read().annotations[0].segmentations == compressed.annotations[0].segmentations


@pytest.mark.parametrize("bbox", [None, []])
def test_missing_boxes_are_taken_from_the_masks(files, bbox):
    for annotation in files.annotations:
        annotation["bbox"] = bbox
    dataset = files.read()
    assert dataset.annotations[0].boxes.tolist() == [[5, 4, 15, 16], [30, 20, 38, 26]]
    assert dataset.annotations[2].boxes.tolist() == [[1, 2, 6, 9], [20, 10, 40, 30]]
    assert dataset.coco()["annotations"][1]["bbox"] == [30, 20, 8, 6]


def test_an_annotation_without_box_and_mask_is_left_out(files):
    del files.annotation(12)["bbox"], files.annotation(12)["segmentation"]
    dataset = files.read()
    assert dataset.annotations[0].ids.tolist() == [11]
    assert dataset.warnings == ["1 annotation without box and mask left out (first: annotation 12 of image a.png)"]


@pytest.mark.parametrize("area", [None, math.nan, -1, "12"])
def test_areas_that_are_missing_or_impossible_are_computed(files, area):
    for annotation in files.annotations:
        annotation["area"] = area
    assert [a["area"] for a in files.read().coco()["annotations"]] == [120, 48, 35, 400]
    for annotation in files.annotations:
        del annotation["area"], annotation["segmentation"]
    assert [a["area"] for a in files.read().coco()["annotations"]] == [120, 48, 35, 400]


def test_missing_ids_and_crowd_flags_are_filled_in(files):
    del files.annotation(11)["iscrowd"]
    del files.annotation(13)["id"], files.annotation(11)["id"]
    dataset = files.read()
    assert dataset.annotations.ids.tolist() == [15, 12, 16, 14]
    assert dataset.annotations.crowds.tolist() == [False, False, False, True]
    assert dataset.warnings == []


@pytest.mark.parametrize("value", ["0", 2, [0]])
def test_a_crowd_flag_must_be_0_or_1(files, value):
    files.annotation(12)["iscrowd"] = value
    refused(files, "annotation 12", "'iscrowd'")


def test_images_without_objects_are_legitimate_but_a_data_set_without_any_cannot_be_learnt(files):
    files.read().check_trainable()
    files.content["annotations"] = [files.annotation(14)]
    dataset = files.read()
    assert len(dataset) == 3
    with pytest.raises(UserError, match=r"coco\.json: no image has an object to learn from"):
        dataset.check_trainable()
    files.content["annotations"] = []
    dataset = files.read()
    assert not dataset.has_masks
    assert dataset.coco()["annotations"] == []
    with pytest.raises(UserError, match="no image has an object"):
        dataset.check_trainable()


def test_what_was_left_out_is_said_where_nothing_remains(files):
    for annotation in files.annotations:
        annotation["bbox"] = [1, 1, 0, 5]
    with pytest.raises(UserError, match="4 annotations with a box of zero area left out"):
        files.read().check_trainable()


def test_boxes_by_image_leave_crowds_out(files):
    boxes = {record.file_name: boxes.tolist() for record, boxes in files.read().boxes_by_image()}
    assert boxes == {"a.png": [[5, 4, 15, 16], [30, 20, 38, 26]], "b.png": [], "c.png": [[1, 2, 6, 9]]}


def test_the_truth_for_evaluation_is_what_pycocotools_makes_of_the_file(files):
    """The file with nothing to repair, and our dict of it: the same objects, masks and areas."""
    dataset = files.read()
    theirs = COCO(str(files.path))
    ours = COCO()
    ours.dataset = json.loads(json.dumps(dataset.coco()))
    ours.createIndex()
    for number in (11, 12, 13, 14):
        mine, yours = ours.anns[number], theirs.anns[number]
        assert {key: mine[key] for key in yours if key != "segmentation"} == {
            key: yours[key] for key in yours if key != "segmentation"
        }
        assert np.array_equal(ours.annToMask(mine), theirs.annToMask(yours))
    assert ours.getImgIds() == theirs.getImgIds()
    assert ours.loadCats(7)[0]["name"] == "cell"


def test_pycocotools_finds_an_object_whose_id_was_0(files):
    files.annotation(11)["id"] = 0
    truth = COCO()
    truth.dataset = files.read().coco()
    truth.createIndex()
    results = [
        {
            "image_id": a["image_id"],
            "category_id": 7,
            "bbox": a["bbox"],
            "score": 0.9,
            "segmentation": truth.annToRLE(a),
        }
        for a in truth.dataset["annotations"]
        if not a["iscrowd"]
    ]
    for kind in ("bbox", "segm"):
        evaluation = COCOeval(truth, truth.loadRes(results), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
        assert evaluation.stats[0] == pytest.approx(1.0)


def test_annotations_are_kept_small(files):
    """A million polygons as Python lists would take gigabytes, and forked processes would copy them."""
    import pickle

    polygon = (20 + 10 * np.random.default_rng(0).random(40)).tolist()
    for number in range(100, 1100):
        files.object(number, 1, [5, 4, 10, 12], [polygon])
    store = files.read().annotations
    assert len(pickle.dumps(store)) < 1004 * (40 * 8 + 150)
    assert store[0].segmentations[500] == [polygon]
    assert coco_mask.frPyObjects(store[0].segmentations[500], 40, 60)


def test_images_are_kept_as_numbers_and_come_back_as_they_were(tmp_path):
    names = ["a.png", "folder/b ü.png", "x" * 300, "c\udcff.png"]
    records = [ImageRecord(2**40 + n, name, 10 + n, 20 + n, tmp_path) for n, name in enumerate(names)]
    kept = ImageRecords(records, tmp_path)
    assert list(kept) == records
    assert kept[-1] == records[-1]
    assert kept[1:3] == records[1:3]
    assert kept[np.int64(2)].path == tmp_path / ("x" * 300)
    with pytest.raises(IndexError):
        kept[4]
    assert list(ImageRecords([], tmp_path)) == []
