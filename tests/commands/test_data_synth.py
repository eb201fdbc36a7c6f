"""mrcnn data synth: a folder of made-up data that trains and evaluates."""

import json

import numpy as np
from pycocotools import mask as coco_mask

from mrcnn_cli.data.image import read_image
from tests.commands.conftest import TINY, assignments


def test_made_up_shapes_train_in_one_line(mrcnn):
    outcome = mrcnn("data", "synth", "shapes", "-o", "made", "--train", 4, "--val", 2, "--size", 64, 80)
    assert outcome.status == 0, outcome.err
    assert "mrcnn train --data made" in outcome.err
    words = ["--out", "run", *assignments(*TINY, "train.steps=2"), "--json"]
    outcome = mrcnn("train", "nuclei_scratch", "--data", "made", *words)
    assert outcome.status == 0, outcome.err
    assert set(outcome.json["metrics"]["classes"]) == {"square", "circle", "triangle"}


def test_files_hold_what_was_drawn(mrcnn, tmp_path):
    outcome = mrcnn("data", "synth", "shapes", "-o", "made", "--train", 6, "--val", 0, "--most", 8, "--json")
    assert outcome.status == 0
    assert not (tmp_path / "made" / "val.json").exists()
    content = json.loads((tmp_path / "made" / "train.json").read_text())
    assert outcome.json["splits"] == {"train": {"images": 6, "objects": len(content["annotations"])}}
    for entry in content["images"]:
        image = read_image(tmp_path / "made" / "train" / entry["file_name"])
        assert image.shape == (entry["height"], entry["width"], 3) == (128, 128, 3)
        for annotation in content["annotations"]:
            if annotation["image_id"] == entry["id"]:
                mask = coco_mask.decode(annotation["segmentation"]) > 0
                assert mask.sum() == annotation["area"]
                assert len(np.unique(image[mask], axis=0)) == 1
                x, y, width, height = annotation["bbox"]
                rows, columns = mask.nonzero()
                assert [columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1] == [x, y, width, height]


def test_a_seed_makes_the_same_files_and_more_pictures_only_add_some(mrcnn, tmp_path):
    for name, count, seed in (("a", 3, 0), ("b", 5, 0), ("c", 3, 1)):
        assert mrcnn("data", "synth", "shapes", "-o", name, "--train", count, "--val", 1, "--seed", seed).status == 0
    for number in range(1, 4):
        first, second, other = ((tmp_path / name / "train" / f"{number:06}.png").read_bytes() for name in "abc")
        assert first == second
        assert first != other


def test_nothing_is_written_over(mrcnn, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    outcome = mrcnn("data", "synth", "shapes", "-o", "full")
    assert outcome.status == 1
    assert "full: is not empty" in outcome.error
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["mine.txt"]
