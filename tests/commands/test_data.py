"""mrcnn data prepare and convert, through the command line: what they say, write and refuse."""

import json
import tomllib

import pytest

from mrcnn_cli.data.coco import Dataset
from mrcnn_cli.data.dataset_file import read_dataset_file
from tests.commands.conftest import CATEGORIES, TINY, assignments, paint


@pytest.fixture
def source(shapes, tmp_path):
    """A folder of ten pictures of a square and a disc each, with a VIA file."""
    entries = {}
    (tmp_path / "photos").mkdir()
    for number in range(10):
        square, disc = (2 + 2 * number, 4), (40 - 2 * number, 40)
        paint(tmp_path / "photos" / f"site{number // 2}_{number}.png", square, disc)
        regions = [
            {
                "shape_attributes": {
                    "name": "polygon",
                    "all_points_x": [x, x + 20, x + 20, x],
                    "all_points_y": [y, y, y + 20, y + 20],
                },
                "region_attributes": {"class": name},
            }
            for (x, y), name in ((square, "square"), (disc, "disc"))
        ]
        entries[f"{number}"] = {"filename": f"site{number // 2}_{number}.png", "size": 1, "regions": regions}
    (tmp_path / "photos" / "via.json").write_text(json.dumps(entries))
    return tmp_path / "photos"


