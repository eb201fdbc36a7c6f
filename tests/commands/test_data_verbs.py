"""mrcnn data check, stats and view from the command line."""

import json

import numpy as np
import pytest
from PIL import Image

from tests.planted import Planted


@pytest.fixture
def data(tmp_path):
    (tmp_path / "planted").mkdir()
    return Planted(tmp_path / "planted", per_split=4)


def pair(data, split="train"):
    data.write()
    return "--images", data.root / split, "--annotations", data.root / f"{split}.json"


def test_a_clean_data_set_passes(mrcnn, data):
    outcome = mrcnn("data", "check", data.write())
    assert outcome.status == 0
    assert "no faults" in outcome.err


def test_errors_make_it_fail_and_are_named_with_file_and_annotation(mrcnn, data):
    data.annotation(4)["bbox"] = [200, 200, 5, 5]
    outcome = mrcnn("data", "check", *pair(data))
    assert outcome.status == 1
    [line] = [line for line in outcome.out.splitlines() if "box-outside" in line]
    assert "train.json: annotation 4 of image 2.png: its box is [200, 200, 5, 5]" in line
    assert "1 error, 0 warnings, 0 notes" in outcome.err


def test_warnings_alone_do_not_fail(mrcnn, data):
    data.annotation(4)["area"] = 900
    outcome = mrcnn("data", "check", data.write(), "--all", "--no-pixels")
    assert outcome.status == 0
    assert outcome.out.startswith("warning area-disagrees  ")


def test_json_holds_every_finding_and_nothing_else_is_on_stdout(mrcnn, data):
    data.annotation(4)["area"] = data.annotation(7)["area"] = 900
    report = mrcnn("data", "check", data.write(), "--json").json
    assert report["counts"] == {"error": 0, "warning": 2, "note": 0}
    assert report["faults"] == {"area-disagrees": 2}
    assert [finding["annotation_id"] for finding in report["findings"]] == [4, 7]
    assert report["findings"][0]["remedy"] == "computed anew"
    assert (report["images"], report["annotations"]) == (8, 24)


def test_fix_writes_a_data_set_that_passes_and_says_what_it_did(mrcnn, data, tmp_path):
    data.annotation(4)["area"] = 900
    data.add(1, image_id=99)
    before = data.write().joinpath("train.json").read_bytes()
    outcome = mrcnn("data", "check", data.root, "--fix", "mended")
    assert outcome.status == 0
    assert "mended   area-disagrees: 1" in outcome.err
    assert "mended   unknown-image: 1" in outcome.err
    assert mrcnn("data", "check", "mended").status == 0
    assert (data.root / "train.json").read_bytes() == before


def test_fix_never_writes_over_the_data_set(mrcnn, data):
    assert "never written over" in mrcnn("data", "check", data.write(), "--fix", data.root).error


def test_a_file_that_cannot_be_read_is_named_and_the_others_are_checked(mrcnn, data):
    data.annotation(4)["area"] = 900
    data.write()
    (data.root / "val.json").write_text("{")
    outcome = mrcnn("data", "check", data.root)
    assert outcome.status == 1
    assert "val.json: not JSON" in outcome.out
    assert "area-disagrees" in outcome.out


@pytest.mark.parametrize("verb", ["check", "stats", "view"])
def test_a_data_set_must_be_named(mrcnn, data, tmp_path, verb):
    assert "name a prepared data set" in mrcnn("data", verb).error
    assert "one COCO file for each" in mrcnn("data", verb, "--images", tmp_path).error
    assert "no prepared data set" in mrcnn("data", verb, tmp_path).error
    assert "not both" in mrcnn("data", verb, data.write(), *pair(data)).error


def test_stats_are_told_in_tables_and_in_json(mrcnn, data, tmp_path):
    outcome = mrcnn("data", "stats", data.write(), "--recipe", "nuclei", "--plot", tmp_path / "a.png")
    assert outcome.status == 0
    rows = [line.split() for line in outcome.out.splitlines()]
    assert ["train", "4", "0", "12", "0", "12", "3"] in rows
    assert ["square", "8", "8", "16", "16", "16"] in rows
    assert "suggested, by k-means" in outcome.out
    assert "Pixels of 4 pictures of train" in outcome.out
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.width > 1000
    found = mrcnn("data", "stats", data.root, "--json").json
    assert found["splits"]["train"]["objects"] == 12
    assert found["anchors"]["suggested"]["sizes"]
    pictures = [np.asarray(Image.open(data.picture(number))).reshape(-1, 3) for number in range(1, 5)]
    assert found["pixels"]["mean"] == pytest.approx(np.concatenate(pictures).mean(0).tolist(), rel=1e-5)
    assert found["pixels"]["deviation"] == pytest.approx(np.concatenate(pictures).std(0).tolist(), rel=1e-5)
    mean = ", ".join(f"{value:g}" for value in found["pixels"]["mean"])
    assert f"--set 'model.pixels.mean=[{mean}]'" in mrcnn("data", "stats", data.root).err
    assert mrcnn("data", "stats", data.root, "--json", "--no-pixels").json["pixels"] is None


def test_stats_warn_of_pictures_that_they_could_not_measure(mrcnn, data):
    data.write()
    data.picture(2).unlink()
    outcome = mrcnn("data", "stats", data.root)
    assert "Pixels of 3 pictures of train" in outcome.out
    assert "1 of 4 pictures cannot be read" in outcome.err


def test_view_writes_a_page_and_says_where(mrcnn, data, tmp_path):
    outcome = mrcnn("data", "view", data.write(), "--workers", "0")
    assert outcome.status == 0
    assert "written  planted.html: 8 pictures" in outcome.err
    assert (tmp_path / "planted.html").read_text().startswith("<!DOCTYPE html>")
    said = mrcnn("data", "view", data.root, "--split", "val", "--limit", "2", "--out", "b.html", "--json").json
    assert said["images"] == 2
    assert said["left_out"] == 2
    outcome = mrcnn("data", "view", data.root, "--augmented", "--recipe", "nuclei_scratch", "--limit", "3")
    assert "written  planted-augmented.html: 3 pictures" in outcome.err


def test_view_refuses_what_it_cannot_show(mrcnn, data, tmp_path):
    data.write()
    assert "no split 'test', only train, val" in mrcnn("data", "view", data.root, "--split", "test").error
    assert "use .html" in mrcnn("data", "view", data.root, "--out", "a.pdf").error
    (tmp_path / "results.json").write_text(json.dumps([]))
    assert mrcnn("data", "view", data.root, "--augmented", "--predictions", "results.json").status == 2
