"""mrcnn data tile: tiles that train, and say where they lie."""

import json

import numpy as np
import pytest

from mrcnn_cli.data.dataset_file import read_dataset_file
from mrcnn_cli.data.image import read_image
from mrcnn_cli.data.tiff import encode_tiff
from tests.commands.conftest import TINY, assignments


@pytest.fixture
def large(mrcnn, tmp_path):
    """Pictures of 150 x 200 pixels with shapes: three in two folders to learn from, one to evaluate on."""
    words = ["--train", 3, "--val", 1, "--size", 150, 200, "--most", 8]
    assert mrcnn("data", "synth", "shapes", "-o", "large", *words).status == 0
    folder = tmp_path / "large"
    for name in ("a", "b"):
        (folder / "train" / name).mkdir()
    text = (folder / "train.json").read_text()
    for number, name in ((1, "a"), (2, "b")):
        (folder / "train" / f"{number:06}.png").rename(folder / "train" / name / "x.png")
        text = text.replace(f"{number:06}.png", f"{name}/x.png")
    (folder / "train.json").write_text(text)
    return folder


def test_tiles_train_in_one_line(mrcnn, large):
    outcome = mrcnn("data", "tile", "large", "-o", "tiles", "--size", 64, "--overlap", 16, "--workers", 0, "--json")
    assert outcome.status == 0, outcome.err
    splits = outcome.json["splits"]
    assert {name: (counts["images"], counts["tiles"]) for name, counts in splits.items()} == {
        "train": (3, 3 * 12),
        "val": (1, 12),
    }
    assert read_dataset_file("tiles").classes == ("square", "circle", "triangle")
    words = ["--out", "run", *assignments(*TINY, "train.steps=2"), "--json"]
    outcome = mrcnn("train", "nuclei_scratch", "--data", "tiles", *words)
    assert outcome.status == 0, outcome.err


@pytest.mark.parametrize("workers", [0, 2])
def test_each_tile_is_the_part_of_its_picture_that_it_says(mrcnn, large, workers):
    words = ["--size", 64, "--overlap", 16, "--workers", workers]
    assert mrcnn("data", "tile", "large", "-o", "tiles", *words).status == 0
    content = json.loads((large.parent / "tiles" / "train.json").read_text())
    whole = json.loads((large / "train.json").read_text())
    assert {image["tile"]["source"] for image in content["images"]} == {"a/x.png", "b/x.png", "000003.png"}
    for image in content["images"]:
        origin = image["tile"]
        x, y = origin["x"], origin["y"]
        picture = read_image(large / "train" / origin["source"])
        assert (origin["height"], origin["width"]) == picture.shape[:2]
        assert origin["source_id"] in {entry["id"] for entry in whole["images"]}
        tile = read_image(large.parent / "tiles" / "train" / image["file_name"])
        assert np.array_equal(tile, picture[y : y + image["height"], x : x + image["width"]])
    named = {annotation["source_id"] for annotation in content["annotations"]}
    assert named == {annotation["id"] for annotation in whole["annotations"]}
    numbers = [annotation["id"] for annotation in content["annotations"]]
    assert numbers == list(range(1, len(numbers) + 1))


def test_channels_and_depth_stay(mrcnn, large, tmp_path):
    text = (large / "train.json").read_text()
    (large / "train" / "000003.png").unlink()
    image = np.random.default_rng(0).integers(0, 65536, (150, 200, 5), np.uint16)
    (large / "train" / "000003.tif").write_bytes(encode_tiff(image))
    (large / "train.json").write_text(text.replace("000003.png", "000003.tif"))
    assert mrcnn("data", "tile", "large", "-o", "tiles", "--size", 128, "--overlap", 0, "--workers", 0).status == 0
    tile = read_image(tmp_path / "tiles" / "train" / "000003_00022_00072.tif")
    assert tile.dtype == np.uint16
    assert np.array_equal(tile, image[22:, 72:])


def test_tiles_without_objects_can_be_left_out(mrcnn, large):
    words = ["--size", 32, "--overlap", 0, "--json", "--workers", 0]
    every, some = (
        mrcnn("data", "tile", "large", "-o", name, *words, *more).json["splits"]["train"]
        for name, more in (("every", []), ("some", ["--drop-empty"]))
    )
    assert some["tiles"] < every["tiles"]
    assert some["objects"] == every["objects"]
    content = json.loads((large.parent / "some" / "train.json").read_text())
    shown = {annotation["image_id"] for annotation in content["annotations"]}
    assert shown == {image["id"] for image in content["images"]}


def test_a_picture_that_cannot_be_read_is_named_and_the_others_are_cut(mrcnn, large):
    (large / "train" / "a" / "x.png").write_bytes(b"nothing of the kind")
    outcome = mrcnn("data", "tile", "large", "-o", "tiles", "--size", 128, "--overlap", 0, "--workers", 0)
    assert outcome.status == 1
    assert "a/x.png: is not an image" in outcome.err
    assert "1 of the images could not be read and were left out" in outcome.err
    content = json.loads((large.parent / "tiles" / "train.json").read_text())
    assert {image["tile"]["source"] for image in content["images"]} == {"b/x.png", "000003.png"}


def test_nothing_is_written_over_the_source(mrcnn, large):
    before = sorted(large.rglob("*"))
    for out in ("large", "."):
        outcome = mrcnn("data", "tile", "large", "-o", out)
        assert outcome.status == 1
        assert "never written over" in outcome.error
    assert sorted(large.rglob("*")) == before


def test_an_overlap_as_large_as_the_tile_is_refused(mrcnn, large):
    outcome = mrcnn("data", "tile", "large", "-o", "tiles", "--size", 64, "--overlap", 64)
    assert outcome.status == 1
    assert "--overlap 64: must be less than --size (64)" in outcome.error
