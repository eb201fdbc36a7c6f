"""mrcnn evaluate: the metrics of a run or checkpoint, on its own or other data."""

import json
import shutil

import pytest
from PIL import Image
from pycocotools.coco import COCO

from tests.commands.conftest import CATEGORIES, TINY, assignments


def last_evaluation(run):
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {key: value for key, value in rows[-1].items() if key not in ("kind", "step")}


def test_a_run_gets_the_metrics_it_got_after_training(mrcnn, trained):
    outcome = mrcnn("evaluate", trained, "--json")
    assert outcome.status == 0
    assert outcome.json == last_evaluation(trained)


def test_the_table_shows_boxes_masks_and_each_class(mrcnn, trained):
    outcome = mrcnn("evaluate", trained / "last.safetensors")
    lines = outcome.out.splitlines()
    detections = last_evaluation(trained)["detections"]
    assert lines[0] == f"COCO metrics: 4 images, 8 objects, {detections} detections"
    assert lines[1].split() == ["AP", "AP50", "AP75", "AP", "small", "AP", "medium", "AP", "large", "AR100"]
    assert [line.split()[0] for line in lines[2:4]] == ["box", "mask"]
    assert lines[4:6] == ["Per class", "class   box AP  mask AP"]
    assert [line.split()[0] for line in lines[6:]] == ["square", "disc"]


def test_the_newest_run_is_taken_where_none_is_named(mrcnn, trained, tmp_path):
    shutil.copytree(trained, tmp_path / "runs" / "one")
    outcome = mrcnn("evaluate")
    assert outcome.status == 0
    assert "weights  runs/one/best.safetensors (step 2)\n" in outcome.err


def test_results_and_metrics_are_written_where_asked(mrcnn, trained, shapes, tmp_path):
    outcome = mrcnn("evaluate", trained, "--data", shapes, shapes / "shapes.json", "--out", "found", "--json")
    assert json.loads((tmp_path / "found" / "metrics.json").read_text()) == outcome.json
    results = json.loads((tmp_path / "found" / "results.json").read_text())
    assert len(results) == outcome.json["detections"]
    assert {entry["category_id"] for entry in results} <= {3, 7}
    COCO(shapes / "shapes.json").loadRes(results)  # raises where they do not belong together


def test_pictures_of_the_worst_images_are_written_beside_the_results(mrcnn, trained, tmp_path):
    everything = ("--set", "predict.score_threshold=0")
    outcome = mrcnn("evaluate", trained, *everything, "--out", "all")
    assert sorted(path.name for path in (tmp_path / "all" / "pictures").iterdir()) == [f"{n}.png" for n in range(1, 5)]
    with Image.open(tmp_path / "all" / "pictures" / "1.png") as picture:
        assert picture.width > 2 * 700  # the truth and the prediction, enlarged
    assert (tmp_path / "all" / "overview.png").is_file()
    assert outcome.err.endswith("all/metrics.json, all/results.json, all/pictures/, all/overview.png\n")
    mrcnn("evaluate", trained, *everything, "--out", "two", "--pictures", "2")
    assert len(list((tmp_path / "two" / "pictures").iterdir())) == 2
    mrcnn("evaluate", trained, "--out", "none", "--pictures", "0")
    assert sorted(path.name for path in (tmp_path / "none").iterdir()) == ["metrics.json", "results.json"]
    assert mrcnn("evaluate", trained, "--pictures", "2").status == 2


def test_the_recipe_that_is_kept_with_the_weights_can_be_changed(mrcnn, trained):
    few = mrcnn("evaluate", trained, "--set", "model.box_head.detections_per_image=1", "--json").json
    assert few["detections"] == 4
    assert mrcnn("evaluate", trained, "--json").json["detections"] > 4


def test_classes_are_matched_by_name_whatever_their_ids(mrcnn, trained, shapes, tmp_path):
    truth = json.loads((shapes / "shapes.json").read_text())
    swap = {3: 7, 7: 3}
    for entry in truth["categories"]:
        entry["id"] = swap[entry["id"]]
    for entry in truth["annotations"]:
        entry["category_id"] = swap[entry["category_id"]]
    (tmp_path / "swapped.json").write_text(json.dumps(truth))
    assert (
        mrcnn("evaluate", trained, "--data", shapes, "swapped.json", "--json").json["classes"]
        == (last_evaluation(trained)["classes"])
    )


def test_data_with_a_class_that_the_model_does_not_know_is_refused(mrcnn, trained, shapes, tmp_path):
    truth = json.loads((shapes / "shapes.json").read_text())
    truth["categories"] = [CATEGORIES[0], {"id": 7, "name": "triangle"}]
    (tmp_path / "other.json").write_text(json.dumps(truth))
    outcome = mrcnn("evaluate", trained, "--data", shapes, "other.json")
    assert outcome.status == 1
    assert "other.json" in outcome.error
    assert "triangle" in outcome.error


def test_a_run_without_validation_images_needs_data(mrcnn, shapes):
    words = ["--train", shapes, shapes / "shapes.json", "--out", "run", *assignments(*TINY, "train.steps=1")]
    assert mrcnn("train", "nuclei_scratch", *words).status == 0
    outcome = mrcnn("evaluate", "run")
    assert outcome.status == 1
    assert outcome.error.endswith("its run had no validation images; give some with --data DIR ANNOTATIONS.json")
    assert mrcnn("evaluate", "run", "--data", shapes, shapes / "shapes.json").status == 0


def test_a_folder_without_its_annotations_is_no_prepared_data_set(mrcnn, trained, shapes):
    outcome = mrcnn("evaluate", trained, "--data", shapes)
    assert outcome.status == 1
    assert outcome.error.startswith(f"{shapes}: no prepared data set (no dataset.toml is there); 'mrcnn data prepare")


def test_a_prepared_data_set_gives_the_metrics_of_its_files(mrcnn, trained, prepared):
    assert mrcnn("evaluate", trained, "--data", prepared, "--json").json == last_evaluation(trained)
    few = mrcnn("evaluate", trained, "--data", prepared, "--split", "train", "--json").json
    assert few["images"] == 2
    missing = mrcnn("evaluate", trained, "--data", prepared, "--split", "test")
    assert missing.error == "shapes: has no split 'test', only train, val; name one of them"


@pytest.mark.parametrize("words", [["--split", "val"], ["--data", "a", "--data", "b", "c.json"]])
def test_wrong_ways_to_name_data_are_usage_errors(mrcnn, trained, words):
    assert mrcnn("evaluate", trained, *words).status == 2
