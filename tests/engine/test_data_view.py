"""What the page of a data set holds: pictures, objects, faults, predictions, training samples."""

import json
import re

import numpy as np
import pytest

from mrcnn_cli.data.coco import Dataset
from mrcnn_cli.data.loader import training_batches
from mrcnn_cli.engine.data_check import find_source
from mrcnn_cli.engine.data_view import view_data, view_samples
from mrcnn_cli.engine.found import judged
from mrcnn_cli.engine.run import read_config
from mrcnn_cli.errors import UserError
from mrcnn_cli.views.gallery import Shape
from tests.planted import SIDE, Planted


@pytest.fixture
def data(tmp_path):
    (tmp_path / "planted").mkdir()
    return Planted(tmp_path / "planted", per_split=3)


def shown(data, tmp_path, **settings):
    """The index of the page and its pictures."""
    out = tmp_path / "page.html"
    view_data(find_source(data.write()), out, **({"limit": 100, "workers": 0} | settings))
    return read(out)


def read(path):
    found = re.findall(r'<script type="application/json" id="([^"]+)">(.*?)</script>', path.read_text(), re.S)
    content = {name: json.loads(text) for name, text in found}
    index = content.pop("index")
    return index, [content[f"image-{number}"] for number in range(len(content))]


def test_every_image_of_every_split_is_shown_with_its_objects(data, tmp_path):
    index, pictures = shown(data, tmp_path)
    assert index["splits"] == ["train", "val"]
    assert index["classes"] == ["square", "disc", "run"]
    assert [image[:3] for image in index["images"][:1]] == [["1.png", 0, [0, 1, 2]]]
    assert len(pictures) == 6
    square, _, runs = pictures[0]["objects"]
    assert square[2:6] == [2, 5, 16, 16]
    assert square[6:8] == ["M2 5h16v16h-16z", "annotation 1"]
    assert runs[6] == "M42 5h16v16h-16z"  # the outline of the encoding
    assert pictures[0]["image"].startswith("data:image/jpeg;base64,")
    assert pictures[0]["predictions"] is None


def test_faults_stand_at_their_image_and_their_object(data, tmp_path):
    data.annotation(1)["area"] = 900
    data.annotation(5)["bbox"] = [200, 200, 5, 5]
    data.picture(3).unlink()
    index, pictures = shown(data, tmp_path)
    assert [image[4] for image in index["images"]] == [
        ["area-disagrees"],
        ["box-outside"],
        ["image-missing"],
        [],
        [],
        [],
    ]
    assert pictures[0]["faults"] == [["area-disagrees", "annotation 1: its area is 900, that of its mask is 256"]]
    assert [len(shape[-2]) for shape in pictures[0]["objects"]] == [1, 0, 0]
    assert len(pictures[1]["objects"]) == 3  # the one with the box outside is drawn by its mask
    assert pictures[2]["image"] == ""


def test_of_more_pictures_than_the_limit_evenly_spaced_ones_are_shown(data, tmp_path):
    index, _ = shown(data, tmp_path, limit=3)
    assert [image[0] for image in index["images"]] == ["1.png", "3.png", "3.png"]
    assert "3 of 6 pictures, evenly spaced" in index["about"]


def test_predictions_are_shown_beside_the_truth_of_the_split_that_is_evaluated(data, tmp_path):
    results = [
        {"image_id": 1, "category_id": 1, "bbox": [3, 5, 16, 16], "score": 0.9},
        {
            "image_id": 1,
            "category_id": 3,
            "bbox": [2, 30, 8, 8],
            "score": 0.8,
            "segmentation": [[2, 30, 10, 30, 6, 38]],
        },
        {"image_id": 1, "category_id": 2, "bbox": [22, 5, 16, 16], "score": 0.3},
        {"image_id": 2, "category_id": 2, "bbox": [22, 6, 16, 16], "score": 0.7},
    ]
    results[-1]["segmentation"] = {"size": [SIDE, SIDE], "counts": [6, 2, SIDE * SIDE - 8]}
    (tmp_path / "results.json").write_text(json.dumps(results))
    index, pictures = shown(data, tmp_path, predictions=tmp_path / "results.json")
    assert index["splits"] == ["val"]
    assert [image[5:] for image in index["images"]] == [[2, 1], [2, 0], [3, 0]]  # missed, false
    first, second = pictures[0]["predictions"]
    assert (first[9], first[10]) == (0.9, 0)
    assert (second[9], second[10], second[6]) == (0.8, 1, "M2 30h8l-4 8z")
    assert pictures[1]["predictions"][0][6] == "M0 6h1v2h-1z"
    assert pictures[2]["predictions"] == []