def snapshot(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_source_is_prepared_and_learnt_in_two_lines(mrcnn, source, tmp_path):
    before = snapshot(source)
    outcome = mrcnn("data", "prepare", source, "-o", "data", "--val", 0.2)
    assert outcome.status == 0, outcome.err
    assert "format   via: via.json has VIA's regions" in outcome.err
    assert "splits   0.2 of the images to val, each class in the same shares, seed 0" in outcome.err
    assert outcome.out.split("\n")[1:3] == [
        "train       8       16        0        2",
        "val         2        4        0        2",
    ]
    assert "next     mrcnn train --data data" in outcome.err
    assert snapshot(source) == before
    content = tomllib.loads((tmp_path / "data" / "dataset.toml").read_text())
    assert content["classes"] == ["disc", "square"]
    assert content["splits"]["train"] == {"images": str(source), "annotations": "train.json"}
    assert content["source"] == {"format": "via", "path": str(source), "options": {"seed": 0}}
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == ["dataset.toml", "train.json", "val.json"]
    words = ["nuclei_scratch", "--data", "data", "--out", "run", *assignments(*TINY, "train.steps=1")]
    trained = mrcnn("train", *words)
    assert trained.status == 0, trained.err
    assert mrcnn("evaluate", "run", "--data", "data", "--json").json["images"] == 2


def test_json_tells_everything(mrcnn, source):
    report = mrcnn("data", "prepare", source, "-o", "data", "--json").json
    assert report["format"] == "via"
    assert report["classes"] == ["disc", "square"]
    assert report["splits"]["val"] == {"images": 1, "objects": 2, "ignored": 0, "classes": {"square": 1, "disc": 1}}
    assert report["faults"] == []


def test_a_broken_file_is_named_and_the_rest_goes_on_with_status_1(mrcnn, source, tmp_path):
    (source / "site0_0.png").write_bytes(b"no picture")
    (source / "site1_2.png").unlink()
    outcome = mrcnn("data", "prepare", source, "-o", "data")
    assert outcome.status == 1
    assert "warning: " + str(source / "via.json") in outcome.err
    assert str(source / "site0_0.png") in outcome.err
    assert f"{source / 'site1_2.png'}: no such image" in outcome.err
    assert outcome.error == "2 faults in the source, which were left out; all else was written"
    images = [len(Dataset.read(source, tmp_path / "data" / f"{name}.json")) for name in ("train", "val")]
    assert sum(images) == 8


def test_nothing_is_written_over_the_source_or_other_files(mrcnn, source, tmp_path):
    before = snapshot(source)
    for out in (source, tmp_path):
        outcome = mrcnn("data", "prepare", source, "-o", out)
        assert outcome.status == 1
        assert "is the source or holds it, which is never written over" in outcome.error
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").write_text("mine")
    assert "other: is not empty" in mrcnn("data", "prepare", source, "-o", "other").error
    assert "other: is not empty" in mrcnn("data", "convert", source, "--to", "yolo", "-o", "other").error
    assert "is a file" in mrcnn("data", "prepare", source, "-o", "other/mine.txt").error
    assert snapshot(source) == before


def test_an_earlier_preparation_is_replaced_and_one_inside_the_source_is_not_read(mrcnn, source):
    assert mrcnn("data", "prepare", source, "-o", source / "data", "--test", 0.3).status == 0
    assert (source / "data" / "test.json").exists()
    first = mrcnn("data", "prepare", source, "-o", source / "data", "--json").json
    assert not (source / "data" / "test.json").exists()
    again = mrcnn("data", "prepare", source, "-o", source / "data", "--json").json
    assert first == again


def test_groups_stay_together_and_a_seed_draws_the_same(mrcnn, source, tmp_path):
    words = ["data", "prepare", source, "--val", 0.4, "--group", r"(site\d)"]
    for seed, out in ((0, "a"), (0, "b"), (5, "c")):
        assert "groups held together" in mrcnn(*words, "--seed", seed, "-o", out).err
    texts = [(tmp_path / out / "val.json").read_text() for out in "abc"]
    assert texts[0] == texts[1] != texts[2]
    for out in "ac":
        sites = [
            {entry["file_name"][:5] for entry in json.loads((tmp_path / out / f"{name}.json").read_text())["images"]}
            for name in ("train", "val")
        ]
        assert not sites[0] & sites[1]
    assert "not a regular expression" in mrcnn(*words[:-1], "(", "-o", "d").error


def test_classes_are_chosen_and_ordered(mrcnn, source, tmp_path):
    outcome = mrcnn("data", "prepare", source, "-o", "a", "--classes", "square,disc")
    assert read_dataset_file(tmp_path / "a").classes == ("square", "disc")
    outcome = mrcnn("data", "prepare", source, "-o", "d", "--classes", "square,disk,disc")
    assert "warning: 1 class without objects ('disk') kept" in outcome.err
    (tmp_path / "names.txt").write_text("disc\n")
    outcome = mrcnn("data", "prepare", source, "-o", "b", "--classes", "names.txt")
    assert "warning: 10 objects of class 'square' left out: not among --classes" in outcome.err
    assert read_dataset_file(tmp_path / "b").classes == ("disc",)
    assert "none of cat is in the source" in mrcnn("data", "prepare", source, "-o", "c", "--classes", "cat").error


def test_a_source_with_splits_keeps_them_until_others_are_asked_for(mrcnn, shapes, tmp_path):
    truth = json.loads((shapes / "shapes.json").read_text())
    for name, numbers in (("train", (1, 2, 3)), ("val", (4,))):
        images = [entry for entry in truth["images"] if entry["id"] in numbers]
        annotations = [entry for entry in truth["annotations"] if entry["image_id"] in numbers]
        (tmp_path / "in").mkdir(exist_ok=True)
        content = {"images": images, "annotations": annotations, "categories": CATEGORIES}
        (tmp_path / "in" / f"instances_{name}2017.json").write_text(json.dumps(content))
    words = ["data", "prepare", "in", "--images", shapes]
    outcome = mrcnn(*words, "-o", "own", "--json")
    assert {name: entry["images"] for name, entry in outcome.json["splits"].items()} == {"train": 3, "val": 1}
    assert "has a split 'val' already" in mrcnn(*words, "-o", "b", "--val", 0.5).error
    outcome = mrcnn(*words, "-o", "c", "--val", 0.5, "--resplit", "--json")
    assert {name: entry["images"] for name, entry in outcome.json["splits"].items()} == {"train": 2, "val": 2}
    content = json.loads((tmp_path / "own" / "train.json").read_text())
    assert content["categories"] == CATEGORIES
    assert [entry["id"] for entry in content["images"]] == [1, 2, 3]


def test_images_are_copied_on_demand(mrcnn, source, tmp_path):
    assert mrcnn("data", "prepare", source, "-o", "data", "--copy").status == 0
    content = read_dataset_file(tmp_path / "data")
    assert content.splits["train"].images == tmp_path / "data" / "train"
    copied = [path for split in ("train", "val") for path in (tmp_path / "data" / split).iterdir()]
    assert {path.name: path.read_bytes() for path in copied} == {
        path.name: path.read_bytes() for path in source.glob("*.png")
    }


@pytest.mark.parametrize("target", ["coco", "yolo", "voc", "labelme", "rle-csv"])
def test_a_prepared_data_set_is_converted_and_prepared_again(mrcnn, source, tmp_path, target):
    first = mrcnn("data", "prepare", source, "-o", "data", "--json").json
    converted = mrcnn("data", "convert", "data", "--to", target, "-o", "other", "--json")
    assert converted.status == 0, converted.err
    again = mrcnn("data", "prepare", "other", "-o", "again", "--json").json
    assert again["format"] == target
    assert again["splits"] == first["splits"]
    assert sorted(again["classes"]) == first["classes"]


def test_what_the_target_cannot_hold_is_said(mrcnn, source, shapes, tmp_path):
    truth = json.loads((shapes / "shapes.json").read_text())
    truth["annotations"][0]["iscrowd"] = 1
    (tmp_path / "crowd.json").write_text(json.dumps(truth))
    outcome = mrcnn("data", "convert", "crowd.json", "--images", shapes, "--to", "yolo", "-o", "yolo")
    assert outcome.status == 0
    assert "warning: yolo cannot hold all: 1 crowd or region to ignore left out" in outcome.err


def test_help_names_all_formats(mrcnn):
    from mrcnn_cli.commands.data.prepare import FORMATS as NAMED
    from mrcnn_cli.data.formats import FORMATS, WRITERS

    assert sorted(NAMED) == sorted(FORMATS)
    assert ", ".join(WRITERS[:-1]) in " ".join(mrcnn("data", "convert", "--help").out.split())


def test_faults_of_the_request_are_named(mrcnn, source):
    assert (
        "known formats: prepared, lvis, coco" in mrcnn("data", "prepare", source, "-o", "a", "--format", "pascal").error
    )
    assert "not a format that is written" in mrcnn("data", "convert", source, "-o", "a", "--to", "cvat").error
    assert "label_key" in mrcnn("data", "prepare", source, "-o", "a", "--set", "label_keys=x").error
    assert "no such file or folder" in mrcnn("data", "prepare", "gone", "-o", "a").error
    assert "leave none to learn from" in mrcnn("data", "prepare", source, "-o", "a", "--val", 0.6, "--test", 0.5).error
    assert mrcnn("data", "prepare", source).status == 2
