"""mrcnn predict: pictures in, pictures and a COCO results list out."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as run_lengths
from pycocotools.coco import COCO

LOW = ("--score", "0")  # what two steps have taught is not certain of anything


def test_a_folder_gives_a_picture_for_each_image_and_a_coco_results_list(mrcnn, trained, shapes, tmp_path):
    outcome = mrcnn("predict", shapes, "--weights", trained, *LOW)
    assert outcome.status == 0
    for number in range(1, 5):
        drawn = np.asarray(Image.open(tmp_path / "predictions" / f"{number}.png"))
        assert drawn.ndim == 3
    results = json.loads((tmp_path / "predictions" / "predictions.json").read_text())
    assert {entry["file_name"] for entry in results} == {str(shapes / f"{number}.png") for number in range(1, 5)}
    assert all(set(entry) >= {"bbox", "score", "category_id", "image_id", "segmentation"} for entry in results)
    # The files are in the order of the annotation file here, so that pycocotools takes one for the other.
    loaded = COCO(shapes / "shapes.json").loadRes(results)
    assert len(loaded.anns) == len(results)
    assert all(run_lengths.decode(entry["segmentation"]).shape == (64, 64) for entry in results)


def test_the_summary_counts_objects_per_image_and_class(mrcnn, trained, shapes):
    outcome = mrcnn("predict", shapes, "--weights", trained, *LOW)
    results = json.loads(Path("predictions/predictions.json").read_text())
    names = {3: "square", 7: "disc"}
    for category in {entry["category_id"] for entry in results}:
        mine = [entry for entry in results if entry["category_id"] == category]
        row = [names[category], str(len(mine)), str(len({entry["image_id"] for entry in mine}))]
        assert row in [line.split() for line in outcome.out.splitlines()]
    first = [entry for entry in results if entry["image_id"] == 1]
    assert any(line.split()[:2] == [str(shapes / "1.png"), str(len(first))] for line in outcome.out.splitlines())
    assert outcome.err.endswith(
        "pictures     predictions/, 4 files\n"
        "overview     predictions/overview.png\n"
        "predictions  predictions/predictions.json\n"
    )


def test_json_names_weights_pictures_and_counts(mrcnn, trained, shapes):
    outcome = mrcnn("predict", shapes / "2.png", "--weights", trained, "--out", "found", "--json", *LOW)
    results = json.loads(Path("found/predictions.json").read_text())
    report = outcome.json
    assert report["weights"] == str(trained / "best.safetensors")
    assert report["failed"] == []
    (image,) = report["images"]
    assert (image["file"], image["overlay"]) == (str(shapes / "2.png"), "found/2.png")
    assert sum(image["objects"].values()) == len(results)


def test_the_newest_run_is_taken_and_named(mrcnn, trained, shapes, tmp_path):
    shutil.copytree(trained, tmp_path / "runs" / "one")
    outcome = mrcnn("predict", shapes / "1.png")
    assert outcome.status == 0
    assert "weights  runs/one/best.safetensors of the newest run (step 2, 2 classes)\n" in outcome.err


def test_a_pattern_names_files(mrcnn, trained, shapes):
    outcome = mrcnn("predict", f"{shapes}/[12].png", "--weights", trained, "--json")
    assert [image["file"] for image in outcome.json["images"]] == [str(shapes / "1.png"), str(shapes / "2.png")]


def test_a_higher_score_leaves_out_what_is_less_certain(mrcnn, trained, shapes):
    mrcnn("predict", shapes, "--weights", trained, *LOW)
    scores = sorted(entry["score"] for entry in json.loads(Path("predictions/predictions.json").read_text()))
    middle = scores[len(scores) // 2]
    mrcnn("predict", shapes, "--weights", trained, "--score", middle, "--out", "fewer")
    fewer = [entry["score"] for entry in json.loads(Path("fewer/predictions.json").read_text())]
    assert sorted(fewer) == [score for score in scores if score >= middle]


def test_broken_images_are_named_and_the_others_are_done(mrcnn, trained, shapes, tmp_path):
    whole = (shapes / "1.png").read_bytes()
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(whole)
    (tmp_path / "images" / "cut.png").write_bytes(whole[:-60])
    (tmp_path / "images" / "text.png").write_text("no picture")
    shutil.copy(shapes / "2.png", tmp_path / "images" / "z.png")
    outcome = mrcnn("predict", "images", "--weights", trained, *LOW)
    assert outcome.status == 1
    cut, text, last = [line for line in outcome.err.splitlines() if line.startswith("error: ")]
    assert cut.startswith("error: images/cut.png: ")
    assert text.startswith("error: images/text.png: ")
    assert last == "error: 2 of 4 images could not be read; the others are done"
    written = {path.name for path in (tmp_path / "predictions").iterdir()}
    assert written == {"a.png", "z.png", "overview.png", "predictions.json"}
    results = json.loads((tmp_path / "predictions" / "predictions.json").read_text())
    assert {entry["file_name"] for entry in results} == {"images/a.png", "images/z.png"}
    report = mrcnn("predict", "images", "--weights", trained, "--json").json
    assert [failure["file"] for failure in report["failed"]] == ["images/cut.png", "images/text.png"]
    assert len(report["images"]) == 2


@pytest.mark.parametrize("score", ["1.5", "-0.1", "high"])
def test_a_score_that_is_none_is_a_wrong_usage(mrcnn, score):
    outcome = mrcnn("predict", "a.png", "--score", score)
    assert outcome.status == 2
    assert "--score" in outcome.error