def test_predictions_of_mrcnn_predict_are_told_apart_by_their_file(data, tmp_path):
    name = str(data.root / "val" / "2.png")
    result = {"image_id": 1, "category_id": 1, "bbox": [2, 6, 16, 16], "score": 0.9, "file_name": name}
    (tmp_path / "predictions.json").write_text(json.dumps([result]))
    index, _ = shown(data, tmp_path, predictions=tmp_path / "predictions.json")
    assert [image[5] for image in index["images"]] == [3, 2, 3]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "not JSON"),
        ('{"a": 1}', "holds no list of objects"),
        ('[{"image_id": 77, "category_id": 1, "bbox": [1, 2, 3, 4], "score": 1}]', "no entry belongs to an image"),
        ('[{"image_id": 1, "category_id": 9, "bbox": [1, 2, 3, 4], "score": 1}]', "entry 0 has the category_id 9"),
        ('[{"image_id": 1, "category_id": 1, "bbox": [1, 2, 3], "score": 1}]', "entry 0 needs"),
        (
            '[{"image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4], "score": 1, '
            '"segmentation": {"size": [9, 9], "counts": [81]}}]',
            "its mask is for",
        ),
    ],
)
def test_faulty_predictions_are_named(data, tmp_path, text, words):
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(UserError, match=words):
        shown(data, tmp_path, predictions=tmp_path / "results.json")


def test_predictions_are_judged_best_first_each_object_found_once_and_crowds_forgiven():
    objects = [Shape(0, (0, 0, 10, 10)), Shape(0, (50, 0, 90, 40), crowd=True), Shape(1, (20, 0, 30, 10))]
    predictions = [
        Shape(0, (0, 0, 10, 9), score=0.9),
        Shape(0, (0, 0, 10, 10), score=0.8),  # found already
        Shape(0, (60, 5, 65, 10), score=0.7),  # in the crowd
        Shape(0, (20, 0, 30, 10), score=0.6),  # of another class
    ]
    truth, found = judged(objects, predictions)
    assert [shape.missed for shape in truth] == [False, False, True]
    assert [shape.missed for shape in found] == [False, True, False, True]


def test_the_samples_are_those_of_training(tmp_path, data):
    config = read_config("nuclei", {"data.workers": 0, "data.augment.crop": 96, "train.seed": 5})
    view_samples(find_source(data.write()), tmp_path / "a.html", config, "nuclei", count=4)
    index, pictures = read(tmp_path / "a.html")
    dataset = Dataset.read(data.root / "train", data.root / "train.json")
    batches = training_batches(dataset, config.data, batch_size=1, seed=5, steps=4)
    for image, picture, (batch, [targets]) in zip(index["images"], pictures, batches, strict=True):
        assert image[2] == targets.labels.tolist()
        assert picture["size"] == list(batch.sizes[0])
        boxes = np.array([shape[2:6] for shape in picture["objects"]]).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        assert np.allclose(boxes, targets.boxes.numpy(), atol=0.11)
    assert index["clip"]


def test_the_outline_of_a_sample_lies_in_its_box(tmp_path, data):
    config = read_config("nuclei", {"data.workers": 0, "data.augment.crop": None})
    view_samples(find_source(data.write()), tmp_path / "a.html", config, "nuclei", count=6)
    _, pictures = read(tmp_path / "a.html")
    for shape in (shape for picture in pictures for shape in picture["objects"]):
        x, y = map(float, re.match(r"M([\d.-]+) ([\d.-]+)", shape[6]).groups())
        assert min(abs(x - shape[2]), abs(x - shape[2] - shape[4])) < 0.2  # every object is a square
        assert min(abs(y - shape[3]), abs(y - shape[3] - shape[5])) < 0.2


def test_pictures_are_made_as_small_as_the_page_must_be(data, tmp_path, monkeypatch):
    from mrcnn_cli.engine import data_view

    page = view_data(find_source(data.write()), tmp_path / "a.html", limit=10, workers=0)
    assert page.side == data_view.SIDES[0]
    monkeypatch.setattr(data_view, "BUDGET", 1)
    page = view_data(find_source(data.write()), tmp_path / "a.html", limit=10, workers=0)
    assert page.side == data_view.SIDES[-1]
    assert page.side > SIDE
